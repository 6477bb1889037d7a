"""Before a DAG is run on this host: it is read, nobody else runs it, and each of its tasks can run here."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

from mtask.errors import InputError, UsageError
from mtask.pipelines.dag import Dag, refuse
from mtask.pipelines.schedule import Room

__all__ = ["check_files", "check_fit", "read_locked"]

OWN_FILES = 40
"""So many files it may have open without any task."""


@contextmanager
def read_locked(path: str, *, lock: bool) -> Iterator[str]:
    """The DAG's text; within, no other run of it can begin. Raises InputError."""
    try:
        fd = os.open(path, (os.O_RDWR if lock else os.O_RDONLY) | os.O_CLOEXEC)
    except OSError as error:
        hint = "; --nolock does without writing to it" if lock and os.access(path, os.R_OK) else ""
        raise InputError(f"can't open the DAG: {error.strerror}{hint}", source=path) from error
    # The lock is of the kind that pegasus-mpi-cluster takes, and ends when the process closes the file, by whatever
    # descriptor: it is read by this one.
    with open(fd, "rb") as file:
        if lock:
            try:
                fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                busy = (
                    "another process runs this DAG just now; one is enough for a host, mpiexec is not needed"
                )
                said = f"can't lock the DAG: {error.strerror}; --nolock does without"
                taken = error.errno in (errno.EACCES, errno.EAGAIN)
                raise InputError(busy if taken else said, source=path) from error
        try:
            data = file.read()
        except OSError as error:
            raise InputError(f"can't read the DAG: {error.strerror}", source=path) from error
        yield os.fsdecode(data)


def check_fit(dag: Dag, room: Room, source: str) -> None:
    """Raises InputError for tasks that the host can't run at all."""
    refuse(
        source,
        [
            (
                task.line,
                f"task {task.name!r} needs {task.cpus} CPUs and {task.memory_mb:,} MB, the host has {room.cpus} CPUs and "
                f"{room.memory_mb:,} MB (--host-cpus, --host-memory)",
            )
            for task in dag.tasks
            if not room.holds(task.cpus, task.memory_mb)
        ],
    )


def check_files(dag: Dag, room: Room) -> None:
    """Raises UsageError where tasks at a time may need more files than this process may open."""
    needed = OWN_FILES + room.slots * (3 + max((len(task.pipes) for task in dag.tasks), default=0))
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if needed > allowed != resource.RLIM_INFINITY:
        raise UsageError(
            f"{room.slots} tasks at a time need up to {needed} open files, and `ulimit -n` is {allowed}: raise it, or say a "
            "smaller -j"
        )
