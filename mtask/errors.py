"""Every error that mtask raises on purpose.

    MtaskError                      exit code 1
    ├── UsageError                  2: the command or the call is wrong
    │   ├── InputError              2: a task file is wrong; names file, line and column
    │   ├── BagExistsError          2: the name belongs to another bag
    │   └── BagNotFoundError        2: there is no bag of this name
    ├── BackendError                3: a queue or table answered with something that trying again won't cure
    │   ├── UnavailableError        3: out of reach or too busy just now; trying again may help
    │   │   └── StorageFullError    2: there is no room left where it is stored
    │   ├── SendError               3: some messages of a batch were not sent
    │   └── UnusableError           2: the place that was named can't be used, by this user or at all
    │       └── SchemaError         2: stored by a newer mtask than this one
    ├── MessageError                1: a message that this version can't read
    │   └── NewerMessageError       1: a newer version can
    └── TaskFailedError             1: a future's task ended without success

Their texts are meant for the person at the terminal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mtask.model import Message, Result

__all__ = [
    "BackendError",
    "BagExistsError",
    "BagNotFoundError",
    "InputError",
    "MessageError",
    "MtaskError",
    "NewerMessageError",
    "SchemaError",
    "SendError",
    "StorageFullError",
    "TaskFailedError",
    "UnavailableError",
    "UnusableError",
    "UsageError",
]


class MtaskError(Exception):
    """Base of all errors below; its text is meant for the person at the terminal."""

    exit_code = 1


class UsageError(MtaskError):
    """The command, the call or a setting is wrong; nothing was sent."""

    exit_code = 2


class InputError(UsageError):
    """A task file is wrong; nothing was sent.

    `line` is 1-based and counts lines of the file (the header is line 1); `column` is a column's name.
    """

    def __init__(
        self, problem: str, *, source: str = "", line: int | None = None, column: str | None = None
    ) -> None:
        self.problem, self.source, self.line, self.column = problem, source, line, column
        place = [source] if source else []
        if line is not None:
            place.append(f"line {line}")
        if column is not None:
            place.append(f"column {column!r}")
        super().__init__(f"{', '.join(place)}: {problem}" if place else problem)


class BagExistsError(UsageError):
    """The name belongs to a bag with other tasks or another spec."""


class BagNotFoundError(UsageError):
    """There is no bag of this name in the table."""


class BackendError(MtaskError):
    """A queue or a table refused, for a reason that trying again won't cure."""

    exit_code = 3


class UnavailableError(BackendError):
    """A queue or a table is out of reach or too busy just now: the engine tries again with backoff."""


class StorageFullError(UnavailableError):
    """There is no room left where it is stored. A worker waits until there is; a command gives up."""

    exit_code = 2


class SendError(BackendError):
    """Some messages of a batch were not sent; the others were.

    `unsent` pairs each message that is not in the queue with the vendor's reason.
    """

    def __init__(self, unsent: Sequence[tuple[Message, str]]) -> None:
        self.unsent = list(unsent)
        reasons = sorted({reason for _, reason in self.unsent})
        super().__init__(f"{len(self.unsent)} messages were not sent: {'; '.join(reasons[:3])}")


class UnusableError(BackendError):
    """The place that was named can't be used: it can't be written, or holds something else."""

    exit_code = 2


class SchemaError(UnusableError):
    """The stored data was made by a newer version of mtask; upgrade this one."""


class MessageError(MtaskError):
    """A message body that this version can't read: not JSON, not a message, or of a newer version."""


class NewerMessageError(MessageError):
    """A message that says a newer mtask is needed to read it."""


class TaskFailedError(MtaskError):
    """A task that was waited for ended `failed` or `expired`."""

    result: Result
    """Its row."""
