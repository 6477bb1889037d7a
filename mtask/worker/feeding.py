"""A slot's child process as its worker sees it: fed with whole messages, heard, stopped, and replaced when it dies."""

from __future__ import annotations

import contextlib
import os
import select
import selectors
import shutil
import signal
import subprocess
import tempfile
import time

import msgspec

from mtask import task
from mtask.model import Failure, Result
from mtask.portion import Portion, results_of
from mtask.requirements import Capabilities
from mtask.worker.child.loop import BagFrame, Kit
from mtask.worker.environment import environment_of, pinned
from mtask.worker.failure import why_it_died
from mtask.worker.forked import Forked, can_fork
from mtask.worker.held import Job
from mtask.worker.orphans import MARK, scratch_prefix
from mtask.worker.output import new_output, take_tail
from mtask.worker.process import signal_group
from mtask.worker.room import Share
from mtask.worker.runner import KILL_AFTER_S, Cause, Host, Runner, failed_attempt
from mtask.worker.starting import started
from mtask.worker.wire import (
    ANSWER,
    BAD,
    BAG,
    DONE,
    ENDED,
    JOB,
    RESULTS,
    RESUME,
    STOPPED,
    SUBMIT,
    Cell,
    Frames,
    frame,
)

__all__ = ["ChildRunner"]

PEEK_AFTER_S = 0.25
"""A task that runs longer than this may hold back results of quick ones before it: they are fetched."""
MOST_FAILED_STARTS = 3
EXIT_S = 2.0
"""What a child gets for its last words when the worker ends."""


class ChildRunner(Runner):
    """Feeds one child, and replaces it when it dies or has ended."""

    _calls: bool
    """Does the child run functions? Else commands."""

    def __init__(self, host: Host, *, machine: Capabilities | None = None, forks: bool = False) -> None:
        """`forks`: may the first child be a copy of this process?"""
        super().__init__(host, machine=machine)
        self._process: subprocess.Popen[bytes] | Forked | None = None
        self._forks = forks
        self._stdout, self._stderr = new_output(), new_output()
        self._failed_starts = 0
        self._folder = ""
        """For what the child's tasks write; made by the child, if it needs it."""

    # -- jobs ---------------------------------------------------------------------------------------

    def start(self, job: Job) -> None:
        if self._process is None:
            try:
                self._spawn(job.share)
            except OSError as error:
                self.host.left_over([job])
                self.host.broken(f"can't start a child process: {error}")
                return
        held, bag = job.held, job.held.bag
        if bag.uid not in self._known:
            self._known.add(bag.uid)
            self._write(frame(BAG, 0, 0, msgspec.json.encode(BagFrame(uid=bag.uid, spec=bag.spec))))
        self._tell_share(job.share)
        job.began_s = time.monotonic()
        self.jobs.append(job)
        # The child runs a message to its end, and what was cut away is others' by now.
        body = held.body if job.stop == held.message.count else held.part(0, job.stop).encode()
        self._write(frame(JOB, job.serial, job.start, body))

    def warm(self, share: Share) -> None:
        if self._process is None:
            with contextlib.suppress(OSError):  # the first job tells
                self._spawn(share)

    def cut(self) -> list[Job]:
        if not self.jobs:
            return []
        self._hold()
        serial, offset, _ = self._cell.task()
        rests: list[Job] = []
        begun = next((i for i, job in enumerate(self.jobs) if job.serial == serial), -1)
        while len(self.jobs) > begun + 1:
            rests.insert(0, self.jobs.pop())
        if begun >= 0:
            job = self.jobs[begun]
            stop = max(offset + 1, job.got)
            if stop < job.stop:
                rests.insert(0, Job(job.held, stop, job.stop))
                job.stop = stop
        if self._cause is None:
            self._resume()
        return rests

    def running(self) -> tuple[Job, int, float] | None:
        if not self.jobs or self._process is None:
            return None
        serial, offset, started_ns = self._cell.task()
        job = self.jobs[0]
        if serial != job.serial or offset < job.got or offset >= job.stop:
            return None
        return job, offset, (time.monotonic_ns() - started_ns) / 1e9

    def outputs(self) -> tuple[int, int]:
        return self._stdout, self._stderr

    def check(self) -> None:
        if len(self.jobs) > 1 and self._process is not None:
            serial = self._cell.task()[0]
            if any(job.serial == serial for job in self.jobs) and serial != self.jobs[0].serial:
                self._take_unsent()  # the child is beyond the first
        super().check()
        if (running := self.running()) is not None and running[2] > PEEK_AFTER_S:
            self._take_unsent()

    def tell_stopping(self) -> None:
        if self._process is not None:
            self._cell.words[Cell.STOPPING] = 1

    def _hold(self) -> None:
        """The child stops before its next task, and skips jobs until a RESUME."""
        self._epoch += 1
        self._cell.words[Cell.EPOCH] = self._epoch

    def _resume(self) -> None:
        self._write(frame(RESUME, 0, self._epoch))

    def _tell_share(self, share: Share | None) -> None:
        """To the child, if it was started without one."""

    # -- the child ----------------------------------------------------------------------------------

    def _kit(self, jobs_fd: int, results_fd: int, cell_fd: int) -> Kit:
        return Kit(
            jobs_fd=jobs_fd,
            results_fd=results_fd,
            cell_fd=cell_fd,
            supervisor=os.getpid(),
            calls=self._calls,
            worker=self.host.name,
            path=self.host.path,
            checkpoints=task.rooted(self.host.checkpoints),
            folder=self._folder,
        )

    def _spawn(self, share: Share | None) -> None:
        self._cell, cell_fd = Cell.create()
        jobs_out, self._jobs_in = os.pipe()
        self._results_out, results_in = os.pipe()
        # Another one for each child: what the last one left there can perhaps not be removed by this user.
        name = f"{scratch_prefix(self.host.name)}{os.urandom(4).hex()}"
        self._folder = os.path.join(tempfile.gettempdir(), name)
        kit = self._kit(jobs_out, results_in, cell_fd)
        variables = {MARK: self.host.name} | self._variables(share)
        with pinned(share):
            outputs = self._stdout, self._stderr
            self._process = self._forked(kit, variables) or started(kit, outputs, variables)
        for fd in (jobs_out, results_in, cell_fd):
            os.close(fd)
        self.pid, self._pidfd = self._process.pid, os.pidfd_open(self._process.pid)
        os.set_blocking(self._jobs_in, False)
        os.set_blocking(self._results_out, False)
        self._unwritten = bytearray()
        self._frames, self._known, self._epoch = Frames(), set[str](), 0
        self.host.selector.register(self._results_out, selectors.EVENT_READ, self._on_results)
        self.host.selector.register(self._pidfd, selectors.EVENT_READ, self._on_exit)

    def _variables(self, share: Share | None) -> dict[str, str]:
        """For the child's environment."""
        return environment_of(share, self._machine)

    def _forked(self, kit: Kit, variables: dict[str, str]) -> Forked | None:
        forks, self._forks = self._forks and can_fork(), False
        return Forked(kit, (self._stdout, self._stderr), variables) if forks else None

    def _write(self, data: bytes) -> None:
        waiting = bool(self._unwritten)
        self._unwritten += data
        if not waiting:
            self._on_writable()

    def _on_writable(self) -> None:
        if self._jobs_in < 0:  # closed by an event of the same moment
            return
        registered = self._jobs_in in self.host.selector.get_map()
        try:
            del self._unwritten[: os.write(self._jobs_in, self._unwritten)]
        except BlockingIOError:
            pass
        except BrokenPipeError:
            self._unwritten.clear()  # its death is reported by the pidfd
        if self._unwritten and not registered:
            self.host.selector.register(self._jobs_in, selectors.EVENT_WRITE, self._on_writable)
        elif not self._unwritten and registered:
            self.host.selector.unregister(self._jobs_in)

    def _on_results(self) -> None:
        if self._results_out >= 0:  # else closed by an event of the same moment
            self._read()

    def _read(self) -> bool:
        """Take what the child has sent; False: nothing more just now."""
        try:
            data = os.read(self._results_out, 1 << 20)
        except BlockingIOError:
            return False
        if not data:  # it has closed the pipe, but may go on for long
            self._close("_results_out")
        for each in self._frames.feed(data):
            self._take_frame(*each)
        return bool(data)

    def _take_frame(self, kind: int, serial: int, offset: int, payload: bytes) -> None:
        if kind == SUBMIT:
            self._submit(offset, payload)
            return
        if not self.jobs or self.jobs[0].serial != serial:
            return  # of a job that was cut away before it began, or it was seen in the cell before
        job = self.jobs[0]
        if kind == DONE:
            self._take_done(job, offset, payload)
        elif kind == RESULTS:
            self._take(job, offset, payload)
        elif kind == ENDED:
            self._ended(job)
        elif kind == BAD:
            self.jobs.popleft()
            self.host.bad_message(job, payload.decode())

    def _submit(self, number: int, request: bytes) -> None:
        process = self._process

        def answer(text: bytes) -> None:
            if self._process is process and self._jobs_in >= 0:  # else it has died meanwhile
                self._write(frame(ANSWER, 0, number, text))

        self.host.submit(request, answer)

    def _take_done(self, job: Job, offset: int, lines: bytes) -> None:
        """The fast path: as long as nothing is the matter, nobody here reads what was returned."""
        count = lines.count(b"\n")
        if offset - count != job.got or offset > job.stop or (self._meant and self._meant[0] is job):
            self._take(job, offset, lines)
            return
        message = job.held.message
        first, job.got = message.first + job.got, offset
        self.host.portion_done(job, Portion(message.bag, first, count, lines))

    def _take(self, job: Job, offset: int, lines: bytes) -> None:
        results = results_of(job.held.message.bag, lines)
        first = offset - len(results)
        # Some may have been fetched from the cell before, or be of tasks that were cut away as it began them.
        results = results[max(0, job.got - first) : max(0, job.stop - first)]
        job.got = max(job.got, min(offset, job.stop))
        if self._cause is not None:
            self._judge(job, results)
        if results:
            self.host.attempts_ended(job, results, len(lines))

    def _judge(self, job: Job, results: list[Result]) -> None:
        """A task that was told to stop may have failed because of that: it didn't fail by itself."""
        first = job.got - len(results)
        for at, result in enumerate(results):
            meant = self._meant is not None and self._meant[0] is job and self._meant[1] == first + at
            if result.error is None or not (meant or result.error.type == STOPPED):
                continue
            if meant and self._cause is not None and self._cause.is_failure:
                failure = msgspec.structs.replace(self._why_stopped(job), traceback=result.error.traceback)
                results[at] = msgspec.structs.replace(result, error=failure)
            else:
                self.host.left_over([Job(job.held, first + at, job.stop)])
                job.got = job.stop = first + at
                del results[at:]
            return

    def _take_unsent(self) -> None:
        """What the child has done and not sent: it comes again, but counts only once."""
        if (unsent := self._cell.unsent()) is None:
            return
        frames, serial, first, lines = unsent
        while self._results_out >= 0 and self._read():
            pass  # what it had sent before
        for each in Frames().feed(frames):
            self._take_frame(*each)
        if not self.jobs or self.jobs[0].serial != serial:
            return
        count = lines.count(b"\n")
        if first <= self.jobs[0].got < first + count:
            self._take(self.jobs[0], first + count, lines)

    def _ended(self, job: Job) -> None:
        self.jobs.popleft()
        if job.left:
            self.host.left_over([job.rest()])
        if self._cause is None:
            self._over(job)
        if self._cause is not None or self._cell.words[Cell.SPENT]:
            self.retire()

    # -- its end ------------------------------------------------------------------------------------

    def _on_exit(self) -> None:
        assert self._process is not None
        signal_group(self.pid, signal.SIGKILL)  # what it has started goes with it
        status = self._process.wait()
        self._end_its_rest()
        while self._results_out >= 0 and self._read():
            pass
        self._take_unsent()
        running, cause = self.running(), self._cause
        jobs = [job for job in self.jobs if job.left]
        if running is not None and (cause is None or (cause.is_failure and running[:2] == self._meant)):
            job, offset, wall_s = running
            error = self._why_it_died(job, status) if cause is None else self._why_stopped(job)
            code = status if cause is None else None
            wall_s = wall_s if self.setup_s() is None else self._cell.before_setup_s()
            job.got = offset + 1
            self.host.attempts_ended(job, [failed_attempt(self, job, offset, error, wall_s, exit_code=code)])
        elif cause is None and self._cell.task()[0] < 0:
            self._failed_starts += 1
            if self._failed_starts >= MOST_FAILED_STARTS:
                said = take_tail(self._stderr).strip() or "it printed nothing"
                self.host.broken(f"its child processes die at once ({why_it_died(status).message}): {said}")
        else:
            self._failed_starts = 0
        self.jobs.clear()
        self._forget_child()
        self.host.left_over([job.rest() for job in jobs if job.left])

    def _end_its_rest(self) -> None:
        """It has died: what it has started in groups of their own goes with it."""

    def _why_it_died(self, _job: Job, status: int) -> Failure:
        return why_it_died(status)

    def retire(self) -> None:
        """Close the pipe of a child that runs nothing: it ends by itself, or is killed."""
        if self._process is None:
            return
        if self._cause is None:
            self._hold()
            self._cause, self._kill_at_s = Cause.RETIRED, time.monotonic() + KILL_AFTER_S
        self._unwritten.clear()
        self._close("_jobs_in")

    def close(self) -> None:
        if self._process is not None:
            self.retire()
            end = select.poll()
            end.register(self._pidfd, select.POLLIN)
            end.poll(EXIT_S * 1000)
            signal_group(self.pid, signal.SIGKILL)
            self._process.wait()
            self._end_its_rest()
            self._forget_child()
        self.jobs.clear()
        os.close(self._stdout)
        os.close(self._stderr)

    def _close(self, name: str) -> None:
        fd: int = getattr(self, name)
        if fd >= 0:
            if fd in self.host.selector.get_map():
                self.host.selector.unregister(fd)
            os.close(fd)
            setattr(self, name, -1)

    def _forget_child(self) -> None:
        for name in ("_results_out", "_pidfd", "_jobs_in"):
            self._close(name)
        take_tail(self._stdout), take_tail(self._stderr)
        self._cell.close()
        if os.access(self._folder, os.F_OK):
            shutil.rmtree(self._folder, ignore_errors=True)
        self._process, self.pid, self._cause, self._meant = None, 0, None, None
        self._setup_over_s = None
