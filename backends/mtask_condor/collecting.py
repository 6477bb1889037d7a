"""The job that collects: it records what other jobs bring back, and sends what comes next, so that nobody has to wait.

    python -m mtask_condor.collecting FOLDER

One for each folder of messages, in HTCondor's scheduler universe: it runs on the schedd's machine, as DAGMan does, and the
schedd starts it again whenever it is gone. It ends when the folder is empty. Killing it, or running two, does no harm: all
that it does, anybody may do at any time. What it has to know lies in the folder, for the owner alone:

    collect.json    queue and table, and what of the environment they need. Gone: the job has ended, or is about to
    collect.err     what it complained about
"""

from __future__ import annotations

import fcntl
import math
import os
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec

from mtask.errors import MtaskError, UnavailableError, UsageError
from mtask.registry import open_table, shown, worker_environment
from mtask.settings import Urls, absolute
from mtask_condor.address import Address
from mtask_condor.batch import Batch, storing
from mtask_condor.schedd import Schedd, description, plain, quoted, word

__all__ = ["Collecting", "main"]

PAUSE_S = (0.5, 5.0)
"""Between two looks: after one that found something, and the longest."""
LATE_S = 60.0
"""Such a job starts at once, if it is to start at all."""
ACTIVE = "JobStatus =!= 3 && JobStatus =!= 4"


class Errand(msgspec.Struct, frozen=True, kw_only=True):
    """collect.json."""

    mark: str
    """Of the job that it is for."""
    address: Address
    table: str
    environment: dict[str, str]


class Collecting:
    """What the submit side has to do with that job; whoever calls `ensure` holds the folder's lock."""

    def __init__(self, address: Address, table: str) -> None:
        """`table`: its URL."""
        self._address, self._table = address, absolute(table)
        self._path = address.folder / "collect.json"
        self._schedd = Schedd(address.schedd, address.pool)

    def check(self) -> None:
        """Raises UsageError if results are recorded in another table: bags that aren't there would be taken for
        forgotten ones."""
        errand = _read(self._path)
        if errand is not None and not self._same_table(errand) and Batch.all(self._address.folder):
            raise UsageError(
                f"what is in {self._address.folder} belongs to the table {shown(errand.table)}, not to "
                f"{shown(self._table)}, until all of it is done: say --table, or another queue's name"
            )

    def ensure(self) -> None:
        """There is one when this returns."""
        errand = _read(self._path)
        if errand is not None and not self._same_table(errand):
            errand = None  # its job, if there is one, has nothing to do any more
        if errand is not None and self._schedd.ads(f"({self._mine(errand)}) && {ACTIVE}", ["JobStatus"]):
            self._note(errand.mark)  # credentials may be new
            self._schedd.release(self._mine(errand), "there is something to collect")
            return
        self._schedd.submit(self._job(self._note(secrets.token_hex(6))))

    def _same_table(self, errand: Errand) -> bool:
        return shown(errand.table) == shown(self._table)

    def _note(self, mark: str) -> Errand:
        urls = self._address.url, self._table
        names = ("CONDOR_CONFIG", "PATH", "HOME", *worker_environment(*urls))
        errand = Errand(
            mark=mark,
            address=self._address,
            table=self._table,
            environment={name: os.environ[name] for name in names if os.environ.get(name)},
        )
        with storing(self._path):
            new = self._path.with_suffix(".new")
            new.unlink(missing_ok=True)
            with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(msgspec.json.encode(errand, enc_hook=str))
            new.rename(self._path)
        return errand

    def troubles(self) -> list[str]:
        with self._alone() as alone:
            waits = alone and any(batch.cluster() is not None for batch in Batch.all(self._address.folder))
            errand = _read(self._path)
            names = ["JobStatus", "HoldReason", "EnteredCurrentStatus"]
            ads = self._schedd.ads(f"({self._mine(errand)}) && {ACTIVE}", names) if errand is not None else []
        if waits and not ads:
            return [
                "nobody collects what jobs bring back: somebody removed the job that does. `mtask wait` does so "
                "meanwhile; the next `mtask submit`, `retry` or `repair` starts another"
            ]
        whys = filter(None, map(self._why_not, ads))
        return [f"the job that collects {why}. Meanwhile `mtask wait` does" for why in whys]

    def _why_not(self, ad: Any) -> str:
        from mtask_condor.fleet import last_line

        if ad["JobStatus"] == 5:
            said = last_line(self._address.folder / "collect.err")
            return f"is held: {ad.get('HoldReason')}{said}; `condor_release {ad['ClusterId']}` when that is mended"
        if ad["JobStatus"] == 1 and time.time() - ad.get("EnteredCurrentStatus", math.inf) > LATE_S:
            return "waits: the schedd starts no job of the scheduler universe (START_SCHEDULER_UNIVERSE in its configuration)"
        return ""

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """Is nobody just submitting or collecting? Nobody begins to meanwhile."""
        with ExitStack() as opened:
            try:
                file = opened.enter_context((self._address.folder / "lock").open("ab"))
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                alone = False
            else:
                alone = True
            yield alone

    def _mine(self, errand: Errand) -> str:
        return f"MtaskCollects == {quoted(errand.mark)}"

    def _job(self, errand: Errand) -> str:
        names = ("CONDOR_CONFIG", "PATH", "HOME")
        environment = {name: errand.environment[name] for name in names if name in errand.environment}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        variables = " ".join(f"{name}={word(value)}" for name, value in environment.items())
        folder = str(self._address.folder)
        commands: dict[str, object] = {
            "universe": "scheduler",
            "executable": plain(sys.executable),
            "transfer_executable": "False",
            "arguments": f'"-m mtask_condor.collecting {word(folder)} {errand.mark}"',
            "environment": f'"{variables}"',
            "initialdir": plain(folder),
            "output": "/dev/null",
            "error": "collect.err",
            "notification": "never",
            "batch_name": f"mtask-{self._address.name}-collect",
            "remove_kill_sig": "SIGTERM",
            "on_exit_remove": "ExitBySignal =?= False && ExitCode =?= 0",
            "on_exit_hold": "ExitBySignal =?= False && ExitCode =!= 0",
            "on_exit_hold_reason": 'strcat("it ended with status ", ExitCode)',
            "My.MtaskCollects": quoted(errand.mark),
        }
        return description(commands, 1)


def main(folder: str, mark: str) -> int:
    """Until nothing is left to collect, or another job of this kind has taken its place; the exit status.

    SIGTERM kills it: to end with a status would tell the schedd not to start it again.
    """
    from mtask.manager import Manager
    from mtask_condor.queue import CondorQueue

    path = Path(folder) / "collect.json"
    errand = _read(path)
    if errand is None or errand.mark != mark:
        return 0
    os.environ.update(errand.environment)
    queue = CondorQueue(errand.address._replace(collect=False))
    urls = Urls(errand.address.url, errand.table)
    pause_s, complaint = PAUSE_S[0], ""
    with ExitStack() as opened:
        manager: Manager | None = None
        while True:
            recorded = 0
            try:
                if manager is None:
                    manager = opened.enter_context(Manager(queue, open_table(errand.table), urls=urls))
                now = _read(path)
                if now is None or now.mark != mark:
                    return 0
                recorded, complaint = manager.collect(), ""
                if queue.leave_if_empty(path):
                    return 0
            except UnavailableError as error:  # table or schedd
                if str(error) != complaint:
                    complaint = str(error)
                    print(f"mtask: {error}", file=sys.stderr, flush=True)
            pause_s = PAUSE_S[0] if recorded else min(1.5 * pause_s, PAUSE_S[1])
            time.sleep(pause_s)


def _read(path: Path) -> Errand | None:
    """None: there is none, or one of another version."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Errand, dec_hook=_decoded)
    except (OSError, msgspec.DecodeError):
        return None


def _decoded(kind: Any, value: Any) -> Any:
    return kind(value)  # Path


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except MtaskError as error:
        print(f"mtask: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
