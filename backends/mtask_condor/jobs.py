"""Talks to HTCondor: submits, asks about, and removes jobs.

The commands of a submit description: HTCondor Manual, "condor_submit"; attributes of jobs: "Job ClassAd Attributes";
of machines: "Machine ClassAd Attributes".
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from mtask.requirements import Lane
from mtask_condor.address import Address
from mtask_condor.batch import Batch
from mtask_condor.order import STOPPED
from mtask_condor.schedd import Schedd, description, plain, quoted, word

__all__ = ["Jobs", "quoted", "requirements_of"]

MOST_IDLE = 200
"""Of a batch, so many jobs wait in the schedd's memory; the others become jobs when these have started."""
WORKER_MIB = 64
"""What the worker itself takes beside its task."""
LEAST_LEASE_S = 20


class Jobs:
    """The schedd's side of a queue; safe to call from any thread."""

    def __init__(self, address: Address) -> None:
        self._address, self._schedd = address, Schedd(address.schedd, address.pool)

    def submit(self, batch: Batch) -> int:
        """The number of the new cluster."""
        return self._schedd.submit(_description(self._address, batch))

    def ads(self, constraint: str, attributes: Sequence[str]) -> list[dict[str, Any]]:
        """Of jobs and of clusters; the latter have no ProcId."""
        wanted = ["ClusterId", "ProcId", *attributes]
        found = self._schedd.ads(constraint, attributes, clusters=True)
        return [{name: ad[name] for name in wanted if name in ad} for ad in found]

    def schedd(self) -> str:
        """Its full name."""
        return self._schedd.full_name()

    def remove(self, constraint: str, why: str) -> None:
        """Jobs, and what would become jobs."""
        self._schedd.remove(constraint, why)

    def machines(self) -> list[dict[str, Any]]:
        """What each offers when nothing runs on it."""
        resources = (f"TotalSlot{name}" for name in ("Cpus", "Memory", "Disk", "GPUs"))
        wanted = ["Machine", *resources, "MtaskTags"]
        return [{name: ad[name] for name in wanted if name in ad} for ad in self._schedd.machines(wanted)]

    def user(self) -> str:
        """As whom the schedd sees this process, and whom the jobs belong to."""
        return self._schedd.user()


def _description(address: Address, batch: Batch) -> str:
    head, lane = batch.head, batch.lane
    ends = f"ExitBySignal =?= False && (ExitCode =?= 0 || ExitCode =?= {STOPPED})"
    commands: dict[str, object] = {
        "universe": "vanilla",
        "executable": plain(address.python),
        "transfer_executable": "False",
        "arguments": '"-m mtask_condor $(Process)"',
        "environment": f'"PYTHONPATH={word(":".join(address.path))} PYTHONUNBUFFERED=1 MTASK_NOTICES=off"',
        "initialdir": plain(str(batch.path)),
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
    if batch.order.table is not None:
        commands["encrypt_input_files"] = "order.json"
    if lane.requires.memory_bytes:
        commands["request_memory"] = math.ceil(lane.requires.memory_bytes / 2**20) + WORKER_MIB
    if lane.requires.gpus:
        commands["request_gpus"] = lane.requires.gpus
    if address.disk_kib is not None:
        commands["request_disk"] = address.disk_kib
    return description(commands, batch.count)


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
