"""An output is in its place whole or not at all; and what a stage holds, and lets go."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from mtask.model import UNKNOWN, Reason
from mtask.worker.child import stage as module
from mtask.worker.child.stage import Stage, StageError, put_whole


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.setenv("MTASK_CACHE", str(tmp_path / "cache"))
    return Stage(str(tmp_path / "stage"))


@pytest.mark.parametrize("nameless", [True, False])
def test_a_copy_that_breaks_off_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nameless: bool
) -> None:
    (tmp_path / "new").write_bytes(b"new")
    target = tmp_path / "out" / "x.tsv"
    if not nameless:
        monkeypatch.setattr(os, "O_TMPFILE", os.O_CREAT | os.O_EXCL)  # fails, for the folder is there
    put_whole(str(tmp_path / "new"), str(target))
    put_whole(str(tmp_path / "new"), str(target))
    assert target.read_bytes() == b"new"
    assert os.listdir(target.parent) == ["x.tsv"]

    def copyfileobj(_source: object, copy: object, _size: int) -> None:
        copy.write(b"h")  # type: ignore[attr-defined]
        assert target.read_bytes() == b"new"
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.shutil, "copyfileobj", copyfileobj)
    with pytest.raises(OSError, match="No space left"):
        put_whole(str(tmp_path / "new"), str(target))
    assert target.read_bytes() == b"new"
    assert os.listdir(target.parent) == ["x.tsv"]


def test_none_of_the_outputs_is_put_if_one_was_not_written(stage: Stage, tmp_path: Path) -> None:
    outputs = {"a": f"{tmp_path}/out/a", "b": f"{tmp_path}/out/b"}
    paths = stage.open({}, outputs)
    Path(paths["a"]).write_text("a")
    with pytest.raises(StageError, match=f"output 'b': the task wrote nothing to it, for {tmp_path}/out/b"):
        stage.put(outputs)
    Path(paths["b"]).mkdir()
    with pytest.raises(StageError, match="output 'b': the task made no file of it"):
        stage.put(outputs)
    assert not (tmp_path / "out").exists()
    stage.close()
    assert not (tmp_path / "stage").exists()


def test_a_link_that_leads_nowhere_fails_the_attempt_only(stage: Stage, tmp_path: Path) -> None:
    outputs = {"a": f"{tmp_path}/out/a"}
    paths = stage.open({}, outputs)
    os.symlink(tmp_path / "nowhere", paths["a"])
    with pytest.raises(StageError, match=r"output 'a': .*out/a: .*[Nn]o such file") as raised:
        stage.put(outputs)
    assert raised.value.staging.reason is Reason.STAGING


def test_no_room_for_the_folder_of_an_output_fails_the_attempt_only(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def makedirs(*_args: object, **_options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "makedirs", makedirs)
    with pytest.raises(StageError, match=r"output 'a': .*No space left") as raised:
        stage.open({}, {"a": f"{tmp_path}/out/a"})
    assert raised.value.staging.reason is Reason.STAGING


def test_sigterm_does_not_stop_what_is_being_put(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    paths = stage.open({}, {"a": f"{tmp_path}/out/a"})
    Path(paths["a"]).write_text("a")
    copy = shutil.copyfileobj

    def copyfileobj(*args: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        copy(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(shutil, "copyfileobj", copyfileobj)
    stage.put({"a": f"{tmp_path}/out/a"})
    assert (tmp_path / "out" / "a").read_text() == "a"
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_path_is_used_where_it_is(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "db").write_text("db")
    assert stage.open({"db": f"{tmp_path}/db"}, {}) == {"db": f"{tmp_path}/db"}
    assert not (tmp_path / "cache").exists()
    with pytest.raises(StageError, match=f"input 'db': {tmp_path}/nope: No such file") as caught:
        stage.open({"db": f"{tmp_path}/nope"}, {})
    assert caught.value.staging.reason is Reason.STAGING


def test_what_is_not_installed_here_may_be_elsewhere(stage: Stage) -> None:
    pytest.importorskip("fsspec")
    with pytest.raises(StageError, match="Install ossfs") as caught:
        stage.open({"db": "oss://b/db"}, {})
    assert caught.value.staging.type == UNKNOWN


def test_two_outputs_of_the_same_name_are_two_files(stage: Stage, tmp_path: Path) -> None:
    paths = stage.open({}, {"a": "/out/1/x.tsv", "b": "/out/2/x.tsv"})
    assert len(set(paths.values())) == 2
    assert {os.path.basename(path) for path in paths.values()} == {"x.tsv"}
    stage.close()
