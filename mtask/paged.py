"""Rows before they are written by a table that keeps those of neighbouring tasks, of a page, together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from mtask.model import Result, State
from mtask.portion import Portion, line_of

__all__ = ["Gathered", "Row", "Rows", "Tally", "gathered", "groups"]


class Row(NamedTuple):
    """A row before it is written."""

    state: State
    attempt: int
    line: bytes
    """See `mtask.portion`."""


Rows = dict[int, Row]
"""By offset within a page."""
Gathered = dict[int, Rows]
"""By page."""


class Tally(NamedTuple):
    """How many tasks ended how."""

    done: int = 0
    failed: int = 0
    expired: int = 0

    def plus(self, other: Tally) -> Tally:
        return Tally(self.done + other.done, self.failed + other.failed, self.expired + other.expired)


def gathered(
    results: Sequence[Result | Portion], page: int, checked: Callable[[int], int]
) -> dict[str, Gathered]:
    """By bag; of the rows of one task in one call, the one that would be left by one call after the other.

    `page`: tasks of a page; `checked`: gives back the index of a task, or raises what there is to say against it.
    """
    found: dict[str, Gathered] = {}
    for each in results:
        pages = found.setdefault(each.bag, {})
        if isinstance(each, Portion):
            checked(each.first + each.count - 1)
            for index, line in enumerate(each.split(), checked(each.first)):
                _keep(pages.setdefault(index // page, {}), index % page, Row(State.DONE, 0, line))
        else:
            number, offset = divmod(checked(each.index), page)
            _keep(pages.setdefault(number, {}), offset, Row(each.state, each.attempt, line_of(each)))
    return found


def _keep(rows: Rows, offset: int, row: Row) -> None:
    before = rows.get(offset)
    if before is None or before.state is not State.DONE:
        rows[offset] = row


def groups(rows: Mapping[int, Row], most_bytes: int) -> Iterator[dict[int, bytes]]:
    """The lines of done rows by offset, in portions of at most that many bytes each; a longer line is alone."""
    group: dict[int, bytes] = {}
    size = 0
    for offset in sorted(rows):
        if rows[offset].state is not State.DONE:
            continue
        line = rows[offset].line
        if group and size + len(line) > most_bytes:
            yield group
            group, size = {}, 0
        group[offset] = line
        size += len(line) + 1
    if group:
        yield group
