"""A fleet on HTCondor: pilots, which are jobs that run `mtask worker`, and the keeper, a job that keeps their number.

All that the schedd must not know lies in the fleet's folder, on a disk of the schedd's machine:

    fleet.json          what was asked for
    environment.json    secrets, for the owner alone; HTCondor transfers it, encrypted, to each pilot
    pilot.sh, pilot.py, pilot.json, code.tar.gz     what a pilot is started from
    errors/             what pilots printed
    keeper.json         what the keeper saw last
    lock                held by whoever changes the fleet: keeper and commands never do at once

The truth about pilots is the schedd's queue alone. So the keeper, or a command, may be killed anywhere: the next
one looks at what is there. Late materialization would keep a number of jobs without a keeper, but not this one: the
schedd (25.14) looks at a limit that was raised only when a job ends, and the Python client can't change it.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

import msgspec

from mtask.errors import UnusableError, UsageError
from mtask.fleet import FleetSpec, FleetStatus
from mtask_condor.pilots import (
    HELD,
    LEAVING,
    RUNNING,
    WAITING,
    Pilot,
    keeper_job,
    pilot_jobs,
    pilot_order,
    plan,
    state_of,
)
from mtask_condor.schedd import Schedd, quoted
from mtask_condor.trouble import troubles

__all__ = ["CondorFleet", "Record", "Seen"]

KEPT_ERRORS = 50
"""Files of pilots that are gone."""
_FILES = ("pilot.sh", "pilot.py", "pilot.json", "environment.json", "code.tar.gz")
_MODES = {"pilot.sh": 0o755, "environment.json": 0o600}


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """fleet.json."""

    spec: FleetSpec
    settings: str
    """The mark of all that makes a pilot: those with another one are replaced."""
    python: str = "any"
    """What the shipped package asks for."""
    down: bool = False


class Seen(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """keeper.json: what the keeper saw last."""

    at: float = 0.0
    backlog: int | None = None
    wanted: int | None = None
    unserved: tuple[str, ...] = ()
    problem: str = ""
    """Why it doesn't know; then the number stays as it was."""


class CondorFleet:
    """`mtask.fleet.Fleet` on HTCondor."""

    def __init__(self, place: str, folder: Path) -> None:
        """`place`: condor, or condor://SCHEDD. Raises UsageError."""
        parts = urlsplit(place)
        if place != "condor" and (parts.scheme != "condor" or parts.path.strip("/") or parts.query):
            raise UsageError(f"{place!r} is not a place for a fleet; write condor, or condor://SCHEDD")
        self.place, self.folder = place, folder.absolute()
        self.schedd = Schedd(unquote(parts.netloc))
        self._mine = f"MtaskFleetFolder == {quoted(str(self.folder))}"
        self._keepers = f"MtaskFleetKeeper == {quoted(str(self.folder))}"

    # -- Fleet --------------------------------------------------------------------------------------

    def up(self, spec: FleetSpec, environment: Mapping[str, str], code: Path | None) -> None:
        _check(spec, environment)
        owner = self.schedd.owner()
        keeper = _python_here(spec, owner)
        self._make(owner)
        with self.changing():
            settings = self._store(spec, environment, code, owner)
            self.schedd.release(self._mine, "mtask fleet up")
            self._ensure_keeper(spec, keeper)
            wanted = self.seen().wanted  # those that wait keep their place
            self._keep(self.record(), settings, spec.least if wanted is None else wanted)

    def keep(self, wanted: int) -> None:
        with self.changing():
            record = self.record()
            if not record.down:
                self._keep(record, record.settings, wanted)

    def status(self) -> FleetStatus:
        record, seen = self.record(), self.seen()
        pilots = self.pilots()
        counts = {
            name: sum(pilot.state == name for pilot in pilots) for name in (RUNNING, WAITING, HELD, LEAVING)
        }
        spec = record.spec
        return FleetStatus(
            name=spec.name,
            place=f"HTCondor, {self.schedd}",
            queue=spec.queue,
            least=spec.least,
            most=spec.most,
            wanted=None if record.down else seen.wanted,
            backlog=seen.backlog,
            **counts,
            down=record.down,
            troubles=() if record.down else tuple(self._troubles(record, seen)),
        )

    def down(self, *, now: bool) -> int:
        with self.changing():
            record = self.record()
            self._write("fleet.json", msgspec.json.encode(msgspec.structs.replace(record, down=True)))
            self.schedd.remove(self._keepers, "mtask fleet down")
            here = [pilot for pilot in self.pilots() if now or pilot.state != LEAVING]
            self.schedd.remove(self._mine, "mtask fleet down", now=now)
            for name in ("environment.json", "keeper.json"):
                (self.folder / name).unlink(missing_ok=True)
        return len(here)

    # -- for the keeper -----------------------------------------------------------------------------

    def record(self) -> Record:
        """Raises UsageError when there is none."""
        try:
            return msgspec.json.decode((self.folder / "fleet.json").read_bytes(), type=Record)
        except FileNotFoundError:
            raise UsageError(f"there is no fleet in {self.folder}: `mtask fleet up` makes one") from None
        except (OSError, msgspec.DecodeError) as error:
            raise UnusableError(f"{self.folder / 'fleet.json'} can't be read: {error}") from None

    def seen(self) -> Seen:
        try:
            return msgspec.json.decode((self.folder / "keeper.json").read_bytes(), type=Seen)
        except (OSError, msgspec.DecodeError):
            return Seen()

    def note(self, seen: Seen) -> None:
        self._write("keeper.json", msgspec.json.encode(seen))

    def pilots(self) -> list[Pilot]:
        found = self.schedd.ads(self._mine, ["JobStatus", "MtaskSteady", "MtaskSettings"])
        return [
            Pilot(
                ad["ClusterId"],
                ad["ProcId"],
                state_of(ad["JobStatus"]),
                bool(ad.get("MtaskSteady")),
                str(ad.get("MtaskSettings")),
            )
            for ad in found
        ]

    @contextmanager
    def changing(self) -> Iterator[None]:
        """One at a time."""
        try:
            lock = (self.folder / "lock").open("ab")
        except FileNotFoundError:
            raise UsageError(f"there is no fleet in {self.folder}: `mtask fleet up` makes one") from None
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    # -- inside -------------------------------------------------------------------------------------

    def _keep(self, record: Record, settings: str, wanted: int) -> None:
        spec = record.spec
        pilots = self.pilots()
        todo = plan(pilots, max(spec.least, min(spec.most, wanted)), spec.least, spec.most, settings)
        if todo.remove:
            self.schedd.remove(_any_of(todo.remove), "the fleet needs fewer, or others")
        for count, steady in ((todo.steady, True), (todo.elastic, False)):
            if count:
                self.schedd.submit(
                    pilot_jobs(self.folder, spec, settings, record.python, count, steady=steady)
                )
        self._tidy({pilot.id for pilot in pilots})

    def _tidy(self, present: set[str]) -> None:
        """What pilots printed that are gone."""
        gone = [path for path in (self.folder / "errors").iterdir() if path.name not in present]
        for path in sorted(gone, key=_age)[:-KEPT_ERRORS]:
            path.unlink(missing_ok=True)

    def _ensure_keeper(self, spec: FleetSpec, python: str) -> None:
        # One that is being removed may take a while to end, and keeps nothing.
        if any(ad["JobStatus"] not in (3, 4) for ad in self.schedd.ads(self._keepers, ["JobStatus"])):
            self.schedd.release(self._keepers, "mtask fleet up")
            return
        names = ("CONDOR_CONFIG", "PATH", "HOME")
        environment = {name: os.environ[name] for name in names if os.environ.get(name)}
        environment["PYTHONPATH"] = os.pathsep.join(spec.path)
        self.schedd.submit(keeper_job(self.place, self.folder, spec, python, environment))

    def _troubles(self, record: Record, seen: Seen) -> Iterator[str]:
        keepers = self.schedd.ads(self._keepers, ["JobStatus", "HoldReason"])
        keepers = [ad for ad in keepers if ad["JobStatus"] not in (3, 4)]
        if not keepers:
            yield "nobody keeps the number of workers: `mtask fleet up` with the same options mends that"
        elif keepers[0]["JobStatus"] == 5:
            said = last_line(self.folder / "keeper.err")
            yield f"the keeper is held: {keepers[0].get('HoldReason')}{said}; `mtask fleet up` starts it again"
        elif seen.at and time.time() - seen.at > 3 * record.spec.every_s + 60:
            yield f"the keeper was last seen {time.time() - seen.at:.0f} s ago"
        if seen.problem:
            yield f"the number of workers stays as it is: {seen.problem}"
        yield from (f"messages that no worker of this fleet can serve: {text}" for text in seen.unserved)
        yield from troubles(self.schedd, self._mine, self.folder, record.spec)

    def _make(self, owner: tuple[int, int] | None) -> None:
        try:
            (self.folder / "errors").mkdir(parents=True, exist_ok=True)
            (self.folder / "lock").touch()
            for path in (self.folder, self.folder / "errors", self.folder / "lock"):
                if owner is not None:
                    os.chown(path, *owner)
        except OSError as error:
            raise UnusableError(
                f"{error.filename} can't be made: {error.strerror}; work in another folder"
            ) from None
        if owner is not None:
            _check_open(self.folder)

    def _store(
        self,
        spec: FleetSpec,
        environment: Mapping[str, str],
        code: Path | None,
        owner: tuple[int, int] | None,
    ) -> str:
        """Everything that a pilot is started from; returns its mark."""
        from mtask.shipping import python_here

        here = Path(__file__).parent
        parts = {
            "pilot.sh": (here / "pilot.sh").read_bytes(),
            "pilot.py": (here / "pilot.py").read_bytes(),
            "pilot.json": pilot_order(spec),
            "environment.json": msgspec.json.encode(dict(environment), order="sorted"),
        }
        if code is not None:
            parts["code.tar.gz"] = code.read_bytes()
        try:
            before = self.record()
        except UsageError:
            before = None
        same = (
            before is not None
            and _pilot_part(before.spec) == _pilot_part(spec)
            and all(_content(self.folder / name) == parts.get(name) for name in _FILES)
        )
        # Not a digest: whoever sees the job would have something to try passwords on.
        settings = before.settings if before is not None and same else secrets.token_hex(8)
        for name in _FILES:
            if name in parts:
                self._write(name, parts[name], owner, mode=_MODES.get(name, 0o644))
            else:
                (self.folder / name).unlink(missing_ok=True)
        record = Record(spec=spec, settings=settings, python="any" if code is None else python_here())
        self._write("fleet.json", msgspec.json.encode(record), owner)
        return settings

    def _write(
        self, name: str, content: bytes, owner: tuple[int, int] | None = None, *, mode: int = 0o644
    ) -> None:
        """All of it, or nothing; never readable by more than `mode` says."""
        new = self.folder / f".{name}.new"
        new.unlink(missing_ok=True)
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), mode)
            if owner is None and os.getuid() == 0:
                owner = (self.folder.stat().st_uid, self.folder.stat().st_gid)
            if owner is not None:
                os.fchown(file.fileno(), *owner)
        new.rename(self.folder / name)


def last_line(path: Path) -> str:
    """`; it said: …`, of what was printed last; empty if nothing was."""
    try:
        lines = path.read_text(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return f"; it said: {lines[-1][:500]}" if lines else ""


def _any_of(pilots: Sequence[Pilot]) -> str:
    """As a constraint. One that is gone matches nothing."""
    return " || ".join(f"(ClusterId == {pilot.cluster} && ProcId == {pilot.proc})" for pilot in pilots)


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _check(spec: FleetSpec, environment: Mapping[str, str]) -> None:
    if environment.get("MTASK_QUEUE", "").startswith("condor:"):
        raise UsageError(
            "the queue is condor://, and HTCondor starts a job for each of its messages by itself: it needs no fleet"
        )
    if spec.require and any(each in spec.require for each in "\n\r"):
        raise UsageError("--require must be one line")


def _python_here(spec: FleetSpec, owner: tuple[int, int] | None) -> str:
    """An interpreter of this machine that the jobs' user can run, for the keeper. Raises UsageError."""
    for python in filter(None, (sys.executable, spec.python)):
        path = Path(python)
        if owner is None or (path.exists() and _is_open(path) and _is_open(path.resolve())):
            return python
    raise UsageError(
        f"jobs run as somebody else than root, who can't run {sys.executable}: call mtask with an interpreter of the "
        "system, or say --python /usr/bin/python3"
    )


def _is_open(path: Path) -> bool:
    return all(each.stat().st_mode & 1 for each in (path, *path.parents))


def _check_open(folder: Path) -> None:
    """Root's jobs are somebody else's, who must get there."""
    closed = [path for path in folder.parents if not path.stat().st_mode & 1]
    if closed:
        raise UsageError(
            f"jobs run as somebody else than root, who can't enter {closed[0]}: work in another folder"
        )


def _pilot_part(spec: FleetSpec) -> FleetSpec:
    """Without what concerns their number."""
    return msgspec.structs.replace(spec, least=0, most=1, every_s=1.0, queue="")


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
