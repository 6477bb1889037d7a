"""How many workers a fleet should have, and which jobs come and go for that: pure functions, and pilot.sh itself."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtask.errors import UsageError
from mtask.fleet import Backlog, FleetSpec, Load, backlog_of, check_name, workers_for
from mtask.manager import connect
from mtask.registry import open_fleet
from mtask.requirements import Requirements
from mtask.shipping import python_here
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
)

PILOT = Path(__file__).parents[2] / "backends/mtask_condor/pilot.sh"


def spec_of(**fields) -> FleetSpec:
    return FleetSpec(name="f", **{"most": 100, **fields})


@pytest.mark.parametrize(
    ("fields", "loads", "wanted"),
    [
        ({}, [], 0),
        ({"least": 2}, [], 2),
        ({}, [Load(7, Requirements())], 7),
        ({"most": 5}, [Load(7, Requirements())], 5),
        ({"slots": 4, "cpus": 4.0}, [Load(7, Requirements())], 2),
        ({"slots": 4, "cpus": 4.0}, [Load(7, Requirements(cpus=2))], 4),
        ({"slots": 4, "cpus": 4.0}, [Load(1, Requirements()), Load(1, Requirements(cpus=2))], 1),
        ({"slots": 8, "cpus": 1.0}, [Load(80, Requirements(cpus=0.1))], 10),
        ({"slots": 4, "cpus": 4.0, "memory_bytes": 8}, [Load(4, Requirements(memory_bytes=4))], 2),
        ({"slots": 4, "cpus": 4.0, "gpus": 1}, [Load(4, Requirements(gpus=1))], 4),
        ({}, [Load(50, Requirements(), 3)], 3),
    ],
)
def test_each_message_has_a_slot(fields, loads, wanted):
    assert workers_for(spec_of(**fields), Backlog(tuple(loads))) == wanted


def test_the_backlog_is_what_its_workers_can_do(tmp_path):
    with connect(f"sqlite:///{tmp_path}/t.db") as manager:
        rows = [{"x": x} for x in range(6)]
        manager.submit(rows, run="echo {x}", bag="small", per_message=1)
        manager.submit(rows[:4], run="echo {x}", bag="big", per_message=1, cpus=4)
        manager.submit(rows[:3], run="echo {x}", bag="blast", per_message=1, tags="blast")
        manager.queue.receive(max_messages=2, lease_s=60, wait_s=1)
        one = backlog_of(manager.queue, manager.table, spec_of().can)
        assert (one.messages, sum(load.messages for load in one.unserved)) == (6, 7)
        both = backlog_of(manager.queue, manager.table, spec_of(cpus=4.0, slots=4, tags=("blast",)).can)
        assert (both.messages, both.unserved) == (13, ())


pilots = st.lists(
    st.builds(
        Pilot,
        cluster=st.integers(1, 3),
        proc=st.integers(0, 9),
        state=st.sampled_from([RUNNING, WAITING, HELD, LEAVING]),
        steady=st.booleans(),
        settings=st.sampled_from(["new", "old"]),
    ),
    max_size=12,
    unique_by=lambda pilot: pilot.id,
)


@given(pilots, st.integers(0, 6), st.integers(0, 6), st.integers(0, 8))
def test_a_plan_leads_to_the_number_and_kills_no_work(before, least, more, wanted):
    most = max(1, least + more)
    wanted = max(least, min(most, wanted))
    todo = plan(before, wanted, least, most, "new")
    gone = set(todo.remove)
    assert len(gone) == len(todo.remove)
    assert not [pilot for pilot in gone if pilot.state == LEAVING], "it is going already"
    new = [Pilot(9, n, WAITING, n < todo.steady, "new") for n in range(todo.steady + todo.elastic)]
    after = [pilot for pilot in before if pilot not in gone and pilot.state != LEAVING] + new
    count = Counter(pilot.steady for pilot in after)
    assert count[True] == least
    assert wanted <= len(after) <= most
    assert all(pilot.settings == "new" for pilot in after if pilot.state != RUNNING or pilot.steady)
    working = [pilot for pilot in before if pilot.state == RUNNING and not pilot.steady]
    if len(working) <= most - least:
        assert not gone & set(working), "who works is let alone"
    if len(after) > wanted:
        assert all(pilot.state != WAITING for pilot in after if not pilot.steady), "nobody waits for nothing"
    assert plan(after, wanted, least, most, "new") == ([], 0, 0), "then there is nothing to do"


def test_held_pilots_are_not_replaced():
    held = [Pilot(1, n, HELD, False, "s") for n in range(4)]
    assert plan(held, 4, 0, 10, "s") == ([], 0, 0)


def test_jobs_say_nothing_secret_and_quote_what_is_odd(tmp_path):
    folder = tmp_path / "it's $(odd)"
    spec = spec_of(
        cpus=1.5, memory_bytes=2**30, tags=("a",), require='TARGET.Arch == "X86_64"', python="/opt/p y"
    )
    text = pilot_jobs(folder, spec, "mark", "any", 3, steady=False)
    lines = dict(line.partition(" = ")[::2] for line in text.splitlines())
    assert lines["request_cpus"] == "2"
    assert lines["request_memory"] == str(1024 + 64)
    assert lines["arguments"] == "\"'elastic' 'any' '/opt/p y'\""
    assert "$(odd)" not in text
    assert lines["encrypt_input_files"] == "environment.json"
    assert text.endswith("queue 3")
    assert "environment =" not in text
    keeper = keeper_job("condor", folder, spec, "/usr/bin/python3", {"PATH": "/a b"})
    assert "environment = \"PATH='/a b'\"" in keeper


def test_what_a_worker_is_called_with():
    order = msgspec.json.decode(pilot_order(spec_of(slots=2, cpus=2.0, max_runtime_s=3600.0, path=("/x",))))
    assert order["worker"] == [
        "-j",
        "2",
        "--cpus",
        "2",
        "--grace",
        "30",
        "--gpus",
        "0",
        "--max-runtime",
        "3600",
    ]
    assert (order["elastic"], order["path"]) == (["--idle-exit", "60"], ["/x"])
    assert msgspec.json.decode(pilot_order(spec_of(path=("/x",), shipped=True)))["path"] == []


def test_names_places_and_numbers_that_make_no_sense(tmp_path):
    for name in ("", "../up", "-x", "ä", "a b"):
        with pytest.raises(UsageError, match="name of a fleet"):
            check_name(name)
    with pytest.raises(UsageError, match="there are no fleets on 'mars'; there are on condor"):
        open_fleet("mars", tmp_path)
    with pytest.raises(UsageError, match="has no fleet"):
        open_fleet("sqlite:///x.db", tmp_path)
    with pytest.raises(UsageError, match=r"not a place.*condor://SCHEDD"):
        open_fleet("condor://a/b", tmp_path)
    with pytest.raises(ValueError, match=r"least number of workers \(3\)"):
        spec_of(least=3, most=2)


def run_pilot(folder: Path, wanted: str, *pythons: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", str(PILOT), "elastic", wanted, *pythons],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": f"{folder}:/usr/bin:/bin"},
    )


def fake(folder: Path, name: str, body: str) -> str:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return name


def test_pilot_says_why_no_python_will_do(tmp_path):
    old = fake(tmp_path, "old", 'case $2 in *"< (3, 11)"*) exit 1;; esac; echo CPython-3.6-x86_64')
    broken = fake(tmp_path, "broken", "echo 'lib missing' >&2; exit 127")
    other = fake(tmp_path, "other", "case $2 in *print*) echo CPython-3.13-x86_64;; esac")
    done = run_pilot(tmp_path, "CPython-3.11-x86_64", "none", old, broken, other)
    assert done.returncode == 71
    assert done.stderr.strip() == (
        f"no Python that fits on {platform.node()}; there is no none; {tmp_path}/old is CPython-3.6-x86_64, too old: "
        f"mtask needs Python 3.11; {tmp_path}/broken doesn't run: lib missing; {tmp_path}/other is CPython-3.13-x86_64, "
        "and what was shipped is for CPython-3.11-x86_64"
    )


def test_pilot_takes_the_first_python_that_fits(tmp_path):
    (tmp_path / "pilot.py").write_text("import sys; print(sys.executable, sys.argv[1:])")
    old = fake(tmp_path, "old", 'case $2 in *"< (3, 11)"*) exit 1;; esac; echo CPython-3.6-x86_64')
    done = run_pilot(tmp_path, python_here(), old, sys.executable, "python3")
    assert (done.returncode, done.stdout) == (0, f"{sys.executable} ['elastic']\n"), done.stderr


def test_pilot_becomes_a_worker_with_its_secrets_and_the_tags_of_its_machine(tmp_path):
    source = PILOT.with_name("pilot.py").read_text()
    (tmp_path / "pilot.py").write_text(source)
    stand_in = tmp_path / "lib/mtask/__main__.py"
    stand_in.parent.mkdir(parents=True)
    stand_in.with_name("__init__.py").touch()
    stand_in.write_text("import os, sys; print(sys.argv[1:], os.environ['URL'], os.getpid())")
    order = {
        "worker": ["-j", "1"],
        "elastic": ["--idle-exit", "5"],
        "tags": ["a"],
        "path": [str(tmp_path / "lib")],
    }
    (tmp_path / "pilot.json").write_bytes(msgspec.json.encode(order))
    (tmp_path / "ad").write_text('Cpus = 1\nMtaskTags = "b, c"\n')
    for kind, more in (("steady", []), ("elastic", ["--idle-exit", "5"])):
        (tmp_path / "environment.json").write_text('{"URL": "amqp://secret"}')
        process = subprocess.Popen(
            [sys.executable, "pilot.py", kind],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"_CONDOR_MACHINE_AD": str(tmp_path / "ad")},
        )
        said = process.communicate(timeout=60)[0]
        args = ["worker", "-j", "1", *more, "--tags", "a,b,c"]
        assert said == f"{args} amqp://secret {process.pid}\n", "the process that HTCondor knows"
        assert not (tmp_path / "environment.json").exists()


def test_what_is_said_to_install_can_be_installed():
    """pip only warns of an extra that isn't there, and goes on without it."""
    root = Path(__file__).parents[2]
    known = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    files = [*(root / "condor").glob("*"), *(root / "docs").rglob("*.md"), root / "README.md"]
    texts = [path.read_text() for path in files if path.is_file()]
    named = {
        name
        for text in texts
        for found in re.findall(r"mtask\[([a-z,]+)\]", text)
        for name in found.split(",")
    }
    assert {"condor", "postgres"} <= named
    assert named <= set(known)
