"""The jobs of a fleet: what they are, and which must come or go. Knows no client of HTCondor's.

The commands of a submit description: HTCondor Manual, "condor_submit"; attributes of jobs: "Job ClassAd Attributes".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from mtask.fleet import FleetSpec
from mtask_condor.schedd import description, plain, quoted, word

__all__ = [
    "HELD",
    "LEAVING",
    "RUNNING",
    "WAITING",
    "Pilot",
    "Plan",
    "keeper_job",
    "pilot_jobs",
    "plan",
    "state_of",
]

WAITING, RUNNING, HELD, LEAVING = "waiting", "running", "held", "leaving"
_STATES = {1: WAITING, 2: RUNNING, 5: HELD, 6: RUNNING, 7: RUNNING}
WORKER_MIB = 64
"""What the worker itself takes beside its tasks."""
MARGIN_S = 10
"""Between the end of a worker's grace and SIGKILL."""
OVERDUE_S = 600
"""A pilot that is still there so long after its --max-runtime is removed."""
TRY_AGAIN_S, MOST_HOLDS = 600, 3
"""A pilot that failed on a node is tried elsewhere after so long, so many times: some nodes are just broken."""
NO_PYTHON = 71
"""Exit status of pilot.sh."""


def state_of(job_status: int) -> str:
    return _STATES.get(job_status, LEAVING)


class Pilot(NamedTuple):
    """A job that is a worker, will be, or was."""

    cluster: int
    proc: int
    state: str
    steady: bool
    """It doesn't end when there is nothing to do."""
    settings: str
    """The mark of those it was submitted with."""

    @property
    def id(self) -> str:
        return f"{self.cluster}.{self.proc}"


class Plan(NamedTuple):
    """What is to be done."""

    remove: list[Pilot]
    steady: int = 0
    """To submit."""
    elastic: int = 0


def plan(pilots: Sequence[Pilot], wanted: int, least: int, most: int, settings: str) -> Plan:
    """`wanted` lies between `least` and `most`. Held pilots count: whatever broke them would break others, too.

    Nobody who works is removed because there is less to do: elastic pilots end by themselves when they are idle.
    """
    present = [pilot for pilot in pilots if pilot.state != LEAVING]
    fresh = [
        each for each in present if each.settings == settings or (each.state == RUNNING and not each.steady)
    ]
    remove = [pilot for pilot in present if pilot not in fresh]

    steady = _busiest_first(pilot for pilot in fresh if pilot.steady)
    elastic = _busiest_first(pilot for pilot in fresh if not pilot.steady)
    remove += steady[least:] + elastic[most - least :]
    elastic = elastic[: most - least]
    remove += [pilot for pilot in elastic[wanted - least :] if pilot.state == WAITING]
    return Plan(remove, max(0, least - len(steady)), max(0, wanted - least - len(elastic)))


def _busiest_first(pilots: Iterable[Pilot]) -> list[Pilot]:
    order = {RUNNING: 0, HELD: 1, WAITING: 2}
    return sorted(pilots, key=lambda pilot: (order[pilot.state], pilot.cluster, pilot.proc))


def pilot_jobs(folder: Path, spec: FleetSpec, settings: str, python: str, count: int, *, steady: bool) -> str:
    """The description of so many pilots. `python`: what a shipped package asks for, or `any`."""
    named = [spec.python] if spec.python else _usual(python)
    code = ", code.tar.gz" if (folder / "code.tar.gz").exists() else ""
    failed = "ExitBySignal =?= False && ExitCode =!= 0"
    commands: dict[str, object] = {
        "universe": "vanilla",
        "executable": plain(str(folder / "pilot.sh")),
        "transfer_executable": "True",
        "arguments": '"' + " ".join(map(word, ["steady" if steady else "elastic", python, *named])) + '"',
        "initialdir": plain(str(folder)),
        "transfer_input_files": f"pilot.py, pilot.json, environment.json{code}",
        "encrypt_input_files": "environment.json",
        "transfer_output_files": '""',
        "should_transfer_files": "YES",
        "when_to_transfer_output": "ON_EXIT",
        "output": "/dev/null",
        "error": "errors/$(Cluster).$(Process)",
        "notification": "never",
        "batch_name": f"mtask-fleet-{spec.name}",
        "kill_sig": "SIGTERM",
        "want_graceful_removal": "True",
        "job_max_vacate_time": math.ceil(spec.grace_s) + MARGIN_S,
        "job_lease_duration": max(20, math.ceil(spec.lost_after_s)),
        "on_exit_remove": "ExitBySignal =?= False && ExitCode =?= 0",
        "on_exit_hold": failed,
        "on_exit_hold_reason": f'strcat(ExitCode =?= {NO_PYTHON} ? "no Python that fits" : '
        'strcat("the worker ended with status ", ExitCode), " on ", LastRemoteHost ?: (RemoteHost ?: "some node"))',
        "periodic_release": f"HoldReasonCode =?= 3 && NumHolds <= {MOST_HOLDS} && "
        f"time() - EnteredCurrentStatus > {TRY_AGAIN_S}",
        "requirements": spec.require,
        "request_cpus": math.ceil(spec.cpus),
        "My.MtaskFleet": quoted(spec.name),
        "My.MtaskFleetFolder": quoted(str(folder)),
        "My.MtaskSteady": steady,
        "My.MtaskSettings": quoted(settings),
    }
    if spec.max_runtime_s is not None:
        late_s = math.ceil(spec.max_runtime_s + spec.grace_s) + OVERDUE_S
        commands["periodic_remove"] = f"JobStatus == 2 && time() - EnteredCurrentStatus > {late_s}"
    if spec.memory_bytes:
        commands["request_memory"] = math.ceil(spec.memory_bytes / 2**20) + WORKER_MIB
    if spec.gpus:
        commands["request_gpus"] = spec.gpus
    if spec.disk_bytes:
        commands["request_disk"] = math.ceil(spec.disk_bytes / 1024)
    if spec.image:
        commands["container_image"] = plain(spec.image)
    return description(commands, count)


def keeper_job(place: str, folder: Path, spec: FleetSpec, python: str, environment: dict[str, str]) -> str:
    """The description of the job that keeps the number of pilots: it runs on the schedd's machine, as DAGMan does, and
    the schedd starts it again whenever it is gone."""
    variables = " ".join(f"{name}={word(value)}" for name, value in environment.items())
    commands: dict[str, object] = {
        "universe": "scheduler",
        "executable": plain(python),
        "transfer_executable": "False",
        "arguments": f'"-m mtask_condor.keeper {word(place)} {word(str(folder))}"',
        "environment": f'"{variables}"',
        "initialdir": plain(str(folder)),
        "output": "/dev/null",
        "error": "keeper.err",
        "notification": "never",
        "batch_name": f"mtask-fleet-{spec.name}",
        "remove_kill_sig": "SIGTERM",
        "on_exit_remove": "ExitBySignal =?= False && ExitCode =?= 0",
        "on_exit_hold": "ExitBySignal =?= False && ExitCode =!= 0",
        "on_exit_hold_reason": 'strcat("the keeper ended with status ", ExitCode)',
        "My.MtaskFleet": quoted(spec.name),
        "My.MtaskFleetKeeper": quoted(str(folder)),
    }
    return description(commands, 1)


def worker_options(spec: FleetSpec) -> dict[str, list[str]]:
    """What pilots call `mtask worker` with; `elastic` ones add theirs."""
    options: list[str] = ["-j", str(spec.slots), "--cpus", f"{spec.cpus:g}", "--grace", f"{spec.grace_s:g}"]
    if spec.memory_bytes:
        options += ["--memory", str(spec.memory_bytes)]
    if not spec.gpus:
        options += ["--gpus", "0"]
    if spec.max_runtime_s is not None:
        options += ["--max-runtime", f"{spec.max_runtime_s:g}"]
    if spec.checkpoints:
        options += ["--checkpoints", spec.checkpoints]
    return {"worker": options, "elastic": ["--idle-exit", f"{spec.idle_exit_s:g}"]}


def pilot_order(spec: FleetSpec) -> bytes:
    """What pilot.py reads."""
    path = [] if spec.image or spec.shipped else list(spec.path)
    return msgspec.json.encode({**worker_options(spec), "tags": list(spec.tags), "path": path})


def _usual(python: str) -> list[str]:
    """Names under which Python is found."""
    version = python.split("-")[1] if "-" in python else ""
    newer = [f"python3.{minor}" for minor in (14, 13, 12, 11)]
    return [f"python{version}", "python3"] if version else ["python3", *newer]
