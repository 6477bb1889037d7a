"""The command itself: quick to start, whole in its help, completing in the shell."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mtask.cli import VERBS
from mtask.cli.common import DEFAULT_PATH
from mtask.settings import DEFAULT_URL

HEAVY = {
    "asyncio", "boto3", "cloudpickle", "concurrent.futures", "ctypes", "importlib.metadata", "msgspec", "multiprocessing",
    "numpy", "pandas", "pyarrow", "rich", "sqlite3", "subprocess", "mtask.model", "mtask.manager", "mtask_sqlite",
}  # fmt: skip


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["run", "--help"], ["worker", "-h"]])
def test_help_imports_nothing_heavy(args):
    unmeasured = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "mtask", *args],
        capture_output=True,
        text=True,
        timeout=60,
        env=unmeasured,
    )
    assert done.returncode == 0
    imported = {
        line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "import time:" in line
    }
    assert "mtask.cli" in imported
    assert imported & HEAVY == set()


def test_the_first_line_of_each_verb_is_shown_whole(command):
    out = command("--help").out
    listed = re.findall(r"^  (\w+) +(\w.*)$", out[out.index("Commands:") :], re.MULTILINE)
    assert [verb for verb, _ in listed] == list(VERBS)
    assert all(line.endswith(".") and not line.endswith("...") for _, line in listed)


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb(command, verb):
    code, out, err = command(verb, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: mtask {verb}")
    assert "RANGE" not in out


def test_exit_codes_are_in_the_help(command):
    out = " ".join(command("--help").out.split())
    assert "0 all tasks done; 1 some failed; 2 wrong usage or input" in out
    assert "3 queue or table out of reach; 130 interrupted" in out


def test_no_verb_is_help(command):
    code, _, err = command()
    assert (code, "Commands:" in err) == (2, True)


def test_help_names_the_default_that_is_used():
    assert f"sqlite:///{DEFAULT_PATH}" == DEFAULT_URL


def test_the_installed_command(command):
    script = Path(sys.executable).with_name("mtask")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, timeout=60)
    assert re.fullmatch(r"mtask, version \d+\.\d+.*\n", done.stdout)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script(command, shell):
    code, out, _ = command("completion", shell)
    assert (code, "_MTASK_COMPLETE" in out) == (0, True)


def test_completion_in_bash(command):
    command.write("t.csv", "x\n1\n")
    command("submit", "t.csv", "--run", "echo {x}", "--bag", "june")
    script = command("completion", "bash").out
    # What bash does upon TAB: call the registered function with the words so far.
    script += """
complete -p mtask
press_tab() {
    COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
    _mtask_completion mtask
    echo "${COMPREPLY[*]}"
}
press_tab mtask st
press_tab mtask results j
press_tab mtask run t.csv --ti
"""
    bin_folder = Path(sys.executable).parent
    env = os.environ | {"PATH": f"{bin_folder}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "--norc"], input=script, capture_output=True, text=True, env=env, timeout=60
    )
    registered, *replies = done.stdout.splitlines()
    assert "-F _mtask_completion mtask" in registered
    assert replies == ["status", "june", "--timeout"]


def test_completion_never_prints_or_makes_a_database(command):
    env = {"_MTASK_COMPLETE": "bash_complete", "COMP_WORDS": "mtask results ", "COMP_CWORD": "2"}
    code, out, err = command.process(**env)
    assert (code, out.strip(), err) == (0, "", "")
    assert not (command.folder / ".mtask").exists()
