"""The rescue file: which tasks are done. It is what a run that was killed goes on by.

    DONE id

Each record begins a line of its own, as pegasus-mpi-cluster(1) writes them, so that a record that was cut
short spoils none behind it. Here it also ends its line: a first line, which is a comment for pegasus-mpi-cluster, says so. Then
a last line without an end is a record that was cut short, as on a full disk, and `DONE t1` is not taken for
a task that was in truth t12.
"""

from __future__ import annotations

import os

from mtask.errors import MtaskError
from mtask.pipelines.dag import Dag, refuse
from mtask.pipelines.outputs import write_all

__all__ = ["Rescue", "read_rescue"]

_HEADER = "# mtask: a record ends with its line"


def read_rescue(path: str, dag: Dag) -> set[int]:
    """Places of the tasks that are done; none without a file.

    Raises InputError, which names the lines that can't be read or name no task of the DAG, and OSError.
    """
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            lines = file.read().split("\n")
    except FileNotFoundError:
        return set()
    if lines[0] == _HEADER and lines[-1]:
        lines.pop()
    done: set[int] = set()
    problems: list[tuple[int, str]] = []
    for at, line in enumerate(lines, 1):
        words = line.replace("\t", " ").rstrip("\r").split(" ")
        words = [word for word in words if word]
        if not words or words[0].startswith("#"):
            continue
        if words[0] != "DONE" or len(words) != 2:
            problems.append((at, f"must be DONE and a task, not {line[:60]!r}"))
        elif words[1] not in dag.index:
            problems.append(
                (at, f"there is no task {words[1]!r} in the DAG; is this another DAG's rescue file?")
            )
        else:
            done.add(dag.index[words[1]])
    refuse(path, problems)
    return done


class Rescue:
    """Written anew when the run begins, then appended to; each record is there before what waits for its task starts."""

    def __init__(self, path: str, dag: Dag, done: set[int]) -> None:
        """Raises OSError. The file of before is there, whole, until the new one is."""
        self._dag, self._path = dag, path
        text = f"{_HEADER}\n" + "".join(_record(dag, at) for at in sorted(done))
        # A link stays a link, and a name like /dev/null a device.
        target = os.path.realpath(path)
        if os.path.exists(target) and not os.path.isfile(target):
            self._fd = os.open(target, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            return
        made = f"{target}.{os.getpid()}.new"
        try:
            self._fd = os.open(made, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        except OSError as error:
            error.filename = path
            raise
        try:
            write_all(self._fd, os.fsencode(text))
            os.fsync(self._fd)
            os.replace(made, target)
        except OSError:
            os.unlink(made)
            raise

    def add(self, at: int) -> None:
        """Raises MtaskError when it can't be written; nothing of it is left then."""
        data = os.fsencode(_record(self._dag, at))
        size = os.fstat(self._fd).st_size
        try:
            write_all(self._fd, data)
        except OSError as error:
            if size:
                os.ftruncate(self._fd, size)
            raise MtaskError(f"can't write to the rescue file {self._path}: {error.strerror}") from error

    def close(self) -> None:
        os.close(self._fd)


def _record(dag: Dag, at: int) -> str:
    return f"\nDONE {dag.tasks[at].name}\n"
