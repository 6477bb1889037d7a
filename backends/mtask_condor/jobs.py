"""Talks to HTCondor: submits, asks about, and removes jobs.

The commands of a submit description: HTCondor Manual, "condor_submit"; attributes of jobs: "Job ClassAd Attributes";
of machines: "Machine ClassAd Attributes".
"""

from __future__ import annotations

import math
import re
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mtask.errors import BackendError, UnavailableError
from mtask.requirements import Lane
from mtask_condor.address import Address
from mtask_condor.batch import Batch
from mtask_condor.client import client
from mtask_condor.order import STOPPED

__all__ = ["Jobs", "quoted", "requirements_of"]

MOST_IDLE = 200
"""Of a batch, so many jobs wait in the schedd's memory; the others become jobs when these have started."""
WORKER_MIB = 64
"""What the worker itself takes beside its task."""
LEAST_LEASE_S = 20


class Jobs:
    """The schedd's side of a queue; safe to call from any thread."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._schedd: Any = None
        self._lock = threading.Lock()

    def submit(self, batch: Batch) -> int:
        """The number of the new cluster."""
        text = _description(self._address, batch)
        with self._errors(), self._lock:
            try:
                description = client().Submit(text)
            except (ValueError, client().HTCondorException) as error:
                raise BackendError(f"HTCondor can't read the description of the jobs: {error}") from None
            cluster: int = self._found().submit(description).cluster()
        return cluster

    def ads(self, constraint: str, attributes: Sequence[str]) -> list[dict[str, Any]]:
        """Of jobs and of clusters; the latter have no ProcId."""
        wanted = ["ClusterId", "ProcId", *attributes]
        with self._errors(), self._lock:
            found = self._found().query(constraint, wanted, opts=client().QueryOpts.IncludeClusterAd)
        return [{name: ad[name] for name in wanted if name in ad} for ad in found]

    def remove(self, constraint: str, why: str) -> None:
        """Jobs, and what would become jobs."""
        with self._errors(), self._lock:
            # As text alone the reason gets lost on its way (htcondor 25.14).
            self._found().act(client().JobAction.Remove, constraint, reason=(why, 1))

    def machines(self) -> list[dict[str, Any]]:
        """What each offers when nothing runs on it."""
        wanted = [
            "Machine",
            "TotalSlotCpus",
            "TotalSlotMemory",
            "TotalSlotDisk",
            "TotalSlotGPUs",
            "MtaskTags",
        ]
        with self._errors():
            found = (
                client()
                .Collector()
                .query(client().AdType.Startd, 'SlotType =!= "Dynamic"', projection=wanted)
            )
        return [{name: ad[name] for name in wanted if name in ad} for ad in found]

    def user(self) -> str:
        """As whom the schedd sees this process, and whom the jobs belong to."""
        with self._errors(), self._lock:
            ad = client().ping(self._location(), "WRITE")
        return str(ad.get("MyRemoteUserName", "")).partition("@")[0]

    def _found(self) -> Any:
        if self._schedd is None:
            self._schedd = client().Schedd(self._location())
        return self._schedd

    def _location(self) -> Any:
        name, collector = self._address.schedd, client().Collector()
        if not name:
            return collector.locate(client().DaemonType.Schedd)
        found = collector.locate(client().DaemonType.Schedd, name)
        if found is None:
            there = ", ".join(
                sorted(str(ad.get("Name")) for ad in collector.locateAll(client().DaemonType.Schedd))
            )
            raise UnavailableError(f"the pool has no schedd {name!r}; it has {there or 'none at all'}")
        return found

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except client().HTCondorException as error:
            self._schedd = None  # it may have another port by now
            raise self._error(str(error)) from None

    def _error(self, text: str) -> BackendError:
        schedd = self._address.schedd
        where = f"the schedd {schedd!r}" if schedd else "the schedd of this machine"
        rights = (
            "Does `condor_submit` work for you here? A token must lie in ~/.condor/tokens.d and belong to you"
        )
        if "locate" in text.lower():
            return UnavailableError(
                f"{where} can't be found: {text} Does `condor_q` work here? CONDOR_CONFIG says which pool is meant; "
                "`condor/personal-pool start` starts one on this machine"
            )
        if re.search(r"authenti|authoriz|denied|permission|not allowed", text, re.IGNORECASE):
            return BackendError(f"{where} doesn't let you submit jobs: {text} {rights}")
        if self._listens():  # all that HTCondor says then is that it could not start a command
            return UnavailableError(
                f"{where} is there, but doesn't let you submit jobs, or is just starting: {text} {rights}"
            )
        return UnavailableError(f"{where} doesn't answer: {text}")

    def _listens(self) -> bool:
        try:
            address = re.match(r"<\[?([^\]>?]+)\]?:(\d+)", str(self._location()["MyAddress"]))
            assert address is not None
            socket.create_connection((address[1], int(address[2])), 5).close()
        except (OSError, AssertionError, BackendError, client().HTCondorException):
            return False
        return True


def _description(address: Address, batch: Batch) -> str:
    head, lane = batch.head, batch.lane
    ends = f"ExitBySignal =?= False && (ExitCode =?= 0 || ExitCode =?= {STOPPED})"
    commands: dict[str, object] = {
        "universe": "vanilla",
        "executable": _plain(address.python),
        "transfer_executable": "False",
        "arguments": '"-m mtask_condor.node $(Process)"',
        "environment": f'"PYTHONPATH={_word(":".join(address.path))} PYTHONUNBUFFERED=1 MTASK_NOTICES=off"',
        "initialdir": _plain(str(batch.path)),
        "transfer_input_files": "order.json, $(Process).in, $(Process).out",
        "transfer_output_files": "$(Process).out",
        "should_transfer_files": "YES",
        "when_to_transfer_output": "ON_EXIT_OR_EVICT",
        "error": "$(Process).err",
        "log": "log",
        "max_idle": MOST_IDLE,
        "notification": "never",
        "batch_name": f"mtask-{address.name}-{head.bag}",
        "priority": lane.priority,
        "job_max_vacate_time": math.ceil(address.grace_s),
        "job_lease_duration": max(LEAST_LEASE_S, math.ceil(batch.order.bag.spec.lease_s)),
        "on_exit_remove": "ExitBySignal =?= False && ExitCode =?= 0",
        "on_exit_hold": f"ExitBySignal =?= False && !({ends})",
        "on_exit_hold_reason": 'strcat("the worker ended with status ", ExitCode, " on ", LastRemoteHost ?: RemoteHost)',
        "requirements": requirements_of(lane, head.due_at),
        "request_cpus": math.ceil(lane.requires.cpus),
        "My.MtaskQueue": quoted(address.name),
        "My.MtaskFolder": quoted(str(address.folder)),
        "My.MtaskBag": quoted(head.uid),
        "My.MtaskGeneration": head.generation,
        "My.MtaskBatch": quoted(batch.id),
        "My.MtaskNeeds": quoted(str(lane.requires)),
    }
    if lane.requires.memory_bytes:
        commands["request_memory"] = math.ceil(lane.requires.memory_bytes / 2**20) + WORKER_MIB
    if lane.requires.gpus:
        commands["request_gpus"] = lane.requires.gpus
    if address.disk_kib is not None:
        commands["request_disk"] = address.disk_kib
    lines = [f"{name} = {value}" for name, value in commands.items() if value != ""]
    return "\n".join([*lines, f"queue {batch.count}"])


def requirements_of(lane: Lane, due_at: float) -> str:
    """As a ClassAd expression; machines say in MtaskTags what they have."""
    parts = [f"time() >= {math.ceil(due_at)}"] if due_at else []
    for tag in lane.requires.tags:
        has = _has(tag.removeprefix("!"))
        parts.append(f"!{has}" if tag.startswith("!") else has)
    if lane.requires.only_on:
        parts.append(f"({' || '.join(map(_has, lane.requires.only_on))})")
    return " && ".join(parts)


def _has(tag: str) -> str:
    # Not stringListMember: only daemons know that, and nobody could test the expression elsewhere.
    word = quoted(f"(^|[, ]){re.escape(tag)}([, ]|$)")
    return f'regexp({word}, TARGET.MtaskTags ?: "")'


def quoted(text: str) -> str:
    """As a string of ClassAds, within a submit description or a constraint."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{_plain(escaped)}"'


def _plain(text: str) -> str:
    """As it is, in a submit description: a dollar sign would begin a macro."""
    return text.replace("\n", " ").replace("$(", "$(DOLLAR)(")


def _word(text: str) -> str:
    """A word of an `environment` or `arguments` in double quotes."""
    return "'" + _plain(text).replace("'", "''").replace('"', '""') + "'"
