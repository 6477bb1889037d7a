"""The log of an open bag (`mtask.append`): where its next block goes, who is about to write it, and how far each submit is.

Small documents in the table, which change one at a time (`Table.swap`).
"""

from __future__ import annotations

import hashlib
from typing import TypeVar

import msgspec

from mtask.model import Bag, Block
from mtask.table import Table

__all__ = ["Claim", "Log", "Progress", "advance", "digest_of", "name_of", "owner_of", "read", "swap"]


class Claim(msgspec.Struct, frozen=True, array_like=True):
    """What the next block will be, if this one is first."""

    submit: str
    digest: str
    """Of the submit's rows."""
    through: int
    """So many of its rows are dealt with then."""
    whole: bool
    """Are those all?"""
    block: str
    """The block's digest."""


class Log(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where the next block goes."""

    block: int = 0
    first: int = 0
    claims: tuple[Claim, ...] = ()
    sealed: bool = False
    resending: bool = False
    """Is a `retry` under way, or was it killed?"""


class Progress(msgspec.Struct, frozen=True, omit_defaults=True):
    """How far a submit has come."""

    digest: str = ""
    through: int = 0
    whole: bool = False


T = TypeVar("T", Log, Progress)


def owner_of(log: Log, block: Block) -> Claim | None:
    """Whose claim the block that is there fits; None: nobody's."""
    digest = digest_of(block)
    return next((claim for claim in log.claims if claim.block == digest), None)


def advance(table: Table, bag: Bag, submit: str, progress: Progress) -> None:
    """Note how far this submit has come, unless it is further."""
    key = name_of(bag, submit)
    while True:
        now, version = read(table, key, Progress)
        if now.whole or (now.through >= progress.through and not progress.whole):
            return
        if swap(table, key, progress, version):
            return


def name_of(bag: Bag, submit: str = "") -> str:
    """Of a document in the table."""
    return f"open/{bag.uid}/{submit}" if submit else f"open/{bag.uid}"


def read(table: Table, key: str, kind: type[T]) -> tuple[T, int]:
    """A document as it is now, and its version."""
    raw, version = table.shared(key)
    return (msgspec.json.decode(raw, type=kind) if raw else kind()), version


def swap(table: Table, key: str, value: Log | Progress, version: int) -> bool:
    """False: somebody else has changed it since this version."""
    return table.swap(key, msgspec.json.encode(value), version)


def digest_of(block: Block) -> str:
    """Of its lane and its rows."""
    return hashlib.blake2b(block.lane.encode() + block.rows, digest_size=12).hexdigest()
