"""Batches whose files were damaged, as when a machine loses its power: made whole from what is left of them, or set aside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from mtask.errors import BagNotFoundError, MessageError
from mtask.model import Message
from mtask_condor.batch import DAMAGED, Batch, Head, sweep
from mtask_condor.jobs import Jobs, quoted
from mtask_condor.order import Order

__all__ = ["Mending"]


class Mending:
    """Of one folder; who calls `mend` holds its lock."""

    def __init__(self, folder: Path, jobs: Jobs, order_of: Callable[[Message], Order]) -> None:
        self._folder, self._jobs, self._order_of = folder, jobs, order_of
        self._sound: set[str] = set()
        """They were looked at."""

    def mend(self) -> None:
        """All batches can be read when this returns, and nothing is half removed. Raises BackendError when the schedd doesn't answer."""
        sweep(self._folder)
        for batch in Batch.all(self._folder):
            if batch.id in self._sound:
                continue
            if not _mended(batch, self._order_of):
                self._jobs.remove(
                    f"MtaskBatch == {quoted(batch.id)}", "the files of its messages are damaged"
                )
                batch.set_aside()
            self._sound.add(batch.id)

    def troubles(self, bag: str) -> Iterator[str]:
        for path in self._folder.glob(f"*/{DAMAGED}"):
            yield (
                f"{path.parent} holds messages that can't be read any more, as after a power cut, and their jobs were removed: "
                f"`mtask repair {bag}` sends what has no result again; then remove that folder"
            )


def _mended(batch: Batch, order_of: Callable[[Message], Order]) -> bool:
    """False: too little is left of it."""
    bad = batch.damaged()
    if not bad:
        return True
    messages = dict(_messages(batch))
    if not messages:
        return False
    first = next(iter(messages.values()))
    try:
        if "order" in bad:
            batch.write_order(order_of(first))
    except BagNotFoundError:
        return False
    if "head" in bad:
        found = [messages.get(number) for number in range(max(messages) + 1)]
        ranges = [(0, 0) if each is None else (each.first, each.count) for each in found]
        names = ("bag", "uid", "generation", "lane")
        batch.write_head(Head(**{name: getattr(first, name) for name in names}, ranges=tuple(ranges)))
    return True


def _messages(batch: Batch) -> Iterator[tuple[int, Message]]:
    for number in sorted(batch.live()):
        try:
            message = batch.message(number)
        except MessageError:
            continue
        if message is not None:
            yield number, message
