"""When a message is cut, and into what: as mtask does it, and as it might."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from mtask.worker.held import Job

if TYPE_CHECKING:
    from mtask.worker.held import Held

__all__ = ["SPLITS", "Piece", "Split"]

Piece = tuple[int, int]
"""Tasks from the first to before the second."""
Split = Callable[[float, int, int, float], list[Piece] | None]
"""Called with how long the message was held (seconds), how many tasks were begun, how many were not, and
`split_after_s`; returns pieces as offsets into the message, or None to ask again after `split_after_s`."""


class _Stub:
    """What `Job.pieces` asks of a held message."""

    __slots__ = ("age",)

    def __init__(self, age: float) -> None:
        self.age = age

    def age_s(self) -> float:
        return self.age

    def part(self, start: int, stop: int) -> Piece:
        return start, stop


def as_it_is(age_s: float, begun: int, left: int, split_after_s: float) -> list[Piece] | None:
    """The code of mtask: pieces of half of `split_after_s` at the pace seen, single ones where none was."""
    job = Job(cast("Held", _Stub(age_s)), begun, begun + left)
    return cast("list[Any]", job.pieces(split_after_s / 2))


def by_share(total: int, slots: int, *, share: float = 1 / 20, longest_s: float = 60.0) -> Split:
    """Pieces of a twentieth of what each slot will have to do, of `longest_s` at most; a message with less than
    one and a half pieces left stays where it is.

    Of the bag it needs the number of tasks, of the fleet that of the slots (heartbeats tell).
    """

    def split(age_s: float, begun: int, left: int, split_after_s: float) -> list[Piece] | None:
        if begun <= 1:
            return as_it_is(age_s, begun, left, split_after_s)  # no pace was seen
        task_s = age_s / begun
        piece_s = min(longest_s, max(split_after_s / 2, total * task_s / slots * share))
        if left * task_s < 1.5 * piece_s:
            return None
        size = max(1, int(piece_s / task_s))
        return [(at, min(at + size, begun + left)) for at in range(begun, begun + left, size)]

    return split


SPLITS: dict[str, Callable[[int, int], Split]] = {
    "now": lambda total, slots: as_it_is,  # noqa: ARG005
    "share": by_share,
}
