"""What the tasks of a function's process print, whatever they do to their standard streams."""

from __future__ import annotations

import fcntl
import io
import os
import sys

from mtask.worker.output import size_of, take_tail

__all__ = ["Printed"]


class Printed:
    """The files behind descriptors 1 and 2, which the process was started with."""

    def __init__(self) -> None:
        # Whatever a task does to the descriptors 1 and 2, these stay.
        self.outputs = tuple(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3) for fd in (1, 2))
        for number in (1, 2):
            _open_stream(number)

    def tails(self, tail_bytes: int) -> tuple[str, str]:
        """Of what was printed since the last time, on standard output and error."""
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except Exception:
            self.mend(broken=True)
        stdout, stderr = self.outputs
        return (
            take_tail(stdout, tail_bytes) if size_of(stdout) else "",
            take_tail(stderr, tail_bytes) if size_of(stderr) else "",
        )

    def mend(self, *, broken: bool = False) -> None:
        """If a task has closed the standard output or error, or its stream, open it again."""
        for number in (1, 2):
            try:
                os.fstat(number)
                if not broken:
                    continue
            except OSError:
                pass
            os.dup2(self.outputs[number - 1], number)
            _open_stream(number)


def _open_stream(number: int) -> None:
    # Line by line: a crash then loses no line, and lines of subprocesses come in their order.
    file = open(number, "wb", closefd=False)
    stream = io.TextIOWrapper(file, encoding="utf-8", errors="replace", line_buffering=True)
    setattr(sys, ("stdout", "stderr")[number - 1], stream)
