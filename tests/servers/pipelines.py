"""Workflow engines in environments of their own, below .servers/: Snakemake, and Pegasus' Python part."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.servers.process import missing

SERVERS = Path(__file__).parents[2] / ".servers"


@pytest.fixture(scope="session")
def snakemake() -> str:
    """The program."""
    program = SERVERS / "snakemake/bin/snakemake"
    if not program.exists():
        missing("snakemake", "`make servers` does it")
    return str(program)


@pytest.fixture(scope="session")
def pegasus() -> str:
    """The interpreter that has the package Pegasus, with its API and pegasus-exitcode; not its planner."""
    python = SERVERS / "pegasus/bin/python"
    if not python.exists():
        missing("pegasus-wms", "`make servers` does it")
    return str(python)
