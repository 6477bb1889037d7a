"""What of this host a run may use, and the script that prepares it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from mtask.errors import MtaskError
from mtask.pipelines.schedule import Room
from mtask.worker.capabilities import cpus_of_machine, memory_of_machine
from mtask.worker.process import signal_group

__all__ = ["Stopping", "hosted", "room_here"]

SCRIPT_S = 60.0
"""A host script must have ended by then."""
SCRIPT_GRACE_S = 5.0
"""What it has left running gets SIGTERM at the end of the run, and SIGKILL so long after."""
UNKNOWN = 2**40
"""More than any host has: nothing is known that would limit it."""
_MIB = 2**20


class Stopping:
    """Asked to stop by a signal: how often, and by which."""

    def __init__(self) -> None:
        self.count = 0
        self.signal = ""

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Within, SIGTERM, SIGINT and SIGHUP are counted here, but for those that the caller ignores."""
        before = {}
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup sets it
                before[number] = signal.signal(number, self._on_signal)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, _frame: object) -> None:
        self.count += 1
        self.signal = signal.Signals(number).name


def room_here(
    *,
    slots: int | None = None,
    cpus: int | None = None,
    memory_mb: int | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Room:
    """What was said, else what an HTCondor job has been given, else what the machine has for this process."""
    given = _condor_slot(environment)
    if cpus is None:
        cpus = min(given.get("Cpus", UNKNOWN), cpus_of_machine())
    if memory_mb is None:
        memory_mb = min(given.get("Memory", UNKNOWN), memory_of_machine() // _MIB or UNKNOWN)
    return Room(slots or cpus, cpus, memory_mb)


def _condor_slot(environment: Mapping[str, str]) -> dict[str, int]:
    """Cpus and Memory (MiB) of the slot that this process is a job of; HTCondor leaves its ad beside the job."""
    path = environment.get("_CONDOR_MACHINE_AD")
    if not path:
        return {}
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    found = re.findall(r"^(Cpus|Memory)\s*=\s*(\d+)\s*$", text, re.MULTILINE)
    return {name: int(value) for name, value in found if int(value)}


@contextmanager
def hosted(script: str | None, environment: Mapping[str, str], log: Callable[[str], None]) -> Iterator[None]:
    """Runs the script before, and ends what it has left running after.

    Its output goes to standard error. Raises MtaskError when it fails, or takes longer than `SCRIPT_S`.
    """
    if not script:
        yield
        return
    try:
        process = subprocess.Popen(
            [script], env=environment, stdin=subprocess.DEVNULL, stdout=2, process_group=0
        )
    except OSError as error:
        raise MtaskError(f"can't start the host script {script}: {error.strerror}") from error
    try:
        _await(process, script)
        yield
    finally:
        _end_group(process.pid, log)


def _await(process: subprocess.Popen[bytes], script: str) -> None:
    try:
        code = process.wait(SCRIPT_S)
    except BaseException as error:
        signal_group(process.pid, signal.SIGKILL)
        process.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            raise MtaskError(f"the host script {script} ran longer than {SCRIPT_S:g} s") from None
        raise
    if code:
        raise MtaskError(f"the host script {script} failed: exit status {code}; no task was started")


def _end_group(group: int, log: Callable[[str], None]) -> None:
    """The script itself has ended; its group is there as long as anyone is in it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGTERM)
        limit_s = time.monotonic() + SCRIPT_GRACE_S
        while time.monotonic() < limit_s:  # who is not our child can't be awaited
            os.killpg(group, 0)
            time.sleep(0.02)
        os.killpg(group, signal.SIGKILL)
        log("what the host script had left running had to be killed")
