"""The lines by which Pegasus learns what became of tasks.

pegasus-exitcode fails a job whose standard output has `cluster-task` records and no `cluster-summary`, or one with a
stat that isn't ok, with failed tasks, or with tasks submitted and none succeeded. It finds the record's end
by the next `]`, and texts by their quotes: neither may be in one.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

__all__ = ["Quoted", "application_of", "date_text", "record"]

_UNSAFE = {ord('"'): "'", ord("]"): ")", ord("["): "("} | dict.fromkeys(range(32), " ")

_KICKSTART_WITH_VALUE = frozenset("ioelnNRBLTIwWSsKk")
"""Options of pegasus-kickstart that have a value, of its manual page."""


class Quoted(str):
    """A text that stands in quotes."""

    __slots__ = ()


def record(kind: str, **fields: object) -> str:
    """`[kind name=value, …]` with its line end; times in seconds have milliseconds."""
    return f"[{kind} {', '.join(f'{name}={_text(value)}' for name, value in fields.items())}]\n"


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    text = str(value).translate(_UNSAFE)
    return f'"{text}"' if isinstance(value, Quoted) else text


def date_text(at: float) -> Quoted:
    """ISO 8601 with milliseconds and the offset of the local time."""
    return Quoted(datetime.fromtimestamp(at).astimezone().isoformat(timespec="milliseconds"))


def application_of(argv: Sequence[str]) -> Quoted:
    """The program that pegasus-kickstart starts, or what there is instead of it."""
    if not argv[0].endswith("kickstart"):
        return Quoted(argv[0])
    at = 1
    while at < len(argv) and argv[at].startswith("-"):
        takes_next = len(argv[at]) == 2 and argv[at][1] in _KICKSTART_WITH_VALUE
        at += 2 if takes_next else 1
    return Quoted(argv[at] if at < len(argv) else argv[0])
