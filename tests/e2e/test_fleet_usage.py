"""`mtask fleet` before anything is started: what is refused, and where no pool is."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import pytest

from tests.servers.process import missing

UP = ("fleet", "up", "condor", "--workers", "3")


@pytest.fixture(autouse=True)
def no_pool(monkeypatch, tmp_path):
    if importlib.util.find_spec("htcondor2") is None:
        missing("the client of HTCondor", "pip install htcondor")
    config = tmp_path / "condor_config"
    config.write_text(f"CONDOR_HOST = 127.0.0.1:9\nLOCAL_DIR = {tmp_path}\nLOG = {tmp_path}\n")
    monkeypatch.setenv("CONDOR_CONFIG", str(config))


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("fleet", "up", "mars", "--workers", "3"), "there are no fleets on 'mars'; there are on condor"),
        (("fleet", "up", "condor"), "Missing option '--workers'"),
        ((*UP, "--min", "4"), "the least number of workers (4) must be from 0 to the most (3)"),
        ((*UP, "--env", "PASSWORD=secret"), "--env takes the name alone (PASSWORD)"),
        ((*UP, "--env", "NOT_SET_HERE"), "--env NOT_SET_HERE: that variable isn't set here"),
        ((*UP, "--ship", "--image", "x.sif"), "an image has mtask in it already"),
        ((*UP, "--checkpoints", "ftp://me:secret@host/x"), "a password in --checkpoints would be seen"),
        ((*UP, "--name", "../x"), "'../x' can't be the name of a fleet"),
        (("fleet", "status"), "there is no fleet 'fleet' in "),
        (("fleet", "down", "--name", "other"), "there is no fleet 'other' in "),
    ],
)
def test_what_makes_no_sense(command, args, said):
    code, out, err = command.process(*args)
    assert code == 2
    assert said in err
    assert "secret" not in err
    assert out == ""
    assert not list(Path(".mtask").rglob("environment.json"))


def test_condor_as_the_queue_needs_no_fleet(command):
    code, _, err = command.process(*UP, "--queue", "condor:///reads", "--table", "sqlite:///t.db")
    assert code == 2
    assert "HTCondor starts a job for each of its messages by itself" in err
    assert "`mtask fleet up` starts one" in command.process("fleet", "status").err


def test_no_schedd(command):
    code, _, err = command.process(*UP)
    assert code == 3
    assert "the schedd of this machine can't be found" in err
    assert "CONDOR_CONFIG says which pool is meant" in err
    code, _, err = command.process(
        "fleet", "up", "condor://submit.example.org", "--name", "b", "--workers", "3"
    )
    assert code == 3
    assert "Traceback" not in err


def test_a_fleet_is_at_one_place(command):
    command.write(".mtask/fleets/fleet/place", "condor://elsewhere")
    code, _, err = command.process(*UP)
    assert code == 2
    assert "the fleet 'fleet' is on condor://elsewhere" in err


def test_passwords_are_hidden_and_relative_paths_are_not_left_relative(command, monkeypatch):
    from mtask.cli.fleet import _environment
    from mtask.settings import Urls

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "k")
    found = _environment(Urls("sqs://eu-west-1/a", "sqlite:///a.db"), [])
    assert found["AWS_SECRET_ACCESS_KEY"] == "k"
    assert found["MTASK_TABLE"] == f"sqlite:///{os.getcwd()}/a.db"
    assert json.loads(json.dumps(found)) == found
