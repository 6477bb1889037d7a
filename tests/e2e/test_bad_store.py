"""A file or a disk that can't take the tasks: what is wrong, and nothing half-sent."""

from __future__ import annotations

import re
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

GOOD = "x,y\n1,2\n3,4\n"
CALL = ("--call", "m:add")


@pytest.fixture
def command(command):
    command.write("m.py", "def add(x: int, y: float = 1.0):\n    return x + y\n")
    command.write("good.csv", GOOD)
    return command


def refused(command, args, *fragments, code):
    outcome = command(*args)
    assert outcome.code == code, outcome
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    for fragment in fragments:
        assert fragment in outcome.err
    assert command.sent_nothing()
    return outcome.err


def test_a_database_of_a_newer_version(command):
    command("submit", "good.csv", *CALL, "--queue", "sqlite:///t.db")
    connection = sqlite3.connect("t.db")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    refused(
        command,
        ("submit", "good.csv", *CALL, "--queue", "sqlite:///t.db"),
        "t.db was made by a newer mtask",
        "upgrade",
        code=2,
    )


def test_a_file_of_something_else(command):
    refused(
        command,
        ("run", "good.csv", *CALL, "--queue", "sqlite:///good.csv"),
        "not an SQLite database",
        code=2,
    )
    assert command.read("good.csv") == GOOD


def test_a_folder_that_may_not_be_written(command):
    (command.folder / "locked").mkdir(mode=0o555)
    drop = ()
    if (probe := command.folder / "locked" / "probe") and _can_write(probe):
        drop = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override")
        if shutil.which("setpriv") is None or subprocess.run([*drop, "true"], capture_output=True).returncode:
            pytest.skip("root may write everywhere, and setpriv can't take that away here")
    code, out, err = command.process(
        "run", "good.csv", *CALL, "--queue", "sqlite:///locked/sub/t.db", before=drop
    )
    assert (code, out) == (2, "")
    assert "locked/sub/t.db" in err
    assert "Permission denied" in err
    assert "Traceback" not in err


def test_a_full_disk_stops_the_submit_and_the_same_command_goes_on(command, small_disk):
    url = f"sqlite:///{small_disk}/t.db"
    ballast = small_disk / "ballast"
    command.write("t.csv", "x,y\n" + "".join(f"{n},0.{n:0300}\n" for n in range(10_000)))
    with ballast.open("wb") as file:
        file.truncate(0)
        file.write(b"\0" * (15 << 20))
    code, out, err = command.process("submit", "t.csv", *CALL, "--queue", url)
    assert (code, out) == (2, "")
    assert re.search(r"full|space", err)
    assert "Traceback" not in err
    ballast.unlink()
    code, _, err = command.process("submit", "t.csv", *CALL, "--queue", url)
    assert code == 0, err
    connection = sqlite3.connect(small_disk / "t.db")
    rows = connection.execute("SELECT first, count FROM block ORDER BY first").fetchall()
    connection.close()
    assert [first for first, _ in rows] == [sum(n for _, n in rows[:i]) for i in range(len(rows))]
    assert sum(count for _, count in rows) == 10_000


def test_a_full_disk_leaves_no_half_of_an_output_file(command, small_disk):
    command.write("t.csv", "x,y\n" + "".join(f"{n},2\n" for n in range(100)))
    command("run", "t.csv", *CALL)
    with (small_disk / "ballast").open("wb", buffering=0) as file, pytest.raises(OSError, match="space"):
        while True:
            file.write(b"\0" * 4096)
    code, _, err = command.process("results", "t", "-o", f"{small_disk}/r.csv")
    assert (code, "can't write" in err, "space" in err) == (2, True, True)
    assert [path.name for path in small_disk.iterdir()] == ["ballast"]


def test_a_full_temporary_folder(command, small_disk):
    with (small_disk / "ballast").open("wb") as file:
        file.write(b"\0" * (15 << 20))
    command.write("t.csv", "text\n" + f"{'z' * 1000}\n" * 12_000)
    code, _, err = command.process("submit", "t.csv", "--run", "echo {text}", TMPDIR=str(small_disk))
    assert code == 2
    assert f"can't write the checked tasks to {small_disk}" in err
    assert "TMPDIR" in err
    assert command.sent_nothing()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """An empty file system of 16 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only root may mount a small tmpfs")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def _can_write(path: Path) -> bool:
    try:
        path.touch()
    except OSError:
        return False
    path.unlink()
    return True
