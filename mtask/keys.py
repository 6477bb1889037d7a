"""Tasks of the same key: run once (`--key`), or one after the other (`--serial`)."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import Any

import msgspec

from mtask.model import Block
from mtask.values import to_json_able

__all__ = ["Chain", "Seen", "heads", "key_of"]

_encode = msgspec.json.Encoder(enc_hook=to_json_able, order="deterministic").encode


def key_of(value: Any) -> int | None:
    """A short stand-in for a value; None for an empty one, which is no key: such tasks have nothing in common.

    64 bits hardly ever agree by chance (once in 37 million bags of a million).
    """
    if value is None or value == "" or value != value:
        return None
    return int.from_bytes(hashlib.blake2b(_encode(value), digest_size=8).digest())


class Seen:
    """Remembers which keys there were."""

    def __init__(self) -> None:
        self._keys: set[int | None] = set()
        self.repeated = 0

    def new(self, values: Sequence[Any]) -> list[bool]:
        """Of each value, in order: is it the first of its kind?"""
        found = []
        for value in values:
            key = key_of(value)
            found.append(key is None or key not in self._keys)
            self._keys.add(key)
        self.repeated += len(found) - sum(found)
        return found


class Chain:
    """Which task comes after which: the next one with the same key."""

    def __init__(self) -> None:
        self.then: dict[int, int] = {}
        self._last: dict[int, int] = {}
        self._index = 0

    def add(self, values: Iterable[Any]) -> None:
        """The keys of the next tasks, in order."""
        for value in values:
            key = key_of(value)
            if key is not None:
                if key in self._last:
                    self.then[self._last[key]] = self._index
                self._last[key] = self._index
            self._index += 1


def heads(blocks: Iterable[Block], wanted: Container[int]) -> Iterator[Block]:
    """Of blocks with one task each, in order: those wanted (by index) before which none of their chain is.

    The others are sent by whoever ends the task before them.
    """
    behind: set[int] = set()
    for block in blocks:
        if block.first in wanted and block.number not in behind:
            yield block
        if block.then is not None and (block.first in wanted or block.number in behind):
            behind.add(block.then)
        behind.discard(block.number)
