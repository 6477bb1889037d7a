"""The one-shot worker: what a job runs on its execute node.

    python -m mtask_condor NUMBER

In its folder are `order.json` (an Order), `NUMBER.in` (a message) and `NUMBER.out` (of its last start, or empty).
Exit status 0: nothing is left to do for the message, and `NUMBER.out` says so. STOPPED: something is left, and
HTCondor is to start the job again. Anything else is a fault that another start would meet, too: the job is held.
"""

from __future__ import annotations

import math
import os
import re
import signal
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import msgspec

from mtask.errors import MessageError, MtaskError
from mtask.model import Delivery, Message
from mtask.oneshot import OneShotQueue
from mtask.packing import slice_message, split_rows
from mtask.queue import Depth, Extension, QueueLimits
from mtask.registry import open_table
from mtask.requirements import DEFAULT_LANE
from mtask.table import Table
from mtask_condor.node_table import NodeTable
from mtask_condor.order import STOPPED, Order
from mtask_condor.outcome import Letter, Outcome, Writer, read

if TYPE_CHECKING:
    from mtask.worker.supervisor import Worker

__all__ = ["Outbox", "main", "run"]

FAULT = 70
SAVE_S = 8.0
"""Of the time between SIGTERM and SIGKILL, what is kept for the last writes."""


class Outbox:
    """The queue behind the one message, for what the worker sends: it goes into the file that is brought back.

    A worker that stops leaves the rest of its message in place, for HTCondor to start the job again: what it would
    send for that is left out, but not what becomes of an attempt that failed. What follows the message's tasks
    (`Spec.serial`) is sent by whoever collects.
    """

    limits = QueueLimits(message_bytes=2**31, send_batch=10_000, receive_batch=1)

    def __init__(self, writer: Writer, message: Message) -> None:
        self._writer, self._stopping = writer, False
        self._tasks = range(message.first, message.first + message.count)

    def stop(self) -> None:
        self._stopping = True

    def send(self, messages: Sequence[Message], *, delay_s: float = 0) -> None:
        due_at = time.time() + delay_s if delay_s else 0.0
        self._writer.letters(
            Letter(message=message, due_at=due_at)
            for message in messages
            if message.first in self._tasks and (message.attempt or not self._stopping)
        )

    def lane(self, name: str) -> Outbox:  # noqa: ARG002
        return self

    def receive(self, *, max_messages: int, lease_s: float, wait_s: float) -> list[Delivery]:  # noqa: ARG002
        return []

    def extend(self, deliveries: Sequence[Delivery], *, lease_s: float) -> Extension:  # noqa: ARG002
        return Extension([], list(deliveries))

    def delete(self, deliveries: Sequence[Delivery]) -> None:
        pass

    def release(self, deliveries: Sequence[Delivery], *, delay_s: float = 0) -> None:
        pass

    def depth(self) -> Depth:
        return Depth(None, None, None)

    def wake(self) -> None:
        pass

    def remove(self) -> bool:
        return False

    def close(self) -> None:
        pass


def main(number: str, *, forks: bool = False) -> int:
    """`forks`: is this process nobody else's, so that a function may run in a copy of it?"""
    order = msgspec.json.decode(Path("order.json").read_bytes(), type=Order)
    message = Message.decode(Path(f"{number}.in").read_bytes())
    file = Path(f"{number}.out")
    before = read(file)
    with closing(Writer(file)) as writer, closing(_table(order, message, writer, before)) as table:
        left = _left(before, message, table)
        if left:
            outbox = Outbox(writer, message)
            deliveries = list(_deliveries(message, left, _starts(before)))
            worker, queue = _worker(order, deliveries, outbox, table, forks=forks)
            needs, functions = order.bag.lane(message.lane).requires, order.bag.spec.kind == "call"
            worker.warm(needs, message.count, functions=functions)
            _stop_in_order(worker, outbox)
            worker.run(until=queue.settled)
            left = _left(read(file), message, table)
        if left:
            writer.stopped()
    return STOPPED if left else 0


def _worker(
    order: Order, deliveries: list[Delivery], outbox: Outbox, table: Table, *, forks: bool
) -> tuple[Worker, OneShotQueue]:
    from mtask.worker.options import Options
    from mtask.worker.supervisor import Worker

    queue = OneShotQueue(deliveries, outbox)
    requires = [lane.requires for lane in (*order.bag.lanes, DEFAULT_LANE)]
    options = Options(
        slots=1,
        cpus=max(each.cpus for each in requires),  # HTCondor has seen to it that they are here
        memory_bytes=max(each.memory_bytes for each in requires),
        tags=tuple(
            {tag for each in requires for tag in (*each.tags, *each.only_on) if not tag.startswith("!")}
        ),
        grace_s=max(1.0, order.grace_s - SAVE_S),
        split_after_s=math.inf if order.split_after_s is None else order.split_after_s,
        path=order.path,
        checkpoints=os.path.abspath("checkpoints"),
        lanes=False,
        orphans=False,  # HTCondor ends what a job leaves behind
        forks=forks and order.table is None,
    )
    say = lambda text: print(f"mtask: {text}", file=sys.stderr, flush=True)  # noqa: E731
    return Worker(queue, table, options, say=say), queue


def _stop_in_order(worker: Worker, outbox: Outbox) -> None:
    """When HTCondor says so."""

    def on_signal(_number: int, _frame: object) -> None:
        outbox.stop()
        worker.drain("the node is taken away")

    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, on_signal)


def _table(order: Order, message: Message, writer: Writer, before: Outcome) -> Table:
    if order.table is not None:
        return open_table(order.table)
    return NodeTable(order.bag, message, writer, {row.index for row in before.rows})


def _left(outcome: Outcome, message: Message, table: Table) -> list[int]:
    left = outcome.left(message)
    return sorted(set(left) - table.recorded(message.bag, left)) if left else []


def _deliveries(message: Message, left: Collection[int], starts: int) -> Iterator[Delivery]:
    """The message, or as much of it as is left: a message for each run of consecutive tasks."""
    if len(left) == message.count:
        yield Delivery(body=message.encode(), token=None, deliveries=starts)
        return
    rows, wanted = split_rows(message.rows), set(left)
    for index in left:
        if index - 1 not in wanted:
            stop = index
            while stop in wanted:
                stop += 1
            part = slice_message(message, rows, index - message.first, stop - message.first)
            yield Delivery(body=part.encode(), token=None, deliveries=starts)


def _starts(before: Outcome) -> int:
    """How often the message was delivered, this time included: starts after which the worker stopped in order, or
    the job was held by somebody, don't count, for no task can be to blame for them."""
    try:
        ad = Path(os.environ["_CONDOR_JOB_AD"]).read_text(errors="replace")
    except (KeyError, OSError):
        return 1
    started, held = (_number(ad, name) for name in ("NumJobStarts", "NumHolds"))
    return 1 + max(0, started - before.clean_stops - held)


def _number(ad: str, name: str) -> int:
    found = re.search(rf"^{name} = (\d+)$", ad, re.MULTILINE)
    return int(found[1]) if found else 0


def run(number: str) -> NoReturn:
    """As the one thing that this process does."""
    try:
        status = main(number, forks=True)
    except (MtaskError, MessageError, OSError, ValueError) as error:
        status = FAULT
        for name in (
            "order.json",
            f"{number}.in",
        ):  # the next start gets them again; what is said needs room on the disk
            Path(name).unlink(missing_ok=True)
        with suppress(OSError):
            print(f"mtask: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    os._exit(status)  # to end as an interpreter does takes as long as some hundred tasks
