"""The schedd and the collector: submits, asks about, and removes jobs."""

from __future__ import annotations

import os
import pwd
import re
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from mtask.errors import BackendError, UnavailableError
from mtask_condor.client import client

__all__ = ["Schedd", "description", "plain", "quoted", "word"]


class Schedd:
    """Safe to call from any thread. Raises BackendError, and UnavailableError where trying again may help."""

    def __init__(self, name: str = "", pool: str = "") -> None:
        """`name`: empty for that of this machine; `pool`: host[:port] of its collector, empty for this machine's."""
        self.name, self.pool = name, pool
        self._opened: Any = None
        self._lock = threading.Lock()

    def __str__(self) -> str:
        return f"the schedd {self.name!r}" if self.name else "the schedd of this machine"

    def submit(self, text: str) -> int:
        """By a description; the number of the new cluster."""
        with self._errors(), self._lock:
            try:
                jobs = client().Submit(text)
            except (ValueError, client().HTCondorException) as error:
                raise BackendError(f"HTCondor can't read the description of the jobs: {error}") from None
            cluster: int = self._found().submit(jobs).cluster()
            with suppress(client().HTCondorException):
                self._found().reschedule()  # or they wait for the pool's next round of its own accord
        return cluster

    def ads(self, constraint: str, attributes: Sequence[str] = (), *, clusters: bool = False) -> list[Any]:
        """ClassAds of jobs, with these attributes or all; with `clusters` also of clusters, which have no ProcId."""
        wanted = ["ClusterId", "ProcId", *attributes] if attributes else []
        opts = client().QueryOpts.IncludeClusterAd if clusters else client().QueryOpts.Default
        with self._errors(), self._lock:
            found: list[Any] = self._found().query(constraint, wanted, opts=opts)
        return found

    def remove(self, constraint: str, why: str, *, now: bool = False) -> None:
        """Jobs, and what would become jobs; `now`: without telling them."""
        if now and self.ads(constraint, ["JobStatus"]):
            with self._errors(), self._lock:
                self._found().edit(constraint, "WantGracefulRemoval", "false")
        self._act("Remove", constraint, why)
        if now:  # those that had been told before: HTCondor lets nobody else hurry them
            self._act("RemoveX", f"({constraint}) && JobStatus == 3", why)

    def release(self, constraint: str, why: str) -> None:
        """What is held."""
        self._act("Release", f"({constraint}) && JobStatus == 5", why)

    def machines(self, attributes: Sequence[str] = ()) -> list[Any]:
        """ClassAds of what the pool has, and those that jobs flock to from here: slots, but for those that were cut
        from others."""

        def slots(collector: Any) -> list[Any]:
            found: list[Any] = collector.query(
                client().AdType.Startd, 'SlotType =!= "Dynamic"', projection=list(attributes)
            )
            return found

        with self._errors():
            found = slots(self._collector())
        for pool in re.split(r"[\s,]+", str(client().param.get("FLOCK_TO", "")).strip(" ,")):
            with suppress(client().HTCondorException):  # one that is away takes no job either
                found += slots(client().Collector(pool)) if pool else []
        return found

    def user(self) -> str:
        """As whom the schedd sees this process, and whom the jobs belong to."""
        with self._errors(), self._lock:
            ad = client().ping(self._location(), "WRITE")
        return str(ad.get("MyRemoteUserName", "")).partition("@")[0]

    def owner(self) -> tuple[int, int] | None:
        """User and group that jobs run as, where that is somebody else than this process (root's pools are)."""
        if os.getuid():
            return None
        try:
            found = pwd.getpwnam(self.user())
        except KeyError:
            return None
        return found.pw_uid, found.pw_gid

    def full_name(self) -> str:
        """As the pool knows it."""
        with self._errors(), self._lock:
            return str(self._location()["Name"])

    def _act(self, action: str, constraint: str, why: str) -> None:
        with self._errors(), self._lock:
            # As text alone the reason gets lost on its way (htcondor 25.14).
            self._found().act(getattr(client().JobAction, action), constraint, reason=(why, 1))

    def _found(self) -> Any:
        if self._opened is None:
            self._opened = client().Schedd(self._location())
        return self._opened

    def _collector(self) -> Any:
        return client().Collector(self.pool) if self.pool else client().Collector()

    def _location(self) -> Any:
        collector = self._collector()
        if not self.name:
            return collector.locate(client().DaemonType.Schedd)
        found = collector.locate(client().DaemonType.Schedd, self.name)
        if found is None:
            known = (str(ad.get("Name")) for ad in collector.locateAll(client().DaemonType.Schedd))
            raise UnavailableError(
                f"the pool has no schedd {self.name!r}; it has {', '.join(sorted(known)) or 'none at all'}"
            )
        return found

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except client().HTCondorException as error:
            self._opened = None  # it may have another port by now
            raise self._error(str(error)) from None

    def _error(self, text: str) -> BackendError:
        rights = (
            "Does `condor_submit` work for you here? A token must lie in ~/.condor/tokens.d and belong to you"
        )
        if "locate" in text.lower():
            return UnavailableError(
                f"{self} can't be found: {text} Does `condor_q` work here? CONDOR_CONFIG says which pool is meant; "
                "`condor/personal-pool start` starts one on this machine"
            )
        if re.search(r"authenti|authoriz|denied|permission|not allowed", text, re.IGNORECASE):
            return BackendError(f"{self} doesn't let you submit jobs: {text} {rights}")
        if self._listens():  # all that HTCondor says then is that it could not start a command
            return UnavailableError(
                f"{self} is there, but doesn't let you submit jobs, or is just starting: {text} {rights}"
            )
        return UnavailableError(f"{self} doesn't answer: {text}")

    def _listens(self) -> bool:
        try:
            address = re.match(r"<\[?([^\]>?]+)\]?:(\d+)", str(self._location()["MyAddress"]))
            assert address is not None
            socket.create_connection((address[1], int(address[2])), 5).close()
        except (OSError, AssertionError, BackendError, client().HTCondorException):
            return False
        return True


def description(commands: dict[str, object], count: int) -> str:
    """Of so many jobs; commands without a value are left out."""
    lines = [f"{name} = {value}" for name, value in commands.items() if value != ""]
    return "\n".join([*lines, f"queue {count}"])


def quoted(text: str) -> str:
    """As a string of ClassAds, within a submit description or a constraint."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{plain(escaped)}"'


def plain(text: str) -> str:
    """As it is, in a submit description: a dollar sign would begin a macro."""
    return text.replace("\n", " ").replace("$(", "$(DOLLAR)(")


def word(text: str) -> str:
    """A word of an `environment` or `arguments` in double quotes."""
    return "'" + plain(text).replace("'", "''").replace('"', '""') + "'"
