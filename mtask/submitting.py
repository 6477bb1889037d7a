"""From a source of rows to a bag in the table and its messages in the queue.

Everything is read, checked and packed into a spool first, so that bad input is refused before
anything is sent (promise 9), however the rows come in. Then blocks and messages go out, in this
order (promise 3), and the bag remembers how far that got, so that the same submit goes on where an
interrupted one was (promise 7).
"""

from __future__ import annotations

import difflib
import hashlib
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, compress, groupby
from operator import itemgetter
from typing import IO

import msgspec

from mtask.arguments import check_command_lines, check_words
from mtask.binding import Binder, resolve
from mtask.errors import BagExistsError, StorageFullError, UsageError
from mtask.keys import Chain, Seen
from mtask.model import COMMAND_COLUMN, Bag, BagState, Block, Message, Spec
from mtask.packing import fit, pack, split_rows
from mtask.placing import Placing
from mtask.queue import Queue, send_all
from mtask.sources import Chunk, Source, encode_rows
from mtask.spec import differs
from mtask.staging import StagingCheck, staged_columns
from mtask.table import Table
from mtask.template import Template, shell_environment

__all__ = ["Prepared", "Spool", "check_name", "claim", "prepare", "repacked", "send"]

SPOOL_MEMORY_BYTES = 8 * 1024 * 1024
SEND_BLOCKS = 64
"""Blocks written and sent at a time."""


class Spool:
    """Packed blocks, in memory while they are few, else in a nameless temporary file."""

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=SPOOL_MEMORY_BYTES)
        self._index: list[tuple[int, int, int, int]] = []
        self.then: dict[int, int] = {}
        """Block → the one to be sent after it."""

    def __len__(self) -> int:
        return len(self._index)

    def append(self, first: int, count: int, rows: bytes, lane: int = 0) -> None:
        try:
            self._file.write(rows)
        except OSError as error:
            raise StorageFullError(
                f"can't write the checked tasks to {tempfile.gettempdir()}: {error.strerror}; "
                "free some space, or set TMPDIR to another directory"
            ) from None
        self._index.append((first, count, len(rows), lane))

    def blocks(self, bag: str, lanes: Sequence[str] = ("",)) -> Iterator[Block]:
        """`lanes`: their names, by the numbers given to `append`."""
        self._file.seek(0)
        for number, (first, count, size, lane) in enumerate(self._index):
            yield Block(
                bag=bag,
                number=number,
                first=first,
                count=count,
                rows=self._file.read(size),
                lane=lanes[lane],
                then=self.then.get(number),
            )

    def rows(self) -> Iterator[tuple[int, bytes]]:
        """The number of its lane, and the rows, of each block."""
        self._file.seek(0)
        for _first, _count, size, lane in self._index:
            yield lane, self._file.read(size)

    def close(self) -> None:
        self._file.close()


@dataclass(frozen=True, slots=True)
class Prepared:
    """Tasks that were checked and packed, ready to be sent."""

    spec: Spec
    columns: tuple[str, ...]
    source: str
    total: int
    digest: str
    spool: Spool
    placing: Placing
    repeated: int
    """Rows left out, because their key was there before."""


def prepare(
    source: Source,
    spec: Spec,
    *,
    on_rows: Callable[[int], None] | None = None,
    row_needs: bool = True,
) -> Prepared:
    """Read and check all rows. Without `row_needs`, columns named cpus, memory, … are parameters only.

    Raises UsageError when spec and columns don't fit together, InputError (a UsageError) for a row
    that is wrong.
    """
    columns = source.columns
    keys, serial = _column_at(spec.key, source, "--key"), _column_at(spec.serial, source, "--serial")
    # No column and no row, as of an empty list: nothing to compare with the function's parameters.
    staged = StagingCheck(spec, columns) if spec.staged and columns else None
    wire = _checker(spec, source, staged) if columns else lambda chunk: _checker(spec, source, staged)(chunk)
    placing, digest, spool = (
        Placing(spec, columns if row_needs else ()),
        hashlib.blake2b(digest_size=16),
        Spool(),
    )
    digest.update(msgspec.json.encode(columns))
    seen, order = Seen(), Chain()
    total = 0

    def chunks() -> Iterator[tuple[list[bytes], list[int]]]:
        """Encoded rows, and their lanes if they differ."""
        nonlocal total
        for chunk in source.chunks():
            lanes = placing.numbers(chunk) if placing.by_row else []
            wired = wire(chunk)
            encoded = encode_rows(wired, columns)
            serials = wired.columns[serial] if serial is not None else ()
            new = None if keys is None else seen.new(wired.columns[keys])
            if staged is not None:
                staged.check(wired, new)
            if new is not None:
                encoded, lanes, serials = (list(compress(each, new)) for each in (encoded, lanes, serials))
            order.add(serials)
            total += len(encoded)
            if on_rows is not None:
                on_rows(total)
            yield encoded, lanes

    try:
        for lane, first, count, block in _packed(chunks(), spec, by_row=bool(placing.by_row)):
            digest.update(block[1:-1] + b",")  # the rows alone, however they are packed
            spool.append(first, count, block, lane)
    except BaseException:
        spool.close()
        raise
    spool.then = order.then
    return Prepared(
        spec=spec,
        columns=columns,
        source=source.name,
        total=total,
        digest=digest.hexdigest(),
        spool=spool,
        placing=placing,
        repeated=seen.repeated,
    )


def repacked(prepared: Prepared, growth: int) -> Prepared:
    """The same tasks, in the blocks of a bag that was begun with another `Spec.growth`: as on another queue."""
    if prepared.spec.growth == growth:
        return prepared
    spec, spool = msgspec.structs.replace(prepared.spec, growth=growth), Spool()
    spool.then = prepared.spool.then  # a bag with some has a task a block
    blocks = ((lane, list(map(bytes, split_rows(rows)))) for lane, rows in prepared.spool.rows())
    chunks = ((rows, [lane] * len(rows)) for lane, rows in blocks)
    for lane, first, count, block in _packed(chunks, spec, by_row=bool(prepared.placing.by_row)):
        spool.append(first, count, block, lane)
    prepared.spool.close()
    return replace(prepared, spec=spec, spool=spool)


def _packed(
    chunks: Iterable[tuple[list[bytes], list[int]]], spec: Spec, *, by_row: bool
) -> Iterator[tuple[int, int, int, bytes]]:
    """(lane, first, count, rows) of each block; a block's tasks are of one lane."""
    groups: Iterable[tuple[int, Iterable[bytes]]] = [(0, chain.from_iterable(rows for rows, _ in chunks))]
    if by_row:
        placed = chain.from_iterable(zip(rows, lanes, strict=True) for rows, lanes in chunks)
        groups = ((lane, map(itemgetter(0), group)) for lane, group in groupby(placed, itemgetter(1)))
    first = 0
    for lane, rows in groups:
        for at, count, block in pack(
            rows, per_message=spec.tasks_per_message, growth=spec.growth, first=first
        ):
            yield lane, at, count, block
            first = at + count


def _column_at(name: str, source: Source, option: str) -> int | None:
    """Raises UsageError."""
    if not name or not source.columns:
        return None
    if name not in source.columns:
        near = difflib.get_close_matches(name, source.columns, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(source.columns)}"
        raise UsageError(f"{option} {name}: {source.name} has no such column; {hint}")
    return source.columns.index(name)


def _checker(spec: Spec, source: Source, staged: StagingCheck | None) -> Callable[[Chunk], Chunk]:
    """What each chunk goes through before it is encoded."""
    columns = source.columns
    named = staged_columns(columns, spec.inputs, spec.outputs)
    if spec.then:
        resolve(spec.then)
    if spec.kind == "call":
        function, spare = resolve(spec.target[0]), (spec.key, spec.serial, *(staged.used if staged else ()))
        wire = Binder(function, named, textual=source.textual, spare=spare).wire
        return wire if staged is None else staged.wire(wire)
    if spec.kind == "run":
        Template(spec.target, named)
    elif spec.kind == "shell":
        shell_environment(columns)
    elif COMMAND_COLUMN not in columns:
        raise UsageError(
            f"{source.name} has no column 'command' (it has {', '.join(columns)}); "
            "say what to run with --call, --run or --shell"
        )
    else:
        return lambda chunk: check_command_lines(chunk, columns)
    return lambda chunk: check_words(chunk, columns)


def check_name(name: str) -> None:
    """Raises UsageError for a name that a bag can't have."""
    if not re.fullmatch(r"[^\W_][\w.-]{0,99}", name):
        raise UsageError(
            f"{name!r} can't be the name of a bag: it has 1 to 100 letters, digits, '.', '-' and '_', "
            "and begins with a letter or a digit"
        )


def claim(table: Table, prepared: Prepared, name: str, *, explicit: bool) -> Bag:
    """The bag to send to: a new one, or one whose submit was interrupted.

    With `explicit` false, `name` is only a wish: a number is added when it is taken by other tasks,
    or by the same ones that have all been done already.
    Raises BagExistsError when the name is taken by other tasks or another spec.
    """
    for wish in _names(name, explicit):
        bag = Bag(
            name=wish,
            spec=prepared.spec,
            columns=prepared.columns,
            digest=prepared.digest,
            source=prepared.source,
        )
        lanes = tuple(lane for lane in prepared.placing.lanes(bag.uid) if lane.name)
        bag = msgspec.structs.replace(bag, lanes=lanes)
        try:
            table.create_bag(bag)
        except BagExistsError:
            there = table.bag(wish)
            why = _differs(there, prepared)
            if why is None and (explicit or not _is_over(table, there)):
                return there
            if explicit:
                raise BagExistsError(
                    f"the bag {name!r} is taken: it {why}; choose another name with --bag"
                ) from None
        else:
            return bag
    raise AssertionError("names are endless")


def _names(name: str, explicit: bool) -> Iterator[str]:
    yield name
    number = 2
    while not explicit:
        yield f"{name}-{number}"
        number += 1


def _differs(there: Bag, prepared: Prepared) -> str | None:
    """In what the stored bag differs; None: it is the same, and this is the same submit once more."""
    if there.state is BagState.CANCELLED:
        return "was cancelled"
    if there.endless:
        return "is an open bag; tasks are added to it with --open"
    # First: as parameters of another function or of a command, the same fields are other values.
    same_target = (there.spec.kind, there.spec.target) == (prepared.spec.kind, prepared.spec.target)
    if same_target and there.digest != prepared.digest:
        return f"holds other tasks (from {there.source})"
    return differs(there.spec, prepared.spec)


def _is_over(table: Table, bag: Bag) -> bool:
    return bag.state is BagState.SEALED and table.counts(bag.name).left == 0


def send(
    queue: Queue,
    table: Table,
    bag: Bag,
    prepared: Prepared,
    *,
    on_sent: Callable[[int], None] | None = None,
) -> int:
    """Store the blocks, send their messages, and seal the bag; returns how many tasks were sent now.

    Goes on behind the tasks that were certainly sent before. Those of which that isn't certain are
    sent with `check`, so that the worker looks for their rows first.
    """
    if bag.state is not BagState.OPEN:
        return 0
    resumed = bag.sent > 0 or _first_block_stored(table, bag)
    sent = 0
    if bag.lanes:
        table.put_lanes(bag.lanes)
    lanes = [lane.name for lane in prepared.placing.lanes(bag.uid)]
    waiting = set(prepared.spool.then.values())
    if waiting:  # whoever ends a task sends the one that waits for it: that must be stored by then
        for batch in _batches(prepared.spool.blocks(bag.name, lanes)):
            _store(table, bag, batch)
    for batch in _batches(b for b in prepared.spool.blocks(bag.name, lanes) if b.first >= bag.sent):
        through = batch[-1].first + batch[-1].count
        delay_s = min(max(0.0, (bag.spec.not_before_at or 0.0) - time.time()), queue.limits.delay_s)
        messages = [
            fit(Message.of(bag, block, check=resumed), queue.limits.message_bytes)
            for block in batch
            if block.number not in waiting
        ]
        with table.transaction(queue):
            if not waiting:
                _store(table, bag, batch)
            send_all(queue, messages, delay_s=delay_s)
            table.update_bag(bag.name, sent=through)
        resumed = False  # only one batch can have been under way when the last submit broke off
        sent += sum(block.count for block in batch)
        if on_sent is not None:
            on_sent(through)
    table.update_bag(bag.name, state=BagState.SEALED, total=prepared.total, sent=prepared.total)
    return sent


def _store(table: Table, bag: Bag, blocks: Sequence[Block]) -> None:
    table.put_blocks(blocks)
    table.update_bag(bag.name, total=max(bag.total, blocks[-1].first + blocks[-1].count))


def _first_block_stored(table: Table, bag: Bag) -> bool:
    return next(table.blocks(bag.name), None) is not None


def _batches(blocks: Iterable[Block]) -> Iterator[list[Block]]:
    batch: list[Block] = []
    for block in blocks:
        batch.append(block)
        if len(batch) == SEND_BLOCKS:
            yield batch
            batch = []
    if batch:
        yield batch
