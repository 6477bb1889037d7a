"""The schedd and the collector, as a fleet needs them."""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mtask.errors import BackendError, UnavailableError
from mtask_condor.client import client

__all__ = ["Schedd", "quoted"]


class Schedd:
    """Submits, asks about, and removes jobs. Raises BackendError, and UnavailableError where trying again may help."""

    def __init__(self, name: str = "") -> None:
        """`name`: empty for that of this machine."""
        self.name = name
        self._opened: Any = None

    def __str__(self) -> str:
        return f"the schedd {self.name!r}" if self.name else "the schedd of this machine"

    def submit(self, description: str) -> int:
        """The number of the new cluster."""
        with self._errors():
            try:
                jobs = client().Submit(description)
            except (ValueError, client().HTCondorException) as error:
                raise BackendError(f"HTCondor can't read the description of the jobs: {error}") from None
            cluster: int = self._found().submit(jobs).cluster()
        return cluster

    def ads(self, constraint: str, attributes: Sequence[str] = ()) -> list[Any]:
        """ClassAds of jobs."""
        wanted = ["ClusterId", "ProcId", *attributes] if attributes else []
        with self._errors():
            found: list[Any] = self._found().query(constraint, wanted)
        return found

    def remove(self, ids: Sequence[str], why: str) -> None:
        """Jobs by their ids; those that aren't there are as good as removed."""
        self._act("Remove", _one_of(ids), why)

    def remove_all(self, constraint: str, why: str, *, now: bool = False) -> None:
        with self._errors():
            if now and self.ads(constraint, ["JobStatus"]):
                self._found().edit(constraint, "WantGracefulRemoval", "false")
        self._act("Remove", constraint, why)

    def release(self, constraint: str, why: str) -> None:
        """What is held."""
        self._act("Release", f"({constraint}) && JobStatus == 5", why)

    def _act(self, action: str, constraint: str, why: str) -> None:
        with self._errors():
            # As text alone the reason gets lost on its way (htcondor 25.14).
            self._found().act(getattr(client().JobAction, action), constraint, reason=(why, 1))

    def machines(self) -> list[Any]:
        """ClassAds of what the pool has: slots, but for those that were cut from others."""
        with self._errors():
            found: list[Any] = client().Collector().query(client().AdType.Startd, 'SlotType =!= "Dynamic"')
        return found

    def owner(self) -> tuple[int, int] | None:
        """User and group that jobs run as, where that is somebody else than this process (root's pools are)."""
        if os.getuid():
            return None
        with self._errors():
            ad = client().ping(self._location(), "WRITE")
        name = str(ad.get("MyRemoteUserName", "")).partition("@")[0]
        try:
            found = pwd.getpwnam(name)
        except KeyError:
            return None
        return found.pw_uid, found.pw_gid

    def _found(self) -> Any:
        if self._opened is None:
            self._opened = client().Schedd(self._location())
        return self._opened

    def _location(self) -> Any:
        collector = client().Collector()
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
            raise self._translated(str(error)) from None

    def _translated(self, text: str) -> BackendError:
        if re.search(r"authenti|authoriz|denied|permission|not allowed", text, re.IGNORECASE):
            return BackendError(
                f"{self} doesn't let you submit jobs: {text}. Does `condor_submit` work for you here? A token must lie in "
                "~/.condor/tokens.d and belong to you"
            )
        if "locate" in text.lower():
            return UnavailableError(
                f"{self} can't be found: {text} Does `condor_q` work here? CONDOR_CONFIG says which pool is meant; "
                "`condor/personal-pool start` starts one on this machine"
            )
        return UnavailableError(f"{self} doesn't answer: {text}")


def quoted(text: str) -> str:
    """As a string of ClassAds, within a submit description or a constraint."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")
    return f'"{escaped}"'


def _one_of(ids: Sequence[str]) -> str:
    parts = (each.split(".") for each in ids)
    return " || ".join(f"(ClusterId == {cluster} && ProcId == {proc})" for cluster, proc in parts) or "false"
