"""What is packed for workers elsewhere, and that it runs there."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from mtask import shipping
from mtask.errors import UsageError
from mtask.shipping import pack, python_here


@pytest.fixture
def work(tmp_path):
    folder = tmp_path / "work"
    for name, text in {
        "mine.py": "def double(x: int) -> int: return 2 * x",
        "package/__init__.py": "",
        "package/model.bin": "weights",
        "scripts/tool.py": "",
        "data.csv": "x\n1\n",
        ".hidden/a.py": "",
        "env/pyvenv.cfg": "",
        "env/lib/b.py": "",
        "__pycache__/mine.pyc": "",
        "mtask/__init__.py": "not ours",
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / ".#mine.py").symlink_to("someone@host.1234")  # as an editor locks a file
    (folder / "gone.py").symlink_to("nowhere")
    return folder


def names_in(archive: Path) -> set[str]:
    with tarfile.open(archive) as opened:
        return set(opened.getnames())


def test_modules_are_packed_and_nothing_else(work, tmp_path):
    shipped = pack(tmp_path / "a.tar.gz", work, packages=["mtask_sqlite"])
    assert set(shipped.modules) == {
        "mine.py", "package/__init__.py", "package/model.bin", "scripts/tool.py", "mtask/__init__.py",
    }  # fmt: skip
    names = names_in(tmp_path / "a.tar.gz")
    assert {
        "mtask/queue.py",
        "mtask_sqlite/schema.py",
        "click/core.py",
        "msgspec/__init__.py",
        "mine.py",
    } <= names
    assert not [
        name for name in names if name.startswith(("boto", "pytest", "data", ".hidden", "env", "/", ".."))
    ]
    assert shipped.python == python_here()
    assert shipped.size_bytes == (tmp_path / "a.tar.gz").stat().st_size


def test_the_same_makes_the_same(work, tmp_path, monkeypatch):
    pack(tmp_path / "a", work)
    (work / "mine.py").touch()
    monkeypatch.setattr("time.time", lambda: 1.0)  # a gzip header has a time in it
    pack(tmp_path / "b", work)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_extras_bring_their_client(work, tmp_path):
    pack(tmp_path / "a", work, extras=["aws"])
    assert {"boto3/__init__.py", "botocore/__init__.py", "jmespath/__init__.py"} <= names_in(tmp_path / "a")


def test_what_is_unpacked_runs_alone_and_ships_itself_on(work, tmp_path):
    pack(tmp_path / "a", work, packages=["mtask_sqlite"])
    with tarfile.open(tmp_path / "a") as opened:
        opened.extractall(tmp_path / "there", filter="data")
    (work / "tasks.csv").write_text("x\n1\n2\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("COV", "MTASK"))}
    environment["PYTHONPATH"] = str(tmp_path / "there")
    python = [sys.executable, "-S"]  # without site-packages

    def run(*args: str) -> str:
        done = subprocess.run(
            [*python, *args], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("-m", "mtask", "run", "work/tasks.csv", "--call", "mine:double", "-j", "1")
    assert '"done":2,' in run("-m", "mtask", "status", "tasks", "--json")
    again = "import sys; from pathlib import Path; from mtask.shipping import pack; "
    run("-c", again + f"pack(Path('b'), Path({str(work)!r}), packages=['mtask_sqlite'])")
    assert "mtask/queue.py" in names_in(tmp_path / "b")


def test_a_folder_that_is_too_big_is_refused(work, tmp_path, monkeypatch):
    monkeypatch.setattr(shipping, "MOST_BYTES", 20)
    with pytest.raises(UsageError, match=r"modules below .*work are more than 0 MB \(as .*mine.py\)"):
        pack(tmp_path / "a", work)
