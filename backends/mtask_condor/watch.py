"""What HTCondor's event log says of a batch's jobs, read on from where it was read last."""

from __future__ import annotations

from contextlib import closing
from typing import Any, NamedTuple

from mtask_condor.batch import Batch
from mtask_condor.client import client

__all__ = ["News", "Watch", "cluster_in_log"]


class News(NamedTuple):
    """What has become of messages since the last look, by their numbers."""

    ended: list[int]
    """The job is over, and its file is here."""
    removed: dict[int, str]
    """And why."""
    over: str | None
    """The whole cluster has left the queue: how."""


class Watch:
    """Reads one batch's log. If that is damaged, what is behind may never be seen, with an error or without."""

    def __init__(self, batch: Batch) -> None:
        self._path = batch.path / "log"
        self._log: Any = None
        self._size = 0

    def news(self) -> News:
        news, over = News([], {}, None), None
        try:
            size = self._path.stat().st_size
        except FileNotFoundError:
            return news
        if size == self._size:
            return news
        self._size = size
        kinds = client().JobEventType
        try:
            if self._log is None:
                self._log = client().JobEventLog(str(self._path))
            for event in self._log.events(stop_after=0):
                if event.type == kinds.JOB_TERMINATED:
                    news.ended.append(event.proc)
                elif event.type == kinds.JOB_ABORTED:
                    news.removed[event.proc] = str(event.get("Reason", "removed"))
                elif event.type == kinds.CLUSTER_REMOVE:
                    over = str(event.get("Notes") or "the cluster was removed")
        except client().HTCondorException:
            self.close()  # damaged: to be read from the start again when there is more of it
        return news._replace(over=over)

    def close(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None


def cluster_in_log(batch: Batch) -> int | None:
    """The number of the cluster that was submitted for it, if there is a trace of that; 0: it can't be read."""
    path = batch.path / "log"
    if not path.exists() or not path.stat().st_size:
        return None
    try:
        with closing(client().JobEventLog(str(path))) as log:
            return next((int(event.cluster) for event in log.events(stop_after=0)), 0)
    except client().HTCondorException:
        return 0
