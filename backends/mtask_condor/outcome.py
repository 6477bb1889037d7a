"""The file that a job brings back: what became of its message's tasks.

Lines, only ever appended, each a letter and JSON:

    R  a Result: the task's row
    A  a Result: a failed attempt that is followed by another
    S  a Letter: a message to be sent, which takes the place of those of its tasks
    D  a DeadMessage
    X  nothing: the worker was told to stop, and stopped in order

A last line without its end was being written when the worker died, and counts as none. The next start of the
job gets the file of the last one, if that one could still be brought back, and goes on behind it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from mtask.model import DeadMessage, Message, Result
from mtask.portion import Portion, prefix_of

__all__ = ["Letter", "Outcome", "Writer", "read"]

_encode = msgspec.json.Encoder().encode


class Letter(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A message that a worker wants to be sent."""

    message: Message
    due_at: float = 0.0
    """Not before (UTC)."""


class Outcome(msgspec.Struct):
    """What stands in a file."""

    rows: list[Result] = []
    attempts: list[Result] = []
    letters: list[Letter] = []
    dead: list[DeadMessage] = []
    clean_stops: int = 0

    def is_about(self, message: Message) -> bool:
        """Does all of it belong to this message's tasks?"""
        end = message.first + message.count
        results = (*self.rows, *self.attempts)
        letters = [letter.message for letter in self.letters]
        return all(each.bag == message.bag and message.first <= each.index < end for each in results) and all(
            (each.uid, each.generation) == (message.uid, message.generation)
            and message.first <= each.first
            and each.first + each.count <= end
            for each in letters
        )

    def left(self, message: Message) -> list[int]:
        """The message's tasks of which nothing is known yet."""
        if self.dead:
            return []
        settled = {row.index for row in self.rows}
        for letter in self.letters:
            settled.update(range(letter.message.first, letter.message.first + letter.message.count))
        return [
            index for index in range(message.first, message.first + message.count) if index not in settled
        ]


class Writer:
    """Appends, from any thread; what was written can be read by others when the method returns."""

    def __init__(self, path: Path) -> None:
        """Raises OSError, as all methods do."""
        self._cut_torn_line(path)
        self._file = path.open("ab")
        self._lock = threading.Lock()

    @staticmethod
    def _cut_torn_line(path: Path) -> None:
        content = path.read_bytes() if path.exists() else b""
        if content and not content.endswith(b"\n"):
            with path.open("r+b") as file:
                file.truncate(content.rfind(b"\n") + 1)

    def rows(self, results: Sequence[Result | Portion]) -> None:
        lines = []
        for each in results:
            if isinstance(each, Portion):
                prefix = prefix_of(each.bag)
                lines += [prefix + line for line in each.split()]
            else:
                lines.append(_encode(each))
        self._append(b"R", lines)

    def attempts(self, results: Iterable[Result]) -> None:
        self._append(b"A", map(_encode, results))

    def letters(self, letters: Iterable[Letter]) -> None:
        self._append(b"S", map(_encode, letters))

    def dead(self, messages: Iterable[DeadMessage]) -> None:
        self._append(b"D", map(_encode, messages))

    def stopped(self) -> None:
        self._append(b"X", [b""])

    def _append(self, letter: bytes, lines: Iterable[bytes]) -> None:
        with self._lock:
            self._file.write(b"".join(letter + line + b"\n" for line in lines))
            self._file.flush()

    def close(self) -> None:
        self._file.close()


def read(path: Path) -> Outcome:
    """Of a file that isn't there: nothing. Raises ValueError for one that this version can't read."""
    outcome = Outcome()
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return outcome
    lines.pop()  # what is behind the last end of a line
    for line in lines:
        letter, text = line[:1], line[1:]
        if letter == b"R":
            outcome.rows.append(_RESULT.decode(text))
        elif letter == b"A":
            outcome.attempts.append(_RESULT.decode(text))
        elif letter == b"S":
            outcome.letters.append(_LETTER.decode(text))
        elif letter == b"D":
            outcome.dead.append(_DEAD.decode(text))
        elif letter == b"X":
            outcome.clean_stops += 1
        else:
            raise ValueError(f"{path}: unknown line {line[:20]!r}")
    return outcome


_RESULT = msgspec.json.Decoder(Result)
_LETTER = msgspec.json.Decoder(Letter)
_DEAD = msgspec.json.Decoder(DeadMessage)
