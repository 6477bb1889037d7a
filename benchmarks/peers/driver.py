"""Starts what a peer needs, has it measured, and ends everything."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.measure import ROOT
from benchmarks.peers.catalog import load
from benchmarks.peers.environments import python_of
from benchmarks.peers.measuring import Options
from benchmarks.peers.peer import WORKLOADS, Peer
from benchmarks.peers.processes import Processes
from benchmarks.peers.servers import SERVERS

__all__ = ["Outcome", "run_peer"]


@dataclass
class Outcome:
    """What is known of a peer after its turn."""

    peer: Peer
    figures: list[dict[str, Any]] = field(default_factory=list)
    """As measuring.py printed them, in that order."""
    versions: dict[str, str] = field(default_factory=dict)
    why: str = ""
    """Not empty if it was skipped or stopped before its end. What it had shown by then counts."""
    details: str = ""
    """The end of what its processes have printed, if it was stopped."""
    took_s: float = 0.0

    def of(self, workload: str, key: str) -> list[float]:
        return [figure[key] for figure in self.figures if figure["workload"] == workload and key in figure]

    def as_json(self) -> dict[str, object]:
        summary: dict[str, object] = {}
        for workload in WORKLOADS:
            for key in ("rate", "p50_ms", "p95_ms"):
                if values := self.of(workload, key):
                    summary[f"{workload}_per_s" if key == "rate" else f"{workload}_{key}"] = {
                        "median": statistics.median(values),
                        "lowest": min(values),
                        "highest": max(values),
                        "all": values,
                        "tasks": int(self.of(workload, "tasks")[0]),
                    }
        described = {key: value for key, value in vars(self.peer).items() if value}
        return {
            **described,
            "versions": self.versions,
            "measured": summary,
            "took_s": self.took_s,
            "why": self.why,
            "details": self.details,
        }


def run_peer(module: str, peer: Peer, cache: Path, options: Options, timeout_s: float) -> Outcome:
    """Never raises for what goes wrong with the peer: that is told in the outcome."""
    outcome = Outcome(peer, why=", ".join(missing(peer)))
    if outcome.why:
        return outcome
    began_s = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="mtask-peers-", ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary)
        folder.chmod(0o755)  # for servers that run as a user of their own
        for name in ("logs", "work"):
            (folder / name).mkdir()
        with Processes(folder / "logs") as processes:
            try:
                python = python_of(module, load(module), cache)
                environment = {
                    **os.environ,
                    "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
                    "PYTHONPATH": str(ROOT),
                    "MTASK_PEERS_FOLDER": str(folder / "work"),
                    **start_servers(peer, processes, folder, outcome),
                }
                begin = [str(python), "-m", "benchmarks.peers.measuring"]
                for _ in range(peer.workers):
                    processes.start([*begin, "worker", module, peer.name], environment)
                client = processes.start(
                    [*begin, "client", module, peer.name, json.dumps(asdict(options))],
                    environment,
                    stdout=subprocess.PIPE,
                )
                read(client, processes, outcome, timeout_s)
            except (RuntimeError, OSError, subprocess.SubprocessError) as error:
                outcome.why = str(error).splitlines()[0]
            if outcome.why:
                outcome.details = processes.said()
    outcome.took_s = round(time.perf_counter() - began_s, 1)
    return outcome


def missing(peer: Peer) -> Iterable[str]:
    for program in peer.programs:
        if not shutil.which(program):
            yield f"{program} is not installed"
    for name in peer.servers:
        if not SERVERS[name].program():
            yield f"{name} is not installed (Debian's {SERVERS[name].package})"


def start_servers(peer: Peer, processes: Processes, folder: Path, outcome: Outcome) -> dict[str, str]:
    addresses = {}
    for name in peer.servers:
        own = folder / name
        own.mkdir()
        addresses[f"MTASK_PEERS_{name.upper()}"] = SERVERS[name].start(processes, own)
        outcome.versions[name] = f"{SERVERS[name].version()} ({SERVERS[name].settings})"
    return addresses


def read(client: subprocess.Popen[bytes], processes: Processes, outcome: Outcome, timeout_s: float) -> None:
    """Take the client's lines until it ends, or all is ended because its time is over."""
    late = threading.Event()

    def end() -> None:
        late.set()
        processes.kill()  # children of the client, too: they may hold the other end of the pipe

    timer = threading.Timer(timeout_s, end)
    timer.start()
    try:
        assert client.stdout is not None
        with client.stdout:
            for line in client.stdout:
                figure = json.loads(line)
                if "versions" in figure:
                    outcome.versions = figure["versions"] | outcome.versions
                else:
                    outcome.figures.append(figure)
        status = client.wait()
    finally:
        timer.cancel()
    if late.is_set():
        outcome.why = f"stopped after {timeout_s:.0f} s"
    elif status:
        outcome.why = f"failed with status {status}"
