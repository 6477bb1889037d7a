"""From rows to blocks and messages, and from one message to several. Pure functions.

How many tasks a block takes is a compromise: a request costs money and time, and a message is the
unit that one worker holds. `auto` begins with single tasks, so that a small bag spreads over all
workers, and grows by one task a message for every `growth` tasks already packed.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from mtask.errors import MessageError
from mtask.model import NO_ROWS, Block, Message
from mtask.spec import GROWTH

__all__ = [
    "BLOCK_BYTES",
    "auto_count",
    "check_rows",
    "fit",
    "join_rows",
    "pack",
    "piece_size",
    "single",
    "slice_message",
    "split_rows",
    "unfold",
]

BLOCK_BYTES = 47 * 1024
"""Encoded size of a block's rows: with an envelope of up to 1 KiB, one message of Azure's, whose 64 KiB of base64 are
48 KiB; and less than one 64 KiB billing unit of SQS."""
MOST = 1000
SHARE = 0.4
"""A piece takes this part of what each slot still has ahead of it: so pieces get smaller as a bag comes to its
end, where the long ones would be waited for (factoring, Hummel et al. 1992)."""
LONGEST_S = 60.0
"""And so long at most: how many slots there are, and how much is left, may have changed since it was read."""

_ROWS = msgspec.json.Decoder(list[msgspec.Raw])
_VALUES = msgspec.json.Decoder(list[list[Any]])


def auto_count(first: int, growth: int = GROWTH) -> int:
    """How many tasks the block takes that begins with task `first`."""
    return min(MOST, max(1, first // growth))


def pack(
    rows: Iterable[bytes],
    *,
    per_message: int | None = None,
    growth: int = GROWTH,
    first: int = 0,
    block_bytes: int = BLOCK_BYTES,
) -> Iterator[tuple[int, int, bytes]]:
    """Pack encoded rows into blocks; yields (index of the first task, count, JSON array of rows).

    Each row is a JSON array. A row larger than `block_bytes` gets a block of its own. The result
    depends on the rows alone, so that an interrupted submit packs the same blocks again.
    """
    held: list[bytes] = []
    size, most = 1, per_message or auto_count(first, growth)
    for row in rows:
        if held and (len(held) == most or size + len(row) + 1 > block_bytes):
            yield first, len(held), join_rows(held)
            first += len(held)
            held, size, most = [], 1, per_message or auto_count(first, growth)
        held.append(row)
        size += len(row) + 1
    if held:
        yield first, len(held), join_rows(held)


def piece_size(left: int, *, begun: int, took_s: float, ahead: float, least_s: float) -> int | None:
    """How many tasks go into each piece of the `left` that wait behind the one that runs; None: they stay.

    `begun` tasks of the message took `took_s` until now, the one that runs included. Each slot of all workers
    has `ahead` tasks ahead of it (0: unknown), which says how long pieces may be; they take `least_s` at least.
    """
    if begun <= 1:
        return 1  # no pace was seen
    task_s = took_s / begun
    piece_s = min(LONGEST_S, max(least_s, SHARE * ahead * task_s))
    if left * task_s < 1.5 * piece_s:
        return None
    size = max(1, int(piece_s / task_s))
    return -(-left // max(1, round(left / size)))  # as many, of the same size


def join_rows(rows: Sequence[bytes | msgspec.Raw]) -> bytes:
    return b"[" + b",".join(rows) + b"]"


def split_rows(rows: bytes | msgspec.Raw) -> list[msgspec.Raw]:
    """The rows of a block or message, each still encoded. Raises msgspec.DecodeError."""
    return _ROWS.decode(rows)


def check_rows(message: Message) -> None:
    """Raises MessageError unless every value of the rows can be read, and there is one for each column."""
    try:
        rows = _VALUES.decode(message.rows)
    except (ValueError, RecursionError) as error:
        raise MessageError(f"its rows can't be read: {error}") from None
    if any(len(row) != len(message.columns) for row in rows):
        raise MessageError("its rows don't match its columns")


def slice_message(message: Message, rows: Sequence[msgspec.Raw], start: int, stop: int) -> Message:
    """A message of the tasks `start` to `stop` (offsets in this one), whose rows are `rows`."""
    return msgspec.structs.replace(
        message,
        first=message.first + start,
        count=stop - start,
        rows=msgspec.Raw(join_rows(rows[start:stop])),
        sent_at=round(time.time(), 3),
    )


def single(message: Message, rows: Sequence[msgspec.Raw], index: int) -> Message:
    """A message of the one task `index` of this message."""
    offset = index - message.first
    return slice_message(message, rows, offset, offset + 1)


def fit(message: Message, message_bytes: int) -> Message:
    """The message itself, or without its rows when a queue of this limit can't take it: whoever
    receives it reads them from the table's block."""
    if not message.has_rows or len(message.encode()) <= message_bytes:
        return message
    return msgspec.structs.replace(message, rows=NO_ROWS)


def unfold(message: Message, block: Block) -> Message:
    """The message with its rows, which it left in the block. Raises MessageError when they aren't there."""
    start = message.first - block.first
    if start < 0 or start + message.count > block.count:
        raise MessageError(f"block {block.number} of bag {block.bag!r} doesn't hold the message's tasks")
    if message.count == block.count:
        return msgspec.structs.replace(message, rows=msgspec.Raw(block.rows))
    try:
        rows = split_rows(block.rows)
    except (ValueError, RecursionError) as error:
        raise MessageError(f"block {block.number} of bag {block.bag!r} can't be read: {error}") from None
    rows = rows[start : start + message.count]
    return msgspec.structs.replace(message, rows=msgspec.Raw(join_rows(rows)))
