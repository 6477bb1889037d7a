"""Records what jobs have brought back, and sends what they want to be sent.

For each message: rows, then what takes its place, then the message's files go. Whatever dies in between, the next
pass finds the message still there and does the same again: rows are written twice to no harm, and what was to be
sent is there already, in a batch that names the message as its source.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from mtask.errors import BackendError, BagNotFoundError, MessageError, UnavailableError
from mtask.model import Bag, BagState, Block, DeadMessage, Failure, Message, Reason, Result, State
from mtask.packing import slice_message, split_rows
from mtask.table import Table
from mtask_condor.batch import Batch
from mtask_condor.census import Present
from mtask_condor.live import Live, runs_of
from mtask_condor.outcome import Letter, Outcome, read
from mtask_condor.removed import Removed
from mtask_condor.watch import Watch

__all__ = ["Collector"]

MOST_BODY_BYTES = 65536
"""Of a file that is set aside."""
AT_A_TIME = 5000
"""Tasks recorded in one go."""


class Returned(msgspec.Struct, frozen=True):
    """A message whose job is over."""

    number: int
    message: Message
    outcome: Outcome


class Collector:
    """Of one queue; used by one thread at a time."""

    def __init__(
        self,
        table: Table,
        send: Callable[[Iterable[Letter], Sequence[tuple[str, int]]], None],
        live: Callable[[], Live],
        note_removed: Callable[[Sequence[Removed]], None],
    ) -> None:
        """`send` stores letters for good, and with them from which messages they are; `live`: what is in the folder."""
        self._table, self._send, self._live, self._note_removed = table, send, live, note_removed
        self._watches: dict[str, Watch] = {}

    def collect(self, batches: Sequence[Batch], present: Mapping[str, Present]) -> int:
        """How many tasks were recorded. `present`: what the schedd had of the batches just before, where that is
        known. Raises BackendError; what was recorded until then stays."""
        known = {batch.id for batch in batches}
        for gone in self._watches.keys() - known:
            self._watches.pop(gone).close()
        return sum(self._look_at(batch, present.get(batch.id)) for batch in batches)

    def take(self, batch: Batch, numbers: Iterable[int]) -> int:
        """Record what these messages' jobs brought back; how many tasks."""
        recorded, group, tasks = 0, list[Returned](), 0
        for number in numbers:
            try:
                message = batch.message(number)
            except MessageError as error:
                self._set_aside(batch, number, error)
                continue
            if message is None:
                continue
            group.append(Returned(number, message, self._outcome(batch, number, message)))
            tasks += message.count
            if tasks >= AT_A_TIME:
                recorded += self._record(batch, group)
                group, tasks = [], 0
        return recorded + (self._record(batch, group) if group else 0)

    def close(self) -> None:
        for watch in self._watches.values():
            watch.close()
        self._watches.clear()

    def _look_at(self, batch: Batch, present: Present | None) -> int:
        watch = self._watches.setdefault(batch.id, Watch(batch))
        try:
            news = watch.news()
            recorded = self.take(batch, news.ended)
            if news.removed:
                self._drop(batch, news.removed)
            live = sorted(batch.live())
            if news.over is not None:
                recorded += self.take(batch, filter(batch.brought_back, live))
                if left := batch.live():  # they never became jobs
                    self._drop(batch, dict.fromkeys(left, news.over))
            elif present is not None:  # its log may say nothing of it, damaged or lost
                recorded += self.take(batch, filter(present.is_over, live))
        except BaseException:
            self._watches.pop(batch.id).close()  # to be read from the start again
            raise
        if news.over is not None or (present is not None and present.is_gone):
            batch.remove()
        return recorded

    def _set_aside(self, batch: Batch, number: int, error: MessageError) -> None:
        """A message's file that was damaged."""
        reason = f"a message's file can't be read, and `mtask repair {batch.head.bag}` runs its tasks again: {error}"
        body = (batch.path / f"{number}.in").read_bytes()[:MOST_BODY_BYTES]
        self._table.set_aside([DeadMessage(body=body, reason=reason[:500])])
        batch.forget(number)

    def _outcome(self, batch: Batch, number: int, message: Message) -> Outcome:
        """Of this message's tasks alone: what comes from a node is data, and nothing to believe."""
        path = batch.path / f"{number}.out"
        try:
            outcome = read(path)
            if not outcome.is_about(message):
                raise ValueError("it is about other tasks")
        except ValueError as error:
            reason = f"a result file can't be used, and `mtask repair` runs its tasks again: {error}"[:500]
            return Outcome(dead=[DeadMessage(body=path.read_bytes()[:MOST_BODY_BYTES], reason=reason)])
        return outcome

    def _record(self, batch: Batch, group: Sequence[Returned]) -> int:
        try:
            bag = self._table.bag(batch.head.bag)
        except BagNotFoundError:
            bag = None
        if bag is None or bag.uid != batch.head.uid:  # nobody wants them any more
            for each in group:
                batch.forget(each.number)
            return 0
        rows = [row for each in group for row in each.outcome.rows]
        self._write(rows)
        if attempts := [attempt for each in group for attempt in each.outcome.attempts]:
            self._table.keep_attempts(attempts)
        if dead := [message for each in group for message in each.outcome.dead]:
            self._table.set_aside(dead)
        if bag.state is not BagState.CANCELLED and bag.generation == batch.head.generation:
            letters = [*self._letters(bag, group), *self._followers(bag, group)]
            if letters:
                self._send(letters, [(batch.id, each.number) for each in group])
        for each in group:
            batch.forget(each.number)
        return len(rows)

    def _write(self, rows: Sequence[Result]) -> None:
        """A row that the table refuses becomes a failure that says so."""
        if not rows:
            return
        try:
            self._table.record(rows)
        except UnavailableError:
            raise
        except BackendError as error:
            if len(rows) > 1:
                for row in rows:
                    self._write([row])
            elif rows[0].state is State.DONE:
                self._table.record([_refused(rows[0], error)])
            else:
                raise

    def _letters(self, bag: Bag, group: Sequence[Returned]) -> Iterable[Letter]:
        """Not for tasks that have a row by now; and for those of which the file says nothing."""
        wanted = [letter for each in group for letter in each.outcome.letters]
        singles = [letter.message.first for letter in wanted if letter.message.count == 1]
        ended = self._table.recorded(bag.name, singles) if singles else set()
        for letter in wanted:
            if letter.message.count > 1 or letter.message.first not in ended:
                yield letter
        for each in group:
            left = each.outcome.left(each.message)
            if left:
                recorded = self._table.recorded(bag.name, left)  # by the node itself
                left = [index for index in left if index not in recorded]
            rows = split_rows(each.message.rows) if left else []
            for start, stop in runs_of(left):
                at = each.message.first
                yield Letter(message=slice_message(each.message, rows, start - at, stop - at))

    def _followers(self, bag: Bag, group: Sequence[Returned]) -> Iterable[Letter]:
        """What may be sent now that the task before it has ended (`Spec.serial`): in its chain the first without a
        row, unless it is on its way already. So it doesn't matter how often this is asked."""
        ended = [each.message for each in group if each.message.then is not None]
        if not ended:
            return
        recorded = self._table.recorded(bag.name, [message.first for message in ended])
        live, seen = self._live(), set[int]()
        for message in ended:
            block = self._next_open(bag, message.then) if message.first in recorded else None
            if block is None or block.number in seen:
                continue
            seen.add(block.number)
            follower = Message.of(bag, block, check=True)
            if not live.has(follower):
                yield Letter(message=msgspec.structs.replace(follower, expires_at=message.expires_at))

    def _next_open(self, bag: Bag, number: int | None) -> Block | None:
        """From this block of a chain on, the first whose task has no row. None: there is none, or no submit came that
        far; then `repair` sends what is left."""
        while number is not None:
            try:
                block = self._table.block(bag.name, number)
            except KeyError:
                return None
            if not self._table.recorded(bag.name, [block.first]):
                return block
            number = block.then
        return None

    def _drop(self, batch: Batch, removed: dict[int, str]) -> None:
        """The messages of these were taken out of the queue."""
        head = batch.head
        try:
            bag = self._table.bag(head.bag)
            wanted = bag.uid == head.uid and bag.generation == head.generation
            wanted = wanted and bag.state is not BagState.CANCELLED
        except BagNotFoundError:
            wanted = False
        live = [number for number in removed if (batch.path / f"{number}.in").exists()]
        if wanted and live:
            by_why = defaultdict[str, list[tuple[int, int]]](list)
            for number in live:
                by_why[removed[number]].append(head.ranges[number])
            self._note_removed(
                [
                    Removed(uid=head.uid, first=first, count=count, why=why)
                    for why, ranges in by_why.items()
                    for first, count in ranges
                ]
            )
        for number in live:
            batch.forget(number)


def _refused(row: Result, error: BackendError) -> Result:
    failure = Failure(
        reason=Reason.VALUE, type="refused", message=f"the table refused the result: {error}"[:4096]
    )
    return msgspec.structs.replace(
        row, state=State.FAILED, error=failure, value_json=msgspec.Raw(b"null"), stdout="", stderr=""
    )
