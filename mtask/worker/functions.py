"""A slot for function tasks: a child interpreter that stays, and is fed with whole messages."""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
import time

import msgspec

from mtask.model import Result
from mtask.worker.child import BagFrame, Kit
from mtask.worker.held import Job
from mtask.worker.output import new_output, take_tail
from mtask.worker.slots import Cause, Host, Runner, failed_attempt, why_it_died
from mtask.worker.wire import BAD, BAG, ENDED, JOB, RESULTS, RESUME, Cell, Frames, frame

__all__ = ["FunctionRunner"]

PEEK_AFTER_S = 0.25
"""A task that runs longer than this may hold back results of quick ones before it: they are fetched."""
MOST_FAILED_STARTS = 3

_RESULTS = msgspec.json.Decoder(list[Result])


class FunctionRunner(Runner):
    def __init__(self, host: Host, *, max_tasks_per_child: int | None = None) -> None:
        super().__init__(host)
        self._max_tasks = max_tasks_per_child
        self._process: subprocess.Popen[bytes] | None = None
        self._stdout, self._stderr = new_output(), new_output()
        self._failed_starts = 0

    # -- jobs ---------------------------------------------------------------------------------------

    def start(self, job: Job) -> None:
        if self._process is None:
            self._spawn()
        bag = job.held.bag
        if bag.uid not in self._known:
            self._known.add(bag.uid)
            self._write(frame(BAG, 0, 0, msgspec.json.encode(BagFrame(uid=bag.uid, spec=bag.spec))))
        job.began_s = time.monotonic()
        self.jobs.append(job)
        self._write(frame(JOB, job.serial, job.start, job.held.body))

    def cut(self) -> list[Job]:
        if not self.jobs:
            return []
        self._epoch += 1
        self._cell.words[Cell.EPOCH] = self._epoch
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
        self._write(frame(RESUME, 0, self._epoch))
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

    @property
    def retiring(self) -> bool:
        return bool(self._max_tasks and self._process is not None and self._tasks_run >= self._max_tasks)

    def check(self) -> None:
        super().check()
        if (running := self.running()) is not None and running[2] > PEEK_AFTER_S:
            self._take_unsent()

    # -- the child ----------------------------------------------------------------------------------

    def _spawn(self) -> None:
        self._cell, cell_fd = Cell.create()
        jobs_out, self._jobs_in = os.pipe()
        self._results_out, results_in = os.pipe()
        kit = Kit(
            jobs_fd=jobs_out,
            results_fd=results_in,
            cell_fd=cell_fd,
            supervisor=os.getpid(),
            worker=self.host.name,
            path=self.host.path,
        )
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mtask.worker.child", msgspec.json.encode(kit).decode()],
            stdin=subprocess.DEVNULL,
            stdout=self._stdout,
            stderr=self._stderr,
            pass_fds=(jobs_out, results_in, cell_fd),
            process_group=0,
        )
        for fd in (jobs_out, results_in, cell_fd):
            os.close(fd)
        self.pid, self._pidfd = self._process.pid, os.pidfd_open(self._process.pid)
        os.set_blocking(self._jobs_in, False)
        os.set_blocking(self._results_out, False)
        self._unwritten = bytearray()
        self._frames, self._known, self._epoch, self._tasks_run = Frames(), set[str](), 0, 0
        self._cause = None
        self.host.selector.register(self._results_out, selectors.EVENT_READ, self._on_results)
        self.host.selector.register(self._pidfd, selectors.EVENT_READ, self._on_exit)

    def _write(self, data: bytes) -> None:
        waiting = bool(self._unwritten)
        self._unwritten += data
        if not waiting:
            self._on_writable()

    def _on_writable(self) -> None:
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
        self._read()
        if self._max_tasks and self._tasks_run >= self._max_tasks and not self.jobs:
            self._end_child()

    def _read(self) -> bool:
        """Take what the child has sent; False: nothing more just now."""
        try:
            data = os.read(self._results_out, 1 << 20)
        except BlockingIOError:
            return False
        for kind, serial, offset, payload in self._frames.feed(data):
            if not self.jobs or self.jobs[0].serial != serial:
                continue  # of a job that was cut away before it began
            job = self.jobs[0]
            self._failed_starts = 0
            if kind in (RESULTS, ENDED):
                self._take(job, offset, payload)
            if kind == BAD:
                self.jobs.popleft()
                self.host.bad_message(job, payload.decode())
            elif kind == ENDED:
                self._ended(job, offset)
        return bool(data)

    def _take(self, job: Job, offset: int, payload: bytes) -> None:
        results = _RESULTS.decode(payload)
        first = offset - len(results)
        # Some may have been fetched from the cell before, or be of tasks that were cut away as it began them.
        results = results[max(0, job.got - first) : max(0, job.stop - first)]
        job.got = max(job.got, min(offset, job.stop))
        self._tasks_run += len(results)
        if results:
            self.host.attempts_ended(job, results)

    def _take_unsent(self) -> None:
        serial, _, _ = self._cell.task()
        unsent = self._cell.unsent()
        if unsent is not None and self.jobs and serial == self.jobs[0].serial:
            first, items = unsent
            payload = b"[" + items[:-1] + b"]"
            count = len(msgspec.json.decode(payload, type=list[msgspec.Raw]))
            if first <= self.jobs[0].got < first + count:
                self._take(self.jobs[0], first + count, payload)

    def _ended(self, job: Job, offset: int) -> None:
        self.jobs.popleft()
        if offset < job.stop:
            self.host.left_over([Job(job.held, offset, job.stop)], None)
        self._over(job)

    def _on_exit(self) -> None:
        assert self._process is not None
        status = self._process.wait()
        while self._read():
            pass
        self._take_unsent()
        running, cause = self.running(), self._cause
        jobs, error = list(self.jobs), self._failure(cause, status) if self.jobs else why_it_died(status)
        if running is not None and cause in (None, Cause.TIMEOUT):
            job, offset, wall_s = running
            code = status if cause is None else None
            result = failed_attempt(self, job, offset, error, wall_s, exit_code=code)
            job.got = offset + 1
            self.host.attempts_ended(job, [result])
        elif cause is None:
            self._failed_starts += 1
            if self._failed_starts >= MOST_FAILED_STARTS:
                said = take_tail(self._stderr).strip() or "it printed nothing"
                self.host.broken(f"its child processes die at once ({error.message}): {said}")
        self.jobs.clear()
        self._forget_child()
        self._go_on(jobs, cause)

    def _go_on(self, jobs: list[Job], cause: Cause | None) -> None:
        """With what a dead child left: a new child, or back to the worker."""
        rests = []
        for job in jobs:
            if job.got < job.stop:
                rests.append(Job(job.held, job.got, job.stop))
        if cause in (None, Cause.TIMEOUT):
            self.host.left_over(rests, None)
        elif rests:
            # Only the task that ran was meant; what waited behind it was not begun.
            self.host.left_over(rests[:1], cause)
            self.host.left_over(rests[1:], None)

    def _end_child(self) -> None:
        """Close the pipe of an idle child; it ends by itself."""
        process = self._process
        if process is not None:
            os.close(self._jobs_in)
            self._jobs_in = -1
            try:
                process.wait(timeout=2)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            self._forget_child()

    def _forget_child(self) -> None:
        selector = self.host.selector
        for fd in (self._results_out, self._pidfd, self._jobs_in):
            if fd >= 0:
                if fd in selector.get_map():
                    selector.unregister(fd)
                os.close(fd)
        self._cell.close()
        self._process, self.pid, self._cause = None, 0, None

    def close(self) -> None:
        self._end_child()
        os.close(self._stdout)
        os.close(self._stderr)
