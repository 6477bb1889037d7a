"""What a supervisor and its child say to each other: frames on pipes, and a cell of shared memory.

A frame is a header (`HEADER`: length of the payload, kind, job, offset) and a payload. To the child:

    BAG     payload: JSON {uid, spec}; before the first job of that bag
    SHARE   payload: JSON {variables, cores}; what the commands to come find of the machine
    JOB     payload: a message's body; run its tasks from `offset` on
    RESUME  offset: the barrier's epoch; jobs before it in the pipe are void
    ANSWER  to the SUBMIT with this offset; payload: see `mtask.worker.submits`

To the supervisor:

    RESULTS  payload: lines (see `mtask.portion`) of the results of the tasks just before `offset`; one with an
             error of the type `STOPPED` is of a command that ended because it was told to
    DONE     the same; and all of them are done
    ENDED    the child is through with the job: it ran no task from `offset` on
    BAD      payload: why the job's rows can't be read
    SUBMIT   the task that runs submits tasks, and waits; offset: which SUBMIT of this child it is

The cell tells the supervisor without a message which task runs and since when, and holds what was not sent yet: complete
frames, then lines of the job that runs. So nothing that was done is lost when the child dies. And it tells the
child to stop before the next task: the supervisor raises the barrier's epoch.
"""

from __future__ import annotations

import mmap
import os
import struct
from typing import Final

__all__ = [
    "ANSWER",
    "BAD",
    "BAG",
    "DONE",
    "ENDED",
    "HEADER",
    "JOB",
    "RESULTS",
    "RESUME",
    "SHARE",
    "STOPPED",
    "SUBMIT",
    "Cell",
    "Frames",
    "frame",
]

BAG, JOB, RESUME, RESULTS, DONE, ENDED, BAD, SUBMIT, ANSWER, SHARE = range(10)
STOPPED: Final = "stopped"
HEADER: Final = struct.Struct("<IIII")


def frame(kind: int, job: int, offset: int, payload: bytes | memoryview = b"") -> bytes:
    return HEADER.pack(len(payload), kind, job, offset) + payload


class Frames:
    """Cuts a stream of bytes into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, int, int, bytes]]:
        """Add what was read; returns the complete frames: (kind, job, offset, payload)."""
        buffer = self._buffer
        buffer += data
        frames, at = [], 0
        while len(buffer) - at >= HEADER.size:
            length, kind, job, offset = HEADER.unpack_from(buffer, at)
            end = at + HEADER.size + length
            if len(buffer) < end:
                break
            frames.append((kind, job, offset, bytes(memoryview(buffer)[at + HEADER.size : end])))
            at = end
        del buffer[:at]
        return frames


class Cell:
    """Memory that a supervisor shares with one child: twelve 64-bit words, then a buffer of results.

    Words are aligned and each has one writer, so a reader sees whole values.
    """

    TASK, STARTED_NS, EPOCH, STORED, FIRST, PORTION, STOPPING, SPENT, SETUP_NS, COMMAND, BEFORE_NS, TOLD = (
        range(12)
    )
    """TASK: the task begun last (job in the upper, offset in the lower half), STARTED_NS: when (monotonic
    clock). STORED: where the frames in the buffer end (in the upper half), and the lines, which begin a header's length
    behind them; FIRST: offset of the first line; PORTION: counts the times the buffer was emptied; SPENT: 1 when it will
    begin no other task, and end. SETUP_NS: while a setup function of that task runs, how long it may take; then STARTED_NS
    is its start, and BEFORE_NS what the task itself has taken. COMMAND: the pid, and process group, of the command that
    runs; 0: none; -1: it is being started. The supervisor writes EPOCH, the barrier, STOPPING: 1 when it drains, and
    TOLD: 1 when a signal to a child that starts commands is its own."""

    WORDS = 12
    BUFFER_BYTES = 256 * 1024

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, self.WORDS * 8 + self.BUFFER_BYTES)
        view = memoryview(self._map)
        self.words = view[: self.WORDS * 8].cast("q")
        self.buffer = view[self.WORDS * 8 :]

    @classmethod
    def create(cls) -> tuple[Cell, int]:
        """A new cell and the descriptor by which the child opens it."""
        fd = os.memfd_create("mtask-cell")
        os.ftruncate(fd, cls.WORDS * 8 + cls.BUFFER_BYTES)
        cell = cls(fd)
        cell.words[cls.TASK] = -1
        return cell, fd

    def task(self) -> tuple[int, int, int]:
        """(job, offset, start in monotonic ns) of the task that the child began last; job -1: none."""
        words = self.words
        while True:
            setup, task, started_ns = words[self.SETUP_NS], words[self.TASK], words[self.STARTED_NS]
            if task == words[self.TASK] and setup == words[self.SETUP_NS]:
                return task >> 32, task & 0xFFFFFFFF, started_ns

    def setup_s(self) -> float | None:
        """How long the setup function that runs may take; None: it is the task that runs."""
        return self.words[self.SETUP_NS] / 1e9 if self.words[self.SETUP_NS] else None

    def before_setup_s(self) -> float:
        """What the task itself had taken when the setup function began that runs."""
        return self.words[self.BEFORE_NS] / 1e9

    def unsent(self) -> tuple[bytes, int, int, bytes] | None:
        """(frames, job, offset of the first line, lines) in the buffer, if it holds still."""
        words = self.words
        job, portion = words[self.TASK] >> 32, words[self.PORTION]
        stored, first = words[self.STORED], words[self.FIRST]
        closed, filled = stored >> 32, stored & 0xFFFFFFFF
        data = bytes(self.buffer[:filled])
        # Other lines come into the place of these, and another first one, only after a new portion or another job.
        if not stored or portion != words[self.PORTION] or job != words[self.TASK] >> 32:
            return None
        return data[:closed], job, first, data[closed + HEADER.size :]

    def close(self) -> None:
        self.words.release()
        self.buffer.release()
        self._map.close()
