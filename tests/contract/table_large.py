"""For tables that put aside, in a bucket, what is too big for them: it comes back as it was."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from mtask.model import Bag, Block, DeadMessage, Result, State
from mtask.table import Table
from mtask.testing.samples import a_bag, a_block, a_done, a_failed, a_portion, an_expired

__all__ = ["OBJECTS", "Large", "read_large", "write_large"]

OBJECTS = 8
"""As many things are too big."""


class Large(NamedTuple):
    """What was written."""

    bag: Bag
    blocks: list[Block]
    rows: list[Result]
    dead: DeadMessage
    attempt: Result


def write_large(table: Table, big: str, name: str) -> Large:
    """Both are too big; `name` for a bag's own part."""
    bag = a_bag(spec=msgspec.structs.replace(a_bag().spec, target=(f"m:{name}",)), total=9)
    rows = [
        a_done(0, big),
        a_failed(1, big),
        an_expired(2),
        a_done(3, stdout=big),
        a_done(4),
        a_done(70, big),
    ]
    blocks = [a_block(0, values=[big, 1]), a_block(1)]
    dead = DeadMessage(body=big.encode(), reason="too long", at=1.5)
    table.create_bag(bag)
    table.put_blocks(blocks)
    table.record([a_portion(rows[3:5]), *rows[:3], rows[5]])
    table.keep_attempts([a_failed(5, big)])
    table.set_aside([dead])
    return Large(bag, blocks, rows, dead, a_failed(5, big))


def read_large(other: Table, large: Large) -> None:
    """By a client that didn't write it."""
    rows = large.rows
    assert other.bag("bag") == large.bag
    assert list(other.blocks("bag")) == large.blocks
    assert list(other.results("bag")) == rows
    assert list(other.results("bag", states=[State.FAILED])) == [rows[1]]
    assert list(other.results("bag", indexes=[0, 4])) == [rows[0], rows[4]]
    assert other.retract("bag", [1]) == {1}
    assert list(other.attempts("bag")) == [rows[1], large.attempt]
    assert list(other.dead()) == [large.dead]
    assert other.counts("bag").ended == 5
