"""Results as they come: `bag.follow()` and `mtask results -f`.

The table is asked how many rows there are, which is cheap, and for rows only when there are more than before. Of those
that are there already, few are read again: from the first task on that hasn't ended, or, when not many are left, just those.
"""

from __future__ import annotations

import csv
import time
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import islice
from typing import IO, TYPE_CHECKING, Any

import msgspec

from mtask.export import Rows, csv_cell
from mtask.model import Block, Result, State

if TYPE_CHECKING:
    from mtask.bag import BagHandle
    from mtask.table import Table

__all__ = ["follow", "print_followed"]

PAUSE_S = (0.05, 1.0)
PAUSE_GROWTH = 1.5
SHARE = 4
"""Reading takes this part of the time at most: the pause after it is so many times as long."""
FEW = 1000
"""So many tasks are asked for by their numbers."""
MOST_BLOCKS = 64

_VALUES = msgspec.json.Decoder(list[list[Any]])


class _Given:
    """Which tasks have been given, by index."""

    def __init__(self) -> None:
        self._given = bytearray()
        self._first = 0
        """The first that wasn't."""
        self.count = 0
        self.failed: dict[int, float | None] = {}
        """When those ended, by which their rows are told from those of a later attempt."""

    def add(self, result: Result) -> bool:
        """False: it was given before."""
        index = result.index
        if index >= len(self._given):
            self._given.extend(bytes(index + 1 - len(self._given)))
        if self._given[index]:
            return False
        self._given[index] = 1
        self.count += 1
        if result.state is not State.DONE:
            self.failed[index] = result.finished_at
        return True

    def take_back(self, indexes: Collection[int]) -> None:
        """These have no row any more, or another one."""
        for index in indexes:
            self._given[index] = 0
            self._first = min(self._first, index)
            del self.failed[index]
        self.count -= len(indexes)

    def missing(self, total: int) -> tuple[int, list[int] | None]:
        """The first that is missing, and all of them if they are few."""
        at = self._given.find(0, self._first)
        self._first = len(self._given) if at < 0 else at
        missing = list(islice(self._missing(total), FEW + 1))
        return self._first, missing if len(missing) <= FEW else None

    def _missing(self, total: int) -> Iterator[int]:
        at = self._given.find(0, self._first)
        while at >= 0:
            yield at
            at = self._given.find(0, at + 1)
        yield from range(len(self._given), total)


def follow(
    bag: BagHandle, states: Collection[State] | None, collect: Callable[[], object]
) -> Iterator[Result]:
    """The row of each task once, soon after it ended, until the bag is finished; see `BagHandle.follow`."""
    table, given = bag.table, _Given()
    wanted = tuple(State) if states is None else tuple(states)
    pause_s = PAUSE_S[0]
    while True:
        collect()
        over = bag.finished()  # asked first: what ends after this is no longer missed
        counts = bag.counts()
        there, began_s, before = (
            sum(getattr(counts, state) for state in wanted),
            time.monotonic(),
            given.count,
        )
        failed = sum(getattr(counts, state) for state in wanted if state is not State.DONE)
        if (
            failed < len(given.failed) or over
        ):  # a retry takes the rows of failed tasks out, and they come again
            given.take_back(_sent_again(table, bag.name, given.failed))
        if there > given.count or over:
            first, missing = given.missing(counts.total)
            if missing is None:
                rows = table.results(bag.name, states=states, after=first - 1)
            else:
                rows = table.results(bag.name, states=states, indexes=missing)
            yield from (row for row in rows if given.add(row))
        if over:
            return
        took_s = time.monotonic() - began_s
        pause_s = PAUSE_S[0] if given.count > before else min(PAUSE_GROWTH * pause_s, PAUSE_S[1])
        time.sleep(max(pause_s, SHARE * took_s))


def _sent_again(table: Table, bag: str, failed: Mapping[int, float | None]) -> list[int]:
    """Of failed tasks (index → when it ended), those that have no longer that row."""
    left, indexes = dict(failed), sorted(failed)
    for start in range(0, len(indexes), FEW):
        for row in table.results(bag, indexes=indexes[start : start + FEW]):
            if row.state is not State.DONE and failed[row.index] == row.finished_at:
                del left[row.index]
    return list(left)


class _Parameters:
    """Of tasks in any order; only the blocks used last are kept."""

    def __init__(self, bag: BagHandle) -> None:
        self._bag = bag
        self._firsts: list[int] = []
        """Of all blocks, by their numbers."""
        self._kept: dict[int, tuple[int, list[list[Any]]]] = {}
        self._end = 0

    def of(self, index: int) -> list[Any]:
        if index >= self._end:
            for block in self._bag.table.blocks(self._bag.name, first=len(self._firsts)):
                self._firsts.append(block.first)
                self._end = block.first + block.count
                if index < self._end:
                    self._keep(block)
                    break
        number = bisect_right(self._firsts, index) - 1
        if number not in self._kept:
            self._keep(self._bag.table.block(self._bag.name, number))
        first, rows = self._kept[number]
        return rows[index - first]

    def _keep(self, block: Block) -> None:
        if len(self._kept) == MOST_BLOCKS:
            del self._kept[next(iter(self._kept))]
        self._kept[block.number] = block.first, _VALUES.decode(block.rows)


class FollowedRows(Rows):
    """Joined rows as they come. What was returned is in one column, `value`: nobody knows the keys to come."""

    def __iter__(self) -> Iterator[list[Any]]:
        parameters = _Parameters(self._bag)
        for result in self._results():
            yield self._joined(result, parameters.of(result.index))

    def _results(self) -> Iterator[Result]:
        return islice(self._bag.follow(states=self._states), self._limit)

    def _value_keys(self) -> tuple[str, ...]:
        return ()


def print_followed(rows: FollowedRows, file: IO[str], *, as_json: bool) -> None:
    """Each row in a line, as soon as it is there."""
    writer = csv.writer(file, lineterminator="\n")
    if not as_json:
        writer.writerow(rows.columns)
        file.flush()
    for row in rows:
        if as_json:
            file.write(msgspec.json.encode(dict(zip(rows.columns, row, strict=True))).decode() + "\n")
        else:
            writer.writerow([csv_cell(value) for value in row])
        file.flush()
