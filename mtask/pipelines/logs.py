"""What a run tells while it goes on: to the person at the terminal, and in the files that Pegasus' monitor reads.

The formats of the files are those of pegasus-mpi-cluster(1): DAG.resource, jobstate.log, and DAG.dagman.out, which
looks like the log of DAGMan. Where they can't be written the run goes on without them.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import Literal, TextIO

from mtask.pipelines.outputs import write_all
from mtask.worker.runner import HOSTNAME

__all__ = ["DagmanLog", "JobstateLog", "Log", "ResourceLog"]


class Log:
    """Lines on standard error. Level 0 tells of the run, 1 of each task, -1 of what goes wrong only."""

    def __init__(self, program: str, level: int = 0) -> None:
        self._program, self._level = program, level

    def __call__(self, text: str, *, level: int = -1) -> None:
        if level <= self._level:
            with contextlib.suppress(OSError):  # nobody is listening
                write_all(2, os.fsencode(f"{self._program}: {text}\n"))


class _File:
    """Lines appended to a file, each written at once."""

    def __init__(self, path: str, log: Log, mode: Literal["a", "w"] = "a") -> None:
        self._log, self._path = log, path
        self._file: TextIO | None = None
        try:
            self._file = open(path, mode, buffering=1, encoding="utf-8", errors="surrogateescape")
        except OSError as error:
            self._give_up(error)

    def line(self, text: str) -> None:
        if self._file is not None:
            try:
                self._file.write(text + "\n")
            except OSError as error:
                self._give_up(error)

    def close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()

    def _give_up(self, error: OSError) -> None:
        self._log(f"can't write {self._path}: {error.strerror}; going on without it")
        self.close()
        self._file = None


class ResourceLog(_File):
    """When how much of the host was free: `time,slots,cpus,MB,host`."""

    def free(self, slots: int, cpus: int, memory_mb: int) -> None:
        self.line(f"{time.time():f},{slots},{cpus},{memory_mb},{HOSTNAME}")


class JobstateLog(_File):
    """Each task's states, with a number of the attempt."""

    def begun(self) -> None:
        self.line(f"{time.time():.6f} INTERNAL *** PMC_STARTED ***")

    def started(self, name: str, attempt: int) -> None:
        now = time.time()
        for state in ("SUBMIT", "EXECUTE"):
            self.line(f"{now:.6f} {name} {state} {attempt}.0 - - {attempt}")

    def ended(self, name: str, attempt: int, status: int) -> None:
        now, state = time.time(), "JOB_FAILURE" if status else "JOB_SUCCESS"
        self.line(f"{now:.6f} {name} JOB_TERMINATED {attempt}.0 - - {attempt}")
        self.line(f"{now:.6f} {name} {state} {status} - - {attempt}")

    def over(self, code: int) -> None:
        self.line(f"{time.time():.6f} INTERNAL *** PMC_FINISHED {1 if code else 0} ***")


class DagmanLog(_File):
    """The same as DAGMan would write it."""

    def __init__(self, path: str, log: Log, dag: str) -> None:
        super().__init__(path, log, "w")
        self._dag = dag

    def begun(self) -> None:
        self._said("This is written by mtask, in the form of DAGMan's log, for monitord")
        self._said("** condor_scheduniv_exec.0.0 (CONDOR_DAGMAN) STARTING UP")
        self._said(f"** PID = {os.getpid()}")
        self._said(f"Parsing {os.path.basename(self._dag)} ...")

    def started(self, name: str, attempt: int) -> None:
        self._said(f"Submitting Condor Node {name} job(s)...")
        for event in ("SUBMIT", "EXECUTE"):
            self._said(f"Event: ULOG_{event} for Condor Node {name} ({attempt}.0)")

    def ended(self, name: str, attempt: int, status: int) -> None:
        how = f"failed with status {status}" if status else "completed successfully"
        self._said(f"Event: ULOG_JOB_TERMINATED for Condor Node {name} ({attempt}.0)")
        self._said(f"Node {name} job proc ({attempt}.0) {how}.")

    def over(self, code: int) -> None:
        code = 1 if code else 0
        pid = os.getpid()
        self._said(f"**** condor_scheduniv_exec.0.0 (condor_DAGMAN) pid {pid} EXITING WITH STATUS {code}")

    def _said(self, text: str) -> None:
        self.line(f"{time.strftime('%m/%d/%y %H:%M:%S')} {text}")
