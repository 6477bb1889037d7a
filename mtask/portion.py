"""Results as they come from a child, many at once and still encoded: nobody reads them before they are stored.

A line is the JSON of a `Result` without its first field, the bag, and without the brace before it: the
bag's name is known anyway, and what is stored so is shorter.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from mtask.model import Failure, Result

__all__ = ["Done", "Portion", "expanded", "line_of", "prefix_of", "results_of"]

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Result).decode
_PREFIX = b'{"bag":'
_DONE_ONLY = ("index", "state", "value")


def prefix_of(bag: str) -> bytes:
    """How the JSON of each Result of this bag begins.

    The bag is the first field of Result, and msgspec writes fields in their order.
    """
    return _PREFIX + _encode(bag) + b","


def line_of(result: Result) -> bytes:
    return _encode(result)[len(prefix_of(result.bag)) :]


class Done(msgspec.Struct, omit_defaults=True):
    """Encodes as a line, with a brace before it, quicker than a `Result`: of a task that is done."""

    index: int
    state: str
    id: str | None = None
    value: msgspec.Raw = msgspec.Raw(b"null")
    exit_code: int | None = None
    stdout: str = ""
    stderr: str = ""
    attempt: int = 1
    worker: str = ""
    host: str = ""
    queued_at: float | None = None
    started_at: float | None = None
    finished_at: float | None = None
    wall_s: float = 0.0
    cpu_s: float = 0.0
    peak_bytes: int = 0

    def failed(self, bag: str, error: Failure) -> Result:
        """The result of the attempt if that wasn't done, but failed."""
        fields = {name: getattr(self, name) for name in self.__struct_fields__ if name not in _DONE_ONLY}
        return Result.failed(bag, self.index, error, **fields)


class Portion(msgspec.Struct, frozen=True):
    """The results of consecutive tasks of one bag, all of them done."""

    bag: str
    first: int
    count: int
    lines: bytes
    """`count` of them, each with a newline behind it: JSON has none within."""

    def split(self) -> list[bytes]:
        """One line for each task."""
        lines = self.lines.split(b"\n")
        lines.pop()
        return lines

    def results(self) -> list[Result]:
        return results_of(self.bag, self.lines)


def results_of(bag: str, lines: bytes) -> list[Result]:
    """Raises msgspec.DecodeError."""
    prefix = prefix_of(bag)
    return [_decode(prefix + line) for line in lines.split(b"\n") if line]


def expanded(results: Iterable[Result | Portion]) -> Iterator[Result]:
    """One by one, for a table to which it makes no difference."""
    for each in results:
        if isinstance(each, Portion):
            yield from each.results()
        else:
            yield each
