"""A page: which of 64 tasks have a row, and in which item it is. The one place that decides what counts.

    d<offset>   the token of the item with the task's `done` row: set once, by the first
    f<offset>   `f` or `x` (failed, expired) and the token of the item with that row: set by the last

A task has the `done` row if there is one, else the other one if there is that. So one unconditional update,
`SET d3 = if_not_exists(d3, :token)`, keeps promise 1, whoever else writes at the same moment and however often
a request is sent again. The rows themselves are written before, each to an item of its own that nobody ever
overwrites: a crash between leaves an item that no page names, which is as good as nothing.

A page is smaller than 1 KB, so an update takes one write unit, and counting reads 64 tasks a KB.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from mtask.model import State
from mtask.paged import Tally
from mtask_aws import keys
from mtask_aws.dynamo import Item
from mtask_aws.keys import PAGE

__all__ = ["Change", "Frontier", "Page", "read", "tally", "without"]

_LETTERS = {State.FAILED: "f", State.EXPIRED: "x"}
_STATES = {letter: state for state, letter in _LETTERS.items()}

MOST_OPEN = 100
"""Pages that a count reads one by one; of one BatchGetItem."""
OPEN_SHARE = 10
"""For one of them so many complete ones are no longer read: one by one a page costs 5 times as much."""


class Page(NamedTuple):
    """What a page says, by offset within it."""

    number: int
    done: dict[int, str]
    """The tokens of the items with these rows."""
    ended: dict[int, tuple[State, str]]
    """Those that failed or expired, and have no `done` row: state and token."""

    def task(self, offset: int) -> int:
        """The task's index."""
        return self.number * PAGE + offset

    def recorded(self) -> Iterator[int]:
        """The indexes of tasks with a row."""
        yield from map(self.task, self.done)
        yield from map(self.task, self.ended)


def read(item: Item) -> Page:
    done: dict[int, str] = {}
    ended: dict[int, tuple[State, str]] = {}
    for name, value in item.items():
        if name[0] == "d":
            done[int(name[1:])] = value["S"]
        elif name[0] == "f":
            text = value["S"]
            ended[int(name[1:])] = _STATES[text[0]], text[1:]
    for offset in done.keys() & ended.keys():
        del ended[offset]
    return Page(int(item["sk"]["S"][1:], 16), done, ended)


class Change(NamedTuple):
    """What an update sets: tokens by offset."""

    done: Mapping[int, str]
    ended: Mapping[int, tuple[State, str]]

    def expression(self, ttl: int | None) -> tuple[str, dict[str, str], Item]:
        """UpdateExpression, names, values. At most 64 offsets: 2 KB of 4, and 64 functions of 300."""
        places: dict[str, str] = {}
        sets = []
        for offset, token in self.done.items():
            sets.append(f"d{offset} = if_not_exists(d{offset}, {_place(places, token)})")
        for offset, (state, token) in self.ended.items():
            sets.append(f"f{offset} = {_place(places, _LETTERS[state] + token)}")
        values: Item = {place: {"S": text} for text, place in places.items()}
        if ttl is not None:
            sets.append("#ttl = :ttl")
            values[":ttl"] = {"N": str(ttl)}
        expression = f"SET {', '.join(sets)}"
        if self.done:
            expression += f" REMOVE {', '.join(f'f{offset}' for offset in self.done)}"
        return expression, {} if ttl is None else {"#ttl": "ttl"}, values


def without(ended: Mapping[int, tuple[State, str]]) -> tuple[str, str, Item]:
    """UpdateExpression, condition and values that take these out, if they are still there as they are here."""
    places: dict[str, str] = {}
    conditions = [
        f"f{offset} = {_place(places, _LETTERS[state] + token)}" for offset, (state, token) in ended.items()
    ]
    removal = f"REMOVE {', '.join(f'f{offset}' for offset in ended)}"
    return removal, " AND ".join(conditions), {place: {"S": text} for text, place in places.items()}


def _place(places: dict[str, str], text: str) -> str:
    return places.setdefault(text, f":{len(places)}")


# -- counting -------------------------------------------------------------------------------------------


def tally(item: Item) -> Tally:
    """The same as of `read(item)`, quicker."""
    done = failed = expired = 0
    for name, value in item.items():
        if name[0] == "d":
            done += 1
        elif name[0] == "f" and f"d{name[1:]}" not in item:
            if value["S"][0] == "f":
                failed += 1
            else:
                expired += 1
    return Tally(done, failed, expired)


class Frontier:
    """What a reader of counts remembers of one shard, so that it needn't read it all each time.

    A page all of whose tasks are done never changes again. Of the pages before `next`, all are complete but
    those in `open`, which are read one by one.
    """

    def __init__(self, shard: int) -> None:
        self.shard = shard
        self.next = keys.next_page(shard, -1)
        self.complete = 0
        self.open: set[int] = set()

    def count(self, opened: Iterable[Item], behind: Iterable[Item]) -> Tally:
        """Take in what was read now: the open pages, and all from `next` on, in order."""
        total = Tally()
        for item in opened:
            number, part = _number(item), tally(item)
            if part.done == PAGE:
                self.open.discard(number)
                self.complete += 1
            else:
                total = total.plus(part)
        for item in behind:
            number, part = _number(item), tally(item)
            complete = part.done == PAGE
            if self._advance_to(number, complete=complete):
                if complete:
                    self.complete += 1
                    continue
                self.open.add(number)
            total = total.plus(part)
        return total.plus(Tally(done=self.complete * PAGE))

    def _advance_to(self, number: int, *, complete: bool) -> bool:
        """Put this page behind the frontier, too, if that doesn't leave too many open ones there."""
        missed: list[int] = []
        spare = min(MOST_OPEN, self.complete // OPEN_SHARE) - len(self.open) - (not complete)
        page = self.next
        while page != number:
            if len(missed) >= spare:
                return False
            missed.append(page)
            page = keys.next_page(self.shard, page)
        if spare < 0:
            return False
        self.open.update(missed)
        self.next = keys.next_page(self.shard, number)
        return True


def _number(item: Item) -> int:
    return int(item["sk"]["S"][1:], 16)
