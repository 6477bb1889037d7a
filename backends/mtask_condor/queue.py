"""The queue: messages in, jobs out. How they become jobs is in submitting.py, what these bring back in collector.py, what
is said of them in look.py."""

from __future__ import annotations

import fcntl
import math
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import msgspec

from mtask.errors import BackendError, BagNotFoundError, UsageError
from mtask.model import Bag, Delivery, Message, Spec
from mtask.queue import Depth, Extension, QueueLimits, Standing
from mtask.table import Table
from mtask_condor.address import Address
from mtask_condor.batch import Batch, Filling, Head, abandoned, storing
from mtask_condor.census import Census
from mtask_condor.collecting import Collecting
from mtask_condor.collector import Collector
from mtask_condor.jobs import Jobs, quoted
from mtask_condor.live import Live
from mtask_condor.look import standing
from mtask_condor.mending import Mending
from mtask_condor.order import Order
from mtask_condor.outcome import Letter
from mtask_condor.removed import RemovedFile
from mtask_condor.submitting import Submitting

__all__ = ["CondorQueue"]

MOST_MESSAGES = 20_000
"""Of a batch."""
DUE_S = 5.0
"""Messages that are due within so long of each other may share a batch."""
GROWTH_IF_CUT = 10
"""A job costs more than a request does, so messages may grow sooner; but only if the long ones are cut."""
NOT_PULLED = (
    "nobody receives from HTCondor: it starts a job for each message by itself. So `mtask worker` has nothing to do "
    "here; `mtask wait BAG` or `mtask collect` records what the jobs bring back"
)


class CondorQueue:
    """A folder of messages, and a job for each of them.

    Needs a table (`attach`) for all but `limits`.
    """

    limits = QueueLimits(
        message_bytes=64 * 2**20,
        send_batch=MOST_MESSAGES,
        receive_batch=1,
        extends=False,
        workers_send=False,
        pulled=False,
    )

    def __init__(self, address: Address) -> None:
        self.address = address
        if address.split_after_s is not None:
            self.limits = msgspec.structs.replace(self.limits, growth=GROWTH_IF_CUT)
        self._jobs = Jobs(address)
        self._census = Census(self._jobs, address.folder)
        self._removed = RemovedFile(address.folder)
        self._submitting = Submitting(address, self._jobs, lambda: self._required()[0])
        self._mending = Mending(address.folder, self._jobs, self._order)
        self._table: Table | None = None
        self._table_url: str | None = None
        self._collector: Collector | None = None
        self._collecting: Collecting | None = None
        self._filling: dict[Head, Filling] = {}
        self._bags: dict[tuple[str, int], Bag] = {}
        self._lock = threading.RLock()
        self._left_out = 0

    # -- HandsOut -----------------------------------------------------------------------------------

    def attach(self, table: Table, url: str | None) -> None:
        """The table that goes with it; `url`: for the nodes, if they write to it themselves."""
        self._table = table
        self._table_url = url if self.address.direct else None
        if url is not None and self.address.collect:
            self._collecting = Collecting(self.address, url)
        self._collector = Collector(table, self._send_letters, self._live, self._removed.note)

    def check(self, spec: Spec) -> None:
        if spec.max_running is not None or spec.rate is not None:
            raise UsageError(
                "--max-running and --rate need workers that agree with each other, which jobs of HTCondor can't; leave "
                "them out, or ask your pool's administrators for a concurrency limit"
            )
        if self.address.direct and self._table_url is None:
            raise UsageError("?table=direct needs a table that was opened by its URL")
        self._check_table()

    def _check_table(self) -> None:
        if self._collecting is not None:
            self._collecting.check()

    def flush(self) -> int:
        """Have jobs made of all that was sent."""
        self._make_jobs()
        with self._lock:
            left_out, self._left_out = self._left_out, 0
        return left_out

    def _make_jobs(self) -> None:
        with self._locked():
            fresh = [filling.seal() for filling in self._filling.values()]
            self._filling.clear()
            for batch in fresh:
                self._submitting.submit(batch)
            self._submitting.recover()
            if self._collecting is not None and Batch.all(self.address.folder):
                try:
                    self._collecting.ensure()
                except BackendError:  # a schedd may refuse such jobs: then who waits collects
                    self._collecting = None

    @property
    def collects(self) -> bool:
        return self._collecting is not None

    def leave_if_empty(self, path: Path) -> bool:
        """For the job that collects: nothing is left to do, and who sends something from now on submits another one."""
        with self._locked():
            folder = self.address.folder
            empty = not Batch.all(folder) and not any(folder.glob(".????????????"))
            if empty:
                path.unlink(missing_ok=True)
        return empty

    def collect(self) -> int:
        self._check_table()
        with self._locked():
            self._submitting.recover()
            collector = self._required()[1]
            batches = Batch.all(self.address.folder)
            recorded = collector.collect(batches, self._census.of(batches))
        if self._filling:
            self._make_jobs()
        return recorded

    def cancelled(self, bag: Bag) -> None:
        constraint = f"MtaskBag == {quoted(bag.uid)} && MtaskGeneration <= {bag.generation}"
        with self._locked():  # who sends just now has made its jobs by then, or makes none any more
            list(abandoned(self.address.folder))
            self._jobs.remove(constraint, "its bag was cancelled")
            for batch in Batch.all(self.address.folder):
                if batch.head.uid == bag.uid and batch.cluster() is None:
                    batch.remove()

    def standing(self, bag: Bag) -> Standing:
        table, _ = self._required()
        batches = {batch.id: batch for batch in Batch.all(self.address.folder)}
        removed = [each for each in self._removed.all() if each.uid == bag.uid]
        found = standing(self._jobs, bag, batches, removed, table)
        collecting = self._collecting.troubles() if self._collecting is not None else []
        return found._replace(troubles=(*found.troubles, *self._mending.troubles(bag.name), *collecting))

    # -- Queue --------------------------------------------------------------------------------------

    def send(self, messages: Sequence[Message], *, delay_s: float = 0) -> None:
        """They are safe in the folder when this returns, and become jobs with `flush`, or with `close`.

        Of messages with `check`, tasks that are in the folder already are left out: a node could not look for others.
        """
        self._check_table()
        due_at = time.time() + delay_s if delay_s else 0.0
        with self._lock:
            if any(message.check for message in messages):
                with self._locked():
                    self._put(self._letters_of(self._unsent(messages), due_at))
            else:
                self._put(self._letters_of(messages, due_at))
            full = [head for head, filling in self._filling.items() if filling.count >= MOST_MESSAGES]
            if full:
                self._make_jobs()

    @staticmethod
    def _letters_of(messages: Iterable[Message], due_at: float) -> Iterator[Letter]:
        return (Letter(message=message, due_at=due_at) for message in messages)

    def _unsent(self, messages: Sequence[Message]) -> list[Message]:
        """What has to be sent of them; with the lock."""
        self._removed.forget({message.uid for message in messages})
        with storing(self.address.folder):
            list(abandoned(self.address.folder))
        live = self._live()
        found = [part for each in messages for part in (live.without(each) if each.check else [each])]
        self._left_out += sum(each.count for each in messages) - sum(each.count for each in found)
        return found

    def _live(self) -> Live:
        """With the lock."""
        with storing(self.address.folder):
            return Live.of(self.address.folder, self._filling.values())

    def lane(self, name: str) -> CondorQueue:
        """A message says which lane is its own, so that one object will do for all."""
        return _Lane(self) if name else self

    def depth(self) -> Depth:
        """Held jobs count as delayed."""
        names = ("JobStatus", "TotalSubmitProcs", "JobMaterializeNextProcId")
        folder = quoted(str(self.address.folder))
        ready = leased = held = 0
        for ad in self._jobs.ads(f"MtaskFolder == {folder}", names):
            if "ProcId" not in ad:
                ready += int(ad.get("TotalSubmitProcs", 0)) - int(ad.get("JobMaterializeNextProcId", 0))
            elif ad["JobStatus"] == 1:
                ready += 1
            elif ad["JobStatus"] in (2, 6, 7):
                leased += 1
            elif ad["JobStatus"] == 5:
                held += 1
        return Depth(ready + sum(filling.count for filling in self._filling.values()), leased, held)

    def receive(self, *, max_messages: int, lease_s: float, wait_s: float) -> list[Delivery]:  # noqa: ARG002
        _not_pulled()

    def extend(self, deliveries: Sequence[Delivery], *, lease_s: float) -> Extension:  # noqa: ARG002
        _not_pulled()

    def delete(self, deliveries: Sequence[Delivery]) -> None:  # noqa: ARG002
        _not_pulled()

    def release(self, deliveries: Sequence[Delivery], *, delay_s: float = 0) -> None:  # noqa: ARG002
        _not_pulled()

    def wake(self) -> None:
        pass

    def remove(self) -> bool:
        return False

    def close(self) -> None:
        if self._filling:
            self._make_jobs()
        if self._collector is not None:
            self._collector.close()

    # -- batches ------------------------------------------------------------------------------------

    def _put(self, letters: Iterable[Letter], *, kept: bool = True) -> None:
        folder = self._folder()
        with storing(folder):
            for letter in letters:
                message = letter.message
                due_at = max(letter.due_at, message.not_before or 0.0)
                due_at = math.ceil(due_at / DUE_S) * DUE_S if due_at > time.time() else 0.0
                head = Head(
                    bag=message.bag,
                    uid=message.uid,
                    generation=message.generation,
                    lane=message.lane,
                    due_at=due_at,
                )
                filling = self._filling.get(head)
                if filling is None:
                    filling = self._filling[head] = Filling(folder, head, self._order(message), kept=kept)
                filling.add(msgspec.structs.replace(message, not_before=None))

    def _order(self, message: Message) -> Order:
        key = message.uid, message.generation
        bag = self._bags.get(key)
        if bag is None:
            bag = self._required()[0].bag(message.bag)
            if bag.uid != message.uid:
                raise BagNotFoundError(f"the bag {message.bag!r} was replaced by another one")
            self._bags[key] = bag = msgspec.structs.replace(bag, generation=message.generation)
        return Order(
            bag=bag,
            table=self._table_url,
            path=self.address.path,
            grace_s=self.address.grace_s,
            split_after_s=self.address.split_after_s,
        )

    def _send_letters(self, letters: Iterable[Letter], sources: Sequence[tuple[str, int]]) -> None:
        """For the collector, with the lock. The last batch names the sources: if there is only a part of the batches
        when this process dies, the sources are still there, and are collected once more."""
        others, self._filling = self._filling, {}
        try:
            self._put(letters, kept=False)
            *first, last = self._filling.values()
            sealed = [*(filling.seal() for filling in first), last.seal(sources)]
        finally:
            self._filling = others
        self._submitting.forget(sources)
        for batch in sealed:
            self._submitting.submit(batch)

    # -- what is in the folder beside the batches ---------------------------------------------------

    def _folder(self) -> Path:
        folder = self.address.folder
        with storing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """For this process and thread alone."""
        with self._lock, storing(self._folder()), (self._folder() / "lock").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self._mending.mend()
            yield

    def _required(self) -> tuple[Table, Collector]:
        if self._table is None or self._collector is None:
            raise BackendError("a queue in HTCondor needs its table: open both with mtask.connect")
        return self._table, self._collector


class _Lane(CondorQueue):
    """The same queue by the name of a lane: closing it closes nothing."""

    def __init__(self, main: CondorQueue) -> None:
        self.__dict__ = main.__dict__

    def close(self) -> None:
        pass


def _not_pulled() -> NoReturn:
    raise BackendError(NOT_PULLED)
