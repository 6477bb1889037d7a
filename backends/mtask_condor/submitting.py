"""Batches become jobs: what was sealed is submitted, and where another process ended, this one goes on."""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable, Iterable

from mtask.errors import BackendError, BagNotFoundError, UnusableError
from mtask.model import BagState
from mtask.table import Table
from mtask_condor.address import Address
from mtask_condor.batch import Batch, abandoned, storing
from mtask_condor.jobs import Jobs, quoted
from mtask_condor.watch import cluster_in_log

__all__ = ["Submitting"]


class Submitting:
    """Of one folder; who calls these methods holds its lock."""

    def __init__(self, address: Address, jobs: Jobs, table: Callable[[], Table]) -> None:
        self._address, self._jobs, self._table = address, jobs, table
        self._owner: tuple[int, int] | None = None

    def submit(self, batch: Batch) -> None:
        """A batch that nobody wants any more goes: whoever cancels has the lock, too."""
        if not self._wanted(batch):
            batch.remove()
            return
        with storing(batch.path):
            owner = self._owner_of_jobs()
            if owner is not None:
                batch.give_to(*owner)
            schedd = self._jobs.schedd()
            batch.submitted(self._jobs.submit(batch), schedd)

    def recover(self) -> None:
        """Go on where another process ended."""
        folder = self._address.folder
        if not folder.is_dir():
            return
        with storing(folder):
            list(abandoned(folder))
            for batch in Batch.all(folder):
                if batch.cluster() is not None:
                    continue
                self.forget(batch.head.sources)
                cluster = cluster_in_log(batch) or self._cluster_of(batch)
                if cluster is not None:
                    batch.submitted(cluster, self._jobs.schedd())
                else:
                    self.submit(batch)

    def forget(self, sources: Iterable[tuple[str, int]]) -> None:
        """Messages (batch, number) whose place others have taken."""
        for batch, number in sources:
            Batch(self._address.folder / batch).forget(number)

    def _cluster_of(self, batch: Batch) -> int | None:
        """In the schedd, if it was submitted by a process that died before it could say so."""
        ads = self._jobs.ads(f"MtaskBatch == {quoted(batch.id)}", ())
        return next((int(ad["ClusterId"]) for ad in ads), None)

    def _wanted(self, batch: Batch) -> bool:
        """Not of a bag that was cancelled, also if it was taken up again, or is another one now."""
        head = batch.head
        try:
            bag = self._table().bag(head.bag)
        except BagNotFoundError:
            return False
        same = (bag.uid, bag.generation) == (head.uid, head.generation)
        return same and bag.state is not BagState.CANCELLED

    def _owner_of_jobs(self) -> tuple[int, int] | None:
        """Whose the files must be: for root, whose jobs are somebody else's."""
        if os.geteuid():
            return None
        if self._owner is None:
            name = self._jobs.user()
            try:
                user = pwd.getpwnam(name)
            except KeyError:
                raise BackendError(
                    f"the schedd sees root as {name!r}, who is no user of this machine"
                ) from None
            self._owner = user.pw_uid, user.pw_gid
            for path in self._address.folder.parents:
                if not path.stat().st_mode & 1:
                    raise UnusableError(
                        f"jobs run as {name!r}, who can't enter {path}; say another ?folder=… in the queue's URL"
                    )
            os.chown(self._address.folder, *self._owner)
        return self._owner
