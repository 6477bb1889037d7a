"""A page: the rows of 32 consecutive tasks, in one document. The one place that decides which row counts.

    body.s             a letter for each task: `.` no row, `d` done, `f` failed, `x` expired
    body.r<offset>     rows of tasks that are done, of which this one is the first: lines (`mtask.portion`), packed (`mtask_gcp.blobs`)
    body.f<offset>     the row of a task that failed or expired: `n` its attempt's number, `b` the line, packed
    done, failed, expired   how many there are; not there if none
    bad                true: some failed or expired

A page changes all at once, and only as long as nobody else has changed it since it was read (`last_update_time`, or
that it isn't there). So every page that anybody sees is whole: what it counts is what it holds, and whatever a
`kill -9` left out is not there at all. A `d` never changes again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mtask.model import State
from mtask_gcp.database import Snapshot
from mtask_gcp.documents import PAGE, Fields, Value, Write, create, integer, mapping, number_in, text, update

__all__ = ["DONE", "EMPTY", "NONE", "Change", "Failed", "Page", "failures", "letter_of", "read", "state_of"]

NONE, DONE = ".", "d"
EMPTY = NONE * PAGE
_LETTERS = {State.DONE: DONE, State.FAILED: "f", State.EXPIRED: "x"}
_STATES = {letter: state for state, letter in _LETTERS.items()}


def letter_of(state: State) -> str:
    return _LETTERS[state]


def state_of(letter: str) -> State | None:
    return _STATES.get(letter)


class Page(NamedTuple):
    """What is known of a page."""

    number: int
    states: str
    at: int | None
    """When it was last changed; None: it isn't there."""

    def task(self, offset: int) -> int:
        """The task's index."""
        return self.number * PAGE + offset

    def recorded(self) -> Iterator[int]:
        """The indexes of tasks with a row."""
        return (self.task(offset) for offset, letter in enumerate(self.states) if letter != NONE)


class Failed(NamedTuple):
    """The row of a task that failed or expired."""

    attempt: int
    line: Any
    """Packed."""


def read(there: Snapshot) -> Page:
    """From a document, of which `body.s` may do."""
    states = there.fields["body"].map_value.fields["s"].string_value
    return Page(number_in(there.id), states, there.changed_at)


def failures(there: Snapshot) -> dict[int, Failed]:
    """By offset."""
    found: dict[int, Failed] = {}
    for name, value in there.fields["body"].map_value.fields.items():
        if name[0] == "f":
            both = value.map_value.fields
            found[int(name[1:])] = Failed(both["n"].integer_value, both["b"])
    return found


def lines(there: Snapshot) -> Iterator[tuple[int, Any]]:
    """The packed lines, each with the offset of its first task."""
    for name, value in there.fields["body"].map_value.fields.items():
        if name[0] == "f":
            yield int(name[1:]), value.map_value.fields["b"]
        elif name[0] == "r":
            yield int(name[1:]), value


class Change:
    """What is to become of a page."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._states = list(page.states)
        self._set: dict[str, Value] = {}
        self._paths: set[str] = {"body.s"}

    @property
    def states(self) -> str:
        return "".join(self._states)

    def done(self, offsets: Sequence[int], lines: Value) -> None:
        """None of them may be done already."""
        for offset in offsets:
            if self._states[offset] != NONE:
                self.out(offset)
            self._states[offset] = DONE
        self._put(f"r{offsets[0]}", lines)

    def ended(self, offset: int, letter: str, attempt: int, line: Value) -> None:
        """Failed or expired; it may not be done."""
        self._states[offset] = letter
        self._put(f"f{offset}", mapping({"n": integer(attempt), "b": line}))

    def out(self, offset: int) -> None:
        """Take out a row that isn't done."""
        self._states[offset] = NONE
        self._set.pop(f"f{offset}", None)
        self._paths.add(f"body.f{offset}")

    def write(self, name: str, ttl: Fields) -> Write:
        """As one write of the document with this name."""
        counts = self._counts()
        fields: dict[str, Value] = {**counts, **ttl}
        fields["body"] = mapping({"s": text(self.states), **self._set})
        if self._page.at is None:
            return create(name, fields)
        paths = [*sorted(self._paths), "done", "failed", "expired", "bad"]
        return update(name, fields, paths, at=self._page.at)

    def _put(self, field: str, value: Value) -> None:
        self._set[field] = value
        self._paths.add(f"body.{field}")

    def _counts(self) -> Mapping[str, Value]:
        numbers = {
            state.value: count for letter, state in _STATES.items() if (count := self._states.count(letter))
        }
        counts = {name: integer(count) for name, count in numbers.items()}
        if numbers.keys() - {State.DONE.value}:
            counts["bad"] = Value(boolean_value=True)
        return counts
