"""How often a worker beats, and how often it looks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from mtask.manager import connect
from mtask.worker import pulse
from tests.unit.worker_kit import Place, Wrapper, failing, held_of, wait_until


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with connect(f"sqlite:///{tmp_path}/queue.db", f"sqlite:///{tmp_path}/table.db") as manager:
        yield Place(manager)


class Dear(Wrapper):
    """A table of which each heartbeat costs something."""

    beat_s = 600.0


def test_a_worker_beats_as_often_as_its_table_wants(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "LOOK_S", 0.01)
    table = Dear(place.table)
    bag = place.submit("double", [{"x": 1}])
    with place.working(table=table) as worker:
        wait_until(bag.finished)
        looks = len(table.called("bag"))
        wait_until(lambda: len(table.called("bag")) > looks + 20)
        assert len(table.called("beat")) == 1
        worker.drain()
        wait_until(lambda: place.table.workers()[0].state == "stopped")
    stated = [args[0] for args in table.called("beat")]
    assert [status.interval_s for status in stated] == [600.0] * len(stated)
    assert [status.state for status in stated][:: len(stated) - 1] == ["working", "stopped"]


def test_who_beats_rarely_is_alive_for_longer(place: Place) -> None:
    table = Dear(place.table)
    with place.working(table=table):
        [status] = wait_until(place.table.workers)
        assert status.alive(status.beat_at + 3 * 600 - 1)
        assert not status.alive(status.beat_at + 3 * 600 + 1)


def test_a_cancelled_bag_stops_long_before_the_next_beat(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulse, "LOOK_S", 0.02)
    bag = place.submit("wait_for", [{"x": 1, "path": str(tmp_path / "never")}])
    with place.working(table=Dear(place.table)) as worker:
        wait_until(lambda: worker.busy()[0])
        bag.cancel()
        wait_until(lambda: not worker.busy()[0])


def test_a_table_says_nothing_of_beats(place: Place) -> None:
    with place.working():
        [status] = wait_until(place.table.workers)
    assert status.interval_s == pulse.BEAT_S == 2.0


def test_a_beat_that_failed_is_made_up_for_at_the_next_look(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulse, "LOOK_S", 0.02)
    table = Dear(place.table)
    table.faults["beat"] = failing(3)
    with place.working(table=table):
        wait_until(place.table.workers)
        assert len(table.called("beat")) == 4


def test_a_drain_whose_beat_failed_is_told_at_the_next_look(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulse, "LOOK_S", 0.02)
    table, gate = Dear(place.table), tmp_path / "gate"
    place.submit("wait_for", [{"x": 1, "path": str(gate)}])
    with place.working(table=table) as worker:
        wait_until(lambda: worker.busy()[0] and place.table.workers())
        table.faults["beat"] = failing(1)
        worker.drain(grace_s=600)
        wait_until(lambda: [status.state for status in place.table.workers()] == ["draining"])
        gate.touch()


def test_who_couldnt_write_what_it_ran_on_did_not_stop_in_good_order(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else nobody would send what comes after it."""
    with place.working() as worker:
        wait_until(place.table.workers)
        held = held_of(1)
        held.guarded_parts = [(0, 1)]
        monkeypatch.setattr(worker, "running_on", lambda: [held])
        worker.drain()
        wait_until(lambda: place.table.workers()[0].state == "draining")
    [status] = place.table.workers()
    assert (status.state, [each.index for each in status.running]) == ("draining", [0])


def test_a_bag_that_cant_be_read_stops_no_worker_of_another(place: Place) -> None:
    table = Wrapper(place.table)
    table.faults["bags"] = failing(99, msgspec.ValidationError("Expected `int`, got `null`"))
    bag = place.submit("double", [{"x": 1}])
    with place.working(table=table):
        wait_until(bag.finished)
        wait_until(lambda: len(table.called("beat")) > 0 and len(table.called("bags")) > 0)
    assert len(table.called("bags")) == 1
    assert [text for text in place.said if "can't be seen: Expected `int`, got `null`" in text]
