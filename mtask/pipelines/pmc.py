"""`mtask pmc`: a DAG on one host.

The order of writes at a task's end: what it forwards, what it printed with its record, its line in the rescue
file; and only then may start what waits for it. Killed at any point between, a run that goes on by the rescue file
does a task again at most, and leaves none out.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import secrets
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

from mtask.errors import MtaskError, UsageError
from mtask.pipelines.before import check_files, check_fit, read_locked
from mtask.pipelines.crew import Crew, Ended
from mtask.pipelines.dag import Dag, Task, parse_dag
from mtask.pipelines.host import Stopping, hosted, room_here
from mtask.pipelines.logs import DagmanLog, JobstateLog, Log, ResourceLog
from mtask.pipelines.outputs import Merged, PerTask, append_file, append_whole, write_all
from mtask.pipelines.records import Quoted, date_text, record
from mtask.pipelines.rescue import Rescue, read_rescue
from mtask.pipelines.schedule import Room, Schedule
from mtask.requirements import Capabilities
from mtask.worker.environment import environment_of, pinned
from mtask.worker.failure import why_it_died
from mtask.worker.orphans import MARK, watch_for_orphans
from mtask.worker.room import Share
from mtask.worker.runner import HOSTNAME

__all__ = ["Options", "run_dag"]

IO_FAILED = 1 << 8
"""The raw wait status of a task whose outputs could not be put where they belong."""
INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of pegasus-mpi-cluster, with times in seconds."""

    dag: str
    stdout: str | None = None
    stderr: str | None = None
    skip_rescue: bool = False
    max_failures: int = 0
    tries: int = 1
    lock: bool = True
    rescue: str | None = None
    host_script: str | None = None
    host_memory_mb: int | None = None
    host_cpus: int | None = None
    slots: int | None = None
    strict_limits: bool = False
    max_wall_s: float = 0.0
    per_task_stdio: bool = False
    jobstate_log: bool = False
    monitord_hack: bool = False
    resource_log: bool = True
    set_affinity: bool = False
    verbosity: int = 0


def run_dag(options: Options) -> int:
    """Exit status: 0 all tasks done, 1 not all, 130 stopped by a signal. Raises MtaskError before anything ran."""
    started_at, began_s = time.time(), time.monotonic()
    log = Log("mtask pmc", options.verbosity)
    room = room_here(slots=options.slots, cpus=options.host_cpus, memory_mb=options.host_memory_mb)
    with read_locked(options.dag, lock=options.lock) as text:
        dag = parse_dag(text, options.dag, tries=options.tries)
        check_fit(dag, room, options.dag)
        check_files(dag, room)
        name = f"{HOSTNAME}-{os.getpid()}-{secrets.token_hex(2)}"
        environment = {**os.environ, MARK: name}
        with (
            watch_for_orphans(name),
            hosted(options.host_script, environment, log),
            contextlib.ExitStack() as stack,
        ):
            run = _Run(options, dag, room, log, environment, stack)
            run.started_at, run.began_s = started_at, began_s
            stopping = Stopping()
            with stopping.watched():
                return run.to_the_end(stopping)


class _Run:
    """One run of a DAG, from the first task's start to the summary."""

    started_at = began_s = 0.0

    def __init__(
        self,
        options: Options,
        dag: Dag,
        room: Room,
        log: Log,
        environment: Mapping[str, str],
        stack: contextlib.ExitStack,
    ) -> None:
        """What it opens is closed by the stack. Raises MtaskError."""
        self._options, self._dag, self._log, self._room = options, dag, log, room
        path = options.rescue or f"{options.dag}.rescue"
        try:
            done = set() if options.skip_rescue else read_rescue(path, dag)
            self._rescue = Rescue(path, dag, done)
            per_task = options.per_task_stdio or options.monitord_hack
            folder = os.path.dirname(options.dag)
            self._outputs: Merged | PerTask = (
                PerTask(folder) if per_task else Merged(options.stdout, options.stderr, keep=bool(done))
            )
        except OSError as error:
            raise UsageError(f"can't write {error.filename or path}: {error.strerror}") from error
        stack.callback(self._rescue.close)
        self._schedule = Schedule(dag, room, done=done, max_failures=options.max_failures)
        self._done_before = len(done)
        self._listeners: list[JobstateLog | DagmanLog] = []
        if options.jobstate_log:
            self._listeners.append(JobstateLog(os.path.join(folder, "jobstate.log"), log))
        if options.monitord_hack:
            self._listeners.append(DagmanLog(f"{options.dag}.dagman.out", log, options.dag))
        self._resources = ResourceLog(f"{options.dag}.resource", log) if options.resource_log else None
        for each in (*self._listeners, *([self._resources] if self._resources else [])):
            stack.callback(each.close)
        self._crew = Crew(environment)
        stack.callback(self._crew.close)
        self._slots = list(range(1, room.slots + 1))
        self._places: dict[int, tuple[int, int, tuple[int, ...]]] = {}
        """Of each running task: (slot, attempt of all in this run, its cores)."""
        self._cores = sorted(os.sched_getaffinity(0)) if options.set_affinity else []
        self._surroundings: dict[tuple[int, int], dict[str, str]] = {}
        self._submitted = self._succeeded = 0
        self._runtime_s = 0.0
        self._why_stopped = ""

    # -- the loop -----------------------------------------------------------------------------------

    def to_the_end(self, stopping: Stopping) -> int:
        self._say_beginning()
        for listener in self._listeners:
            listener.begun()
        self._note_free()
        deadline_s = self.began_s + self._options.max_wall_s if self._options.max_wall_s else None
        self._fill()
        while not self._schedule.finished:
            left_s = max(0.0, deadline_s - time.monotonic()) if deadline_s is not None else None
            ended = self._crew.wait(None if self._why_stopped else left_s)
            for each in ended:
                self._gone(each)
            if stopping.count:
                self._stop(f"stopped by {stopping.signal}")
            if stopping.count > 1:
                self._crew.kill()
            if deadline_s is not None and time.monotonic() >= deadline_s:
                self._stop(f"stopped: the wall time of {self._options.max_wall_s / 60:g} min is over")
            # After a failure nothing more may be wanted. Behind success others run while it is written down.
            for each in [each for each in ended if self._may_fail(each)]:
                self._conclude(each)
            self._fill()
            for each in [each for each in ended if not self._may_fail(each)]:
                self._conclude(each)
            self._fill()
        return self._finish(stopping)

    def _may_fail(self, ended: Ended) -> bool:
        task = self._dag.tasks[ended.key]
        return bool(ended.status or task.pipes or task.files)

    def _fill(self) -> None:
        """Start what may start."""
        while (at := self._schedule.next()) is not None:
            task = self._dag.tasks[at]
            self._submitted += 1
            slot, cores = heapq.heappop(self._slots), self._take_cores(task)
            self._places[at] = slot, self._submitted, cores
            argv = _limited(task) if self._options.strict_limits and task.memory_mb else task.argv
            share = Share(task.cpus, task.memory_mb << 20, (), cores)
            with pinned(share):
                self._crew.start(at, argv, self._variables(task, slot, cores), list(task.pipes))
            for listener in self._listeners:
                listener.started(task.name, self._submitted)
            self._log(f"task {task.name} starts in slot {slot}", level=1)
            self._note_free()

    def _gone(self, ended: Ended) -> None:
        self._schedule.gone(ended.key)
        slot, _, cores = self._places[ended.key]
        heapq.heappush(self._slots, slot)
        self._cores = sorted([*self._cores, *cores])
        self._runtime_s += ended.duration_s
        self._note_free()

    def _conclude(self, ended: Ended) -> None:
        """Write down a task's end; then may start what waits for it."""
        task = self._dag.tasks[ended.key]
        slot, number, _ = self._places.pop(ended.key)
        status = ended.status or self._forward(task, ended)
        try:
            if ended.problem:
                write_all(ended.stderr, os.fsencode(f"mtask: {ended.problem}\n"))
            self._outputs.write(
                task.name, ended.stdout, ended.stderr, self._record(task, ended, status, slot)
            )
            if not status:
                self._rescue.add(ended.key)
        except (OSError, MtaskError) as error:
            # What isn't stored isn't done: it is for the next run.
            status = IO_FAILED
            said = (
                f"can't write the outputs of tasks: {error.strerror}" if isinstance(error, OSError) else error
            )
            self._stop(f"stopped: {said}")
        finally:
            os.close(ended.stdout)
            os.close(ended.stderr)
        again = self._schedule.ended(ended.key, success=not status)
        if not status:
            self._succeeded += 1
            self._log(f"task {task.name} is done, in {ended.duration_s:.3f} s", level=1)
        else:
            why = ended.problem or why_it_died(os.waitstatus_to_exitcode(status)).message
            self._log(f"task {task.name} failed: {why}{'; it is tried again' if again else ''}")
        for listener in self._listeners:
            listener.ended(task.name, number, status)

    def _stop(self, why: str) -> None:
        """Start nothing more, and end what runs."""
        if not self._why_stopped:
            self._why_stopped = why
            self._schedule.stop()
            self._log(f"{why}; what runs ({len(self._schedule.running)}) is ended")
            self._crew.stop()

    # -- one task -----------------------------------------------------------------------------------

    def _variables(self, task: Task, slot: int, cores: tuple[int, ...]) -> dict[str, str]:
        needs = task.cpus, task.memory_mb
        if needs not in self._surroundings:
            machine = Capabilities(cpus=float(self._room.cpus), memory_bytes=self._room.memory_mb << 20)
            share = Share(task.cpus, task.memory_mb << 20)
            self._surroundings[needs] = {
                **environment_of(share, machine),
                "PMC_CPUS": str(task.cpus),
                "PMC_MEMORY": str(task.memory_mb),
            }
        variables = {
            **self._surroundings[needs],
            "PMC_TASK": task.name,
            "PMC_RANK": str(slot),
            "PMC_HOST_RANK": str(slot - 1),
        }
        if cores:
            variables["PMC_AFFINITY"] = ",".join(map(str, cores))
        return variables

    def _take_cores(self, task: Task) -> tuple[int, ...]:
        """For a task of several CPUs, that many of its own; none if there are too few free ones."""
        if task.cpus < 2 or len(self._cores) < task.cpus:
            return ()
        taken, self._cores = self._cores[: task.cpus], self._cores[task.cpus :]
        return tuple(taken)

    def _forward(self, task: Task, ended: Ended) -> int:
        """Append what a done task has written to the files it named; returns its status after that."""
        if not (task.pipes or task.files):
            return 0
        try:
            for variable, path in task.pipes.items():
                if data := ended.forwarded.get(variable):
                    append_whole(path, bytes(data))
            for source, destination in task.files.items():
                append_file(source, destination)
        except OSError as error:
            self._log(f"task {task.name}: can't forward {error.filename or 'its data'}: {error.strerror}")
            return IO_FAILED
        return 0

    def _record(self, task: Task, ended: Ended, status: int, slot: int) -> str:
        for source in task.files:
            with contextlib.suppress(OSError):
                os.unlink(source)
        number = {"id": task.number} if task.number else {}
        return record(
            "cluster-task",
            **number,
            name=task.name,
            start=date_text(ended.started_at),
            duration=ended.duration_s,
            status=status,
            app=Quoted(task.argv[0]),
            hostname=Quoted(HOSTNAME),
            slot=slot,
            cpus=task.cpus,
            memory=task.memory_mb,
        )

    # -- what is said -------------------------------------------------------------------------------

    def _say_beginning(self) -> None:
        room, count = self._room, len(self._dag.tasks)
        before = f", {self._done_before:,} of them done before" if self._done_before else ""
        self._log(
            f"{count:,} tasks{before}; {room.slots} slots, {room.cpus} CPUs, {room.memory_mb:,} MB", level=0
        )

    def _note_free(self) -> None:
        if self._resources is not None:
            schedule = self._schedule
            self._resources.free(schedule.slots, schedule.cpus, schedule.memory_mb)

    def _finish(self, stopping: Stopping) -> int:
        """The summary, which comes last of all."""
        schedule, count = self._schedule, len(self._dag.tasks)
        left = count - len(schedule.done)
        code = INTERRUPTED if left and stopping.count else 1 if left else 0
        self._log(
            f"{len(schedule.done):,} of {count:,} tasks are done, {len(schedule.failed):,} failed, "
            f"{left - len(schedule.failed):,} were not started"
            + ("; the same command goes on with what is left" if left else ""),
            level=-1 if left else 0,
        )
        for listener in self._listeners:
            listener.over(code)
        summary = record(
            "cluster-summary",
            stat=Quoted("failed" if left else "ok"),
            tasks=count,
            submitted=self._submitted,
            succeeded=self._succeeded,
            failed=len(schedule.failed),
            extra=0,
            start=date_text(self.started_at),
            duration=time.monotonic() - self.began_s,
            pid=os.getpid(),
            app=Quoted(sys.argv[0]),
            runtime=self._runtime_s,
            slots=self._room.slots,
            cpus=self._room.cpus,
        )
        try:
            write_all(1, os.fsencode(summary))
        except OSError as error:
            self._log(f"can't write the summary: {error.strerror}")
            return code or 1
        return code


def _limited(task: Task) -> list[str]:
    """The command under limits of memory that it can't raise; 0 is never asked for."""
    kib = task.memory_mb * 1024
    return ["/bin/sh", "-c", f'ulimit -v {kib} && ulimit -d {kib} && exec "$0" "$@"', *task.argv]
