"""Bags in a table that knows keys and values: one part that never changes, and a small one that does."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import msgspec

from mtask.errors import SchemaError
from mtask.model import Bag, BagState
from mtask.table import Skipped

__all__ = [
    "TRIES",
    "bag_of",
    "changed",
    "listed",
    "made",
    "name_in",
    "now_of",
    "pause",
    "tries",
    "unreadable",
]

T = TypeVar("T")
TRIES = 60
"""Of a change of what others change at the same time; each time one of them gets through."""
PAUSE_S = 0.02
_encode = msgspec.json.encode
_decode_bag = msgspec.json.Decoder(Bag).decode


class _Now(msgspec.Struct, frozen=True):
    """What changes in a bag."""

    state: BagState
    generation: int
    total: int
    sent: int
    digest: str


class _Named(msgspec.Struct):
    name: str = "?"


_decode_now = msgspec.json.Decoder(_Now).decode


def made(bag: Bag) -> bytes:
    """The part that never changes."""
    return _encode(bag)


def now_of(bag: Bag) -> bytes:
    """The part that does."""
    return _encode(_Now(bag.state, bag.generation, bag.total, bag.sent, bag.digest))


def bag_of(body: bytes, now: bytes | str | None, name: str) -> Bag:
    """The bag of both parts, `body` that of `made`. `name`: for people. Raises SchemaError."""
    try:
        bag, parts = _decode_bag(body), _decode_now(now or b"")
    except msgspec.DecodeError as error:
        raise unreadable(name, error) from None
    return msgspec.structs.replace(bag, **msgspec.structs.asdict(parts))


def listed(found: Iterable[T], read: Callable[[T], Bag], skipped: Skipped | None) -> Iterator[Bag]:
    """What `Table.bags` does with what it found; `read` raises SchemaError for a bag that can't be read."""
    for each in found:
        try:
            yield read(each)
        except SchemaError as error:
            if skipped is None:
                raise
            skipped(error)


def unreadable(name: str, error: Exception) -> SchemaError:
    """Of a bag's name or, where only that is at hand, of the body."""
    return SchemaError(f"the bag {name!r} can't be read, a newer mtask may have made it: {error}")


def name_in(body: bytes) -> str:
    """Of a body that may not be a bag's."""
    try:
        return msgspec.json.decode(body, type=_Named).name
    except msgspec.DecodeError:
        return "?"


def changed(
    bag: Bag,
    *,
    state: BagState | None,
    total: int | None,
    sent: int | None,
    digest: str | None,
    generation: int | None,
) -> bytes | None:
    """`now_of` it after this `Table.update_bag`; None: nothing would change."""
    if bag.state is BagState.CANCELLED and state is BagState.SEALED:
        state = None
    now = now_of(
        msgspec.structs.replace(
            bag,
            state=state or bag.state,
            generation=max(bag.generation, generation or 0),
            total=max(bag.total, total or 0),
            sent=max(bag.sent, sent or 0),
            digest=bag.digest if digest is None else digest,
        )
    )
    return None if now == now_of(bag) else now


def tries() -> Iterator[None]:
    """One for each try of a change that others make, too, with pauses between."""
    for number in range(TRIES):
        yield
        pause(number)


def pause(number: int) -> None:
    """After so many tries, of those who all want to write the same."""
    time.sleep(random.uniform(0, PAUSE_S * (number + 1)))
