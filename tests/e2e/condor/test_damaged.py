"""Files of messages that were damaged, as when a machine loses its power: what is left heals them, or is set aside."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtask.manager import connect
from mtask.model import Counts
from tests.servers.condor import PATIENCE_S, wait_until

pytestmark = pytest.mark.timeout(600)


def submitted(url: str, table: str, marks: Path) -> Path:
    """The folder of a batch of two messages with two tasks each, of which those of the first end at once; beside it there is
    another bag, of a task that waits for as long."""
    with connect(url, table) as manager:
        rows = [{"x": x, "folder": str(marks), "gate": x > 1} for x in range(4)]
        manager.submit(rows, call="condor_tasks:gated", per_message=2, bag="b")
        (folder,) = (path for path in manager.queue.main.address.folder.iterdir() if path.is_dir())
        manager.submit([{"x": 1}], call="condor_tasks:double", bag="other")
    wait_until(lambda: (marks / "0").exists() and (marks / "2").exists(), "both jobs run")
    return folder


def emptied(*paths: Path) -> None:
    for path in paths:
        path.write_bytes(b"")


@pytest.mark.parametrize(
    "names", [["head.json"], ["order.json"], ["head.json", "order.json", "cluster"]], ids=str
)
def test_what_messages_tell_is_made_anew(pool, table, marks, names):
    url = pool.url()
    folder = submitted(url, table, marks)
    emptied(*(folder / name for name in names))
    with connect(url, table) as manager:
        assert manager.bag("b").standing().troubles == ()
        (marks / "gate").touch()
        assert manager.bag("b").wait(timeout_s=PATIENCE_S) == Counts(total=4, done=4)
        assert manager.bag("other").wait(timeout_s=PATIENCE_S) == Counts(total=1, done=1)
        wait_until(lambda: not manager.collect() and not folder.exists(), "the folder is empty")
    assert {path.name: len(path.read_text().splitlines()) for path in marks.iterdir()} == {
        **dict.fromkeys("0123", 1), "gate": 0,
    }  # fmt: skip


def test_a_damaged_message_is_set_aside(pool, table, marks):
    url = pool.url()
    folder = submitted(url, table, marks)
    emptied(folder / "0.in")
    (marks / "gate").touch()
    with connect(url, table) as manager:
        bag = manager.bag("b")
        wait_until(lambda: manager.collect() or bag.counts().done == 2, "the other one's results are there")
        wait_until(lambda: manager.collect() or not folder.exists(), "nothing is left")
        (dead,) = manager.table.dead()
        assert "`mtask repair b` runs its tasks again" in dead.reason
        assert bag.repair() == 2
        assert bag.wait(timeout_s=PATIENCE_S) == Counts(total=4, done=4)


def test_a_folder_of_which_nothing_can_be_read_is_set_aside(pool, table, marks):
    url = pool.url(grace_s="2")
    folder = submitted(url, table, marks)
    emptied(*folder.glob("*.in"), folder / "head.json")
    with connect(url, table) as manager:
        assert manager.bag("other").wait(timeout_s=PATIENCE_S) == Counts(total=1, done=1)
        bag = manager.bag("b")
        (trouble,) = bag.standing().troubles
        assert str(folder) in trouble
        assert "`mtask repair b`" in trouble
        mine = ("-constraint", f'MtaskBatch == "{folder.name}"', "-af", "ClusterId")
        wait_until(lambda: not pool.run("condor_q", *mine), "its jobs are gone")
        (marks / "gate").touch()
        assert bag.repair() == 4
        assert bag.wait(timeout_s=PATIENCE_S) == Counts(total=4, done=4)
