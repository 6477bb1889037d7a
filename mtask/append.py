"""Open bags: adding tasks to a bag until it is sealed, from many processes at once.

The bag's blocks are its log: each is added behind the last one, as a whole or not at all. A small document in the table
(`Log`) says where the next one goes, and who is about to write it:

1. claim: enter in the log what the next block will be (`Table.swap`: one at a time);
2. store the block, which leaves alone one that is there already, and read it: the first claim that it fits is its owner's;
3. settle: count its tasks, send its messages, note how far the owner has come, and move the log on.

Who dies between two of these steps leaves a claim. The next one to come, or whoever seals the bag, waits for a moment
whether somebody still works at it. Then he settles a block that is there in the owner's place, and claims the number of one
that isn't. So no number is given twice, nothing is left half done, and no place is held by the dead.

How far a submit has come (`Progress`) is kept by its name: its digest, or the task that made it and which of its submits it
was. The same one again goes on behind that. With `Spec.key`, rows whose key is in the blocks so far are passed over.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import msgspec

from mtask.errors import BackendError, BagExistsError, BagNotFoundError, UsageError
from mtask.keys import key_of
from mtask.model import Bag, BagState, Block, Message
from mtask.open_log import Claim, Log, Progress, advance, digest_of, name_of, owner_of, read, swap
from mtask.packing import BLOCK_BYTES, fit, join_rows, pack, split_rows
from mtask.placing import lanes_of
from mtask.queue import Queue, send_all
from mtask.requirements import Requirements
from mtask.spec import Spec, differs
from mtask.table import Table

__all__ = ["Known", "add", "is_open", "mark_resending", "open_bag", "rows_of", "seal"]

PATIENCE_S = 3.0
"""Who has claimed a block and does nothing more for so long is taken for dead. If it lives, a message is sent twice."""
POLL_S = (0.01, 0.3)

Row = tuple[str, bytes]
"""The name of its lane, and the row."""
_VALUES = msgspec.json.Decoder(list[list[Any]])


class Known:
    """The keys of a bag's tasks, as far as its blocks have been read."""

    def __init__(self) -> None:
        self._keys: set[int | None] = {None}
        self._blocks = 0

    def catch_up(self, table: Table, bag: Bag, blocks: int) -> None:
        """Read the blocks before this number."""
        at = bag.columns.index(bag.spec.key)
        for block in table.blocks(bag.name, first=self._blocks) if self._blocks < blocks else ():
            if block.number >= blocks:
                break
            self._keys.update(key_of(row[at]) for row in _VALUES.decode(block.rows))
            self._blocks = block.number + 1

    def new(self, bag: Bag, row: bytes) -> bool:
        key = key_of(msgspec.json.decode(row)[bag.columns.index(bag.spec.key)])
        return key is None or key not in self._keys


class _Rest:
    """The rows of a submit that have not been dealt with."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows, self._at = iter(rows), 0
        self._held: deque[Row] = deque()

    def next_block(
        self, bag: Bag, log: Log, start: int, known: Known | None
    ) -> tuple[Block | None, int, bool]:
        """The next block from row `start` on, through which row it goes, and whether nothing is behind it."""
        while self._at < start and self._fill(1):
            self._held.popleft()
            self._at += 1
        rows: list[bytes] = []
        lane, size, passed = "", 1, 0
        while self._fill(passed + 1):
            name, row = self._held[passed]
            if known is None or known.new(bag, row):
                if rows and (name != lane or size + len(row) + 1 > BLOCK_BYTES):
                    break
                lane = name
                rows.append(row)
                size += len(row) + 1
            passed += 1
        whole = not self._fill(passed + 1)
        block = None
        if rows:
            block = Block(
                bag=bag.name,
                number=log.block,
                first=log.first,
                count=len(rows),
                rows=join_rows(rows),
                lane=lane,
            )
        return block, start + passed, whole

    def _fill(self, count: int) -> bool:
        while len(self._held) < count and (row := next(self._rows, None)) is not None:
            self._held.append(row)
        return len(self._held) >= count


def open_bag(
    table: Table,
    name: str,
    spec: Spec,
    columns: tuple[str, ...],
    kinds: Sequence[tuple[int, Requirements]],
    *,
    source: str = "",
) -> tuple[Bag, list[str]]:
    """The open bag of this name, made if there is none, and the names of the lanes of `kinds`.

    Raises UsageError for what can't be in an open bag, and BagExistsError when the name is taken by another bag.
    """
    for wrong, option in ((spec.serial, "--serial"), (spec.not_before_at, "--not-before")):
        if wrong:
            raise UsageError(f"an open bag can't have {option}: submit a bag of its own for that")
    bag = Bag(name=name, spec=spec, columns=columns, source=source, endless=True)
    bag = msgspec.structs.replace(
        bag, lanes=tuple(lane for lane in lanes_of(spec, kinds, bag.uid) if lane.name)
    )
    try:
        there = table.bag(name)
    except BagNotFoundError:
        if not columns:
            raise UsageError(
                f"the open bag {name!r} can't begin without a row: the first ones give it its columns"
            ) from None
        try:
            table.create_bag(bag)
            there = bag
        except BagExistsError:  # by somebody else, just now
            there = table.bag(name)
    if why := _other_than(there, bag):
        raise BagExistsError(f"nothing can be added to the bag {name!r}: it {why}")
    bag = there
    names = [lane.name for lane in lanes_of(spec, kinds, bag.uid)]
    if new := set(names) - {"", *(lane.name for lane in bag.lanes)}:
        wanted = [str(lane.requires) for lane in lanes_of(spec, kinds, bag.uid) if lane.name in new]
        raise UsageError(
            f"rows have needs or a priority ({wanted[0] or 'another priority'}) that none of the first rows of the open "
            f"bag {name!r} had: its lanes were made then; submit them to another bag"
        )
    return bag, names


def _other_than(there: Bag, here: Bag) -> str | None:
    """Why tasks of one bag can't be added to the other."""
    if there.state is BagState.CANCELLED:
        return "was cancelled (`mtask retry` takes it up again)"
    if not there.endless:
        return "was submitted as a whole, without --open"
    if (why := differs(there.spec, here.spec)) is not None:
        return why
    if here.columns and there.columns != here.columns:
        return f"has the columns {', '.join(there.columns)}, not {', '.join(here.columns)}"
    return None


def add(
    queue: Queue,
    table: Table,
    bag: Bag,
    rows: Iterable[Row],
    *,
    submit: str,
    digest: str,
    known: Known | None = None,
    on_sent: Callable[[int], None] | None = None,
) -> int:
    """Add rows to an open bag, and send them; returns how many were added now.

    `submit`: the name under which this is done once; `digest`: of all the rows; `known`: for a bag with a key.
    Raises UsageError when the bag is sealed, or rows of that name were added in part that were others.
    """
    if bag.lanes:
        table.put_lanes(bag.lanes)
    rest, added = _Rest(rows), 0
    while True:
        log, version = _ready(queue, table, bag)
        progress = read(table, name_of(bag, submit), Progress)[0]  # after what was waited for was settled
        if progress.whole:
            return added
        if progress.through and progress.digest != digest:
            raise UsageError(
                f"the first {progress.through:,} tasks were added to the bag {bag.name!r} by an earlier attempt, and they are "
                "others now: a task that submits so many must submit the same ones each time"
            )
        if log.sealed:
            raise _is_sealed(bag)
        if known is not None:
            known.catch_up(table, bag, log.block)
        block, through, whole = rest.next_block(bag, log, progress.through, known)
        if block is None:
            advance(table, bag, submit, Progress(digest, through, whole=True))
            return added
        claim = Claim(submit, digest, through, whole, digest_of(block))
        with table.transaction(queue):
            mine = _store(queue, table, bag, block, claim, log, version, grown=progress.through)
        if mine:
            added += block.count
            if on_sent is not None:
                on_sent(added)


def seal(queue: Queue, table: Table, bag: Bag) -> None:
    """Nothing can be added from now on. Raises UsageError for a bag that never was open."""
    if not bag.endless:
        raise UsageError(f"the bag {bag.name!r} isn't open: it was submitted as a whole, without --open")
    while True:
        log, version = _ready(queue, table, bag)
        # Claims that are left have no block yet: whoever stores one after this is told that he comes too late.
        sealed = msgspec.structs.replace(log, sealed=True, claims=())
        if log.sealed or swap(table, name_of(bag), sealed, version):
            break
    if table.bag(bag.name).state is not BagState.RESENDING:  # else that `retry` goes on, and ends with it
        table.update_bag(bag.name, state=BagState.SEALED, total=log.first, sent=log.first)


def _is_sealed(bag: Bag) -> UsageError:
    return UsageError(f"the bag {bag.name!r} is sealed: nothing can be added to it")


def is_open(table: Table, bag: Bag) -> bool:
    """Can tasks be added to it, or could they if it were not cancelled?"""
    return bag.endless and not read(table, name_of(bag), Log)[0].sealed


def mark_resending(table: Table, bag: Bag, resending: bool) -> bool:
    """Of an open bag, which keeps its state meanwhile. Was it marked before?"""
    while True:
        log, version = read(table, name_of(bag), Log)
        new = msgspec.structs.replace(log, resending=resending)
        if log == new or swap(table, name_of(bag), new, version):
            return log.resending


def _ready(queue: Queue, table: Table, bag: Bag) -> tuple[Log, int]:
    """The log when nobody works at its next block any more. There may be claims left, but no block then."""
    log, version = read(table, name_of(bag), Log)
    since_s, pause_s, seen = time.monotonic(), POLL_S[0], version
    while log.claims:
        if version != seen:
            since_s, seen = time.monotonic(), version
        elif time.monotonic() - since_s > PATIENCE_S:
            try:
                block = table.block(bag.name, log.block)
            except KeyError:
                return log, version
            with table.transaction(queue):
                _settle(queue, table, bag, block, check=True)
        time.sleep(pause_s)
        pause_s = min(1.5 * pause_s, POLL_S[1])
        log, version = read(table, name_of(bag), Log)
    return log, version


def _store(
    queue: Queue, table: Table, bag: Bag, block: Block, claim: Claim, log: Log, version: int, *, grown: int
) -> bool:
    """Claim, store, and settle what is there then; False: it isn't ours, for somebody else was quicker."""
    claimed = msgspec.structs.replace(log, claims=(*log.claims, claim))
    if not swap(table, name_of(bag), claimed, version):
        return False
    table.put_blocks([block])
    there = table.block(bag.name, block.number)
    _settle(queue, table, bag, there, check=bool(log.claims), grown=grown)
    return owner_of(claimed, there) == claim


def _settle(queue: Queue, table: Table, bag: Bag, block: Block, *, check: bool, grown: int = 0) -> None:
    """The block is there: see to it that its tasks are counted and sent, and make room for the next one.

    Any number may do this at a time, and any of them may be killed: the log is moved on last. Who comes late may find
    that others have claimed the block, too, stored it, and settled it: so the log is read anew.
    """
    log = read(table, name_of(bag), Log)[0]
    if log.block != block.number:
        return
    owner = owner_of(log, block)
    if owner is None and log.sealed:
        raise _is_sealed(bag)
    if owner is None:
        raise BackendError(
            f"block {block.number} of bag {bag.name!r} is nobody's; `mtask repair` can't mend that"
        )
    table.update_bag(bag.name, total=block.first + block.count)
    # Read after the block was stored: of a generation that ends before this, `retry` sends the block.
    send_all(
        queue,
        _messages(
            table.bag(bag.name),
            block,
            queue.limits.message_bytes,
            check=check or len(log.claims) > 1,
            grown=grown,
        ),
    )
    advance(table, bag, owner.submit, Progress(owner.digest, owner.through, owner.whole))
    while True:
        now, version = read(table, name_of(bag), Log)
        if now.block != block.number:
            return
        new = msgspec.structs.replace(now, block=block.number + 1, first=block.first + block.count, claims=())
        if swap(table, name_of(bag), new, version):
            return


def _messages(bag: Bag, block: Block, message_bytes: int, *, check: bool, grown: int) -> list[Message]:
    """A block's messages. As of a bag of its own: the first tasks of a submit are single ones, so that all workers
    get some; `grown`: so many tasks of it came before."""
    spec = bag.spec
    whole = Message.of(bag, block, check=check)
    if spec.expires_s is not None:
        whole = msgspec.structs.replace(whole, expires_at=time.time() + spec.expires_s)
    packed = pack(
        map(bytes, split_rows(block.rows)),
        per_message=spec.tasks_per_message,
        growth=spec.growth,
        first=grown,
    )
    return [
        fit(
            msgspec.structs.replace(
                whole, first=block.first + at - grown, count=count, rows=msgspec.Raw(rows)
            ),
            message_bytes,
        )
        for at, count, rows in packed
    ]


def rows_of(blocks: Iterable[Block]) -> Iterator[Row]:
    """The rows of packed blocks, one by one."""
    for block in blocks:
        for row in split_rows(block.rows):
            yield block.lane, bytes(row)
