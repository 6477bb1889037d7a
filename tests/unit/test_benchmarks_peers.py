"""The comparison with peers: the driver with what needs no installation, and the descriptions of all."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.peers import driver
from benchmarks.peers.__main__ import main
from benchmarks.peers.catalog import MODULES, load, peers
from benchmarks.peers.driver import run_peer
from benchmarks.peers.measuring import Options
from benchmarks.peers.peer import WORKLOADS, Peer
from benchmarks.peers.servers import SERVERS

FEW = Options(tasks=20, commands=4, samples=2, repeats=1)


@pytest.fixture
def left_over(tmp_path, monkeypatch):
    """A function that tells the command lines of the processes that this test has started and not ended."""
    monkeypatch.setenv("MTASK_PEERS_TEST", str(tmp_path))

    def look() -> list[str]:
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if f"MTASK_PEERS_TEST={tmp_path}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.append((entry / "cmdline").read_text())
        return found

    return look


def test_baseline_and_mtask_are_measured(tmp_path):
    path = tmp_path / "figures.json"
    few = ["--tasks", "20", "--commands", "4", "--samples", "2", "--repeats", "1"]
    result = CliRunner().invoke(main, ["ProcessPoolExecutor", "mtask-run", *few, "--json", str(path)])
    assert result.exit_code == 0, result.output
    data = json.loads(path.read_text())
    command, pool = data["peers"]
    assert [command["name"], pool["name"]] == ["mtask-run", "ProcessPoolExecutor"]  # the catalog's order
    assert not command["why"] + pool["why"], data
    assert sorted(command["measured"]) == ["commands_per_s", "functions_per_s"]
    assert pool["measured"]["functions_per_s"]["tasks"] == 20
    assert pool["measured"]["functions_per_s"]["median"] > 0
    assert pool["measured"]["latency_p95_ms"]["median"] >= pool["measured"]["latency_p50_ms"]["median"] > 0
    assert pool["settings"]
    assert pool["versions"]["python"]
    assert "ProcessPoolExecutor" in result.output


def test_a_worker_is_started_and_ended(tmp_path, left_over):
    module, peer = peers()["mtask-service"]
    outcome = run_peer(module, peer, tmp_path, FEW, timeout_s=60)
    assert not outcome.why, outcome.details
    assert outcome.of("functions", "tasks") == [20]
    assert not left_over()


def test_a_peer_that_hangs_is_stopped(tmp_path, left_over):
    module, peer = peers()["mtask-service"]
    deaf = Peer(peer.name, settings="its worker is missing", durable="")
    outcome = run_peer(module, deaf, tmp_path, FEW, timeout_s=2)
    assert outcome.why == "stopped after 2 s"
    assert outcome.versions
    assert not outcome.figures
    assert not left_over()


def test_a_peer_that_fails_says_why(tmp_path, monkeypatch):
    module, peer = peers()["ProcessPoolExecutor"]
    broken = Peer("unknown", settings="", durable="")
    outcome = run_peer(module, broken, tmp_path, FEW, timeout_s=30)
    assert outcome.why == "failed with status 1"
    assert "Traceback" in outcome.details
    monkeypatch.setattr(driver, "python_of", lambda *_: (_ for _ in ()).throw(RuntimeError("pip can't")))
    assert run_peer(module, peer, tmp_path, FEW, timeout_s=30).why == "pip can't"


def test_what_is_missing_is_skipped(tmp_path):
    outcome = run_peer("parallel", Peer("x", "", "", programs=("no-such-program",)), tmp_path, FEW, 1)
    assert outcome.why == "no-such-program is not installed"


def test_all_modules_are_in_the_catalog():
    folder = Path(driver.__file__).parent
    assert {path.stem for path in folder.glob("*.py") if "\nPEERS = " in path.read_text()} == set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_a_peer_is_described(module):
    for peer in load(module).PEERS:
        assert peer.settings
        assert peer.durable
        assert set(peer.workloads) <= set(WORKLOADS)
        assert set(peer.servers) <= set(SERVERS)
        assert all("==" in requirement for requirement in peer.requirements)
        assert callable(load(module).client)
        assert not peer.workers or callable(load(module).worker)
