"""Who looks at a guarded message: what it takes from heartbeats, rows, attempts and clocks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mtask.errors import UnavailableError
from mtask.heartbeat import Running, WorkerStatus
from mtask.manager import connect
from mtask.model import Failure, Message, Reason, Result
from mtask.testing.samples import a_status
from mtask.worker import guard
from mtask.worker.guard import Guard, Verdict
from mtask.worker.held import Held
from mtask.worker.notes import Notes
from tests.unit.worker_kit import Place, Wrapper

HOUR_S = 3600.0
BEAT_S = 10.0


class Scene:
    """A message of one task, or of some, that `runner` runs on, and the one who looks: `looker`."""

    def __init__(self, place: Place) -> None:
        self.place, self.table = place, Wrapper(place.table)
        self.notes = Notes(lambda text: None)
        self.statuses: list[WorkerStatus] = []
        self.table.faults["workers"] = lambda _method: self.statuses
        self.now = time.time()
        """By the clock that stamps heartbeats."""
        self.beat("looker")

    def put(self, rows: int = 1, *, sent_at: float | None = None, **spec: Any) -> Held:
        self.bag = self.place.put_bag([[x] for x in range(rows)], **spec)
        message = Message.of(self.bag, self.place.table.block("bag", 0))
        changes = {"runs_at": "runner", "sent_at": self.now - HOUR_S if sent_at is None else sent_at}
        return self.held(msgspec.structs.replace(message, **changes))

    def held(self, message: Message) -> Held:
        from mtask.model import Delivery

        delivery = Delivery(body=message.encode(), token=None)
        return Held(delivery, message, self.bag, body=delivery.body, lease_s=60, asked_s=time.monotonic())

    def beat(self, worker: str, *, age_s: float = 1.0, runs: tuple[int, ...] = (), **fields: Any) -> None:
        running = tuple(Running(bag="bag", index=index, since=0.0) for index in runs)
        fields = {"interval_s": BEAT_S, "beat_at": self.now - age_s, "running": running} | fields
        self.statuses = [each for each in self.statuses if each.worker != worker]
        self.statuses.append(a_status(worker, **fields))

    def look(self, held: Held) -> Verdict:
        return Guard(self.table, "looker", self.notes).look(held)  # type: ignore[arg-type]

    def failed(
        self, index: int = 0, *, finished_at: float, attempt: int = 1, worker: str = "runner"
    ) -> Result:
        error = Failure(reason=Reason.TIMEOUT, type="timeout", message="too long")
        return Result.failed("bag", index, error, attempt=attempt, worker=worker, finished_at=finished_at)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with connect(f"sqlite:///{tmp_path}/queue.db", f"sqlite:///{tmp_path}/table.db") as manager:
        yield Place(manager)


@pytest.fixture
def scene(place: Place) -> Scene:
    return Scene(place)


# -- who lives --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("age_s", "interval_s", "verdict"),
    [
        (5, 10, Verdict.WAIT),
        (31, 10, Verdict.WAIT),
        (299, 10, Verdict.WAIT),
        (310, 10, Verdict.RUN),
        (1700, 600, Verdict.WAIT),
        (1900, 600, Verdict.RUN),
    ],
)
def test_nobody_hurries_to_call_a_worker_dead(
    scene: Scene, age_s: float, interval_s: float, verdict: Verdict
) -> None:
    held = scene.put()
    scene.beat("runner", age_s=age_s, runs=(0,), interval_s=interval_s)
    assert scene.look(held) is verdict
    assert (held.message.deaths, held.message.runs_at) == (
        (1, "") if verdict is Verdict.RUN else (0, "runner")
    )


@pytest.mark.parametrize("ahead_s", [-HOUR_S, HOUR_S])
def test_a_clock_that_is_wrong_makes_nobody_dead(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, ahead_s: float
) -> None:
    """Heartbeats are stamped by the table's clock, which one's own heartbeat tells."""
    held = scene.put()
    scene.beat("runner", runs=(0,))
    monkeypatch.setattr(guard.time, "time", lambda: scene.now + ahead_s)
    assert scene.look(held) is Verdict.WAIT
    scene.beat("runner", age_s=310, runs=(0,))
    assert scene.look(held) is Verdict.RUN


def test_one_whose_last_own_heartbeat_is_of_long_ago_goes_by_its_clock(scene: Scene) -> None:
    held = scene.put()
    scene.beat("looker", age_s=HOUR_S, state="stopped")
    scene.beat("runner", age_s=310, runs=(0,))
    assert scene.look(held) is Verdict.RUN


def test_after_the_table_was_away_there_is_time_for_a_heartbeat(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = scene.put()
    scene.beat("runner", age_s=400, runs=(0,))
    scene.notes.trouble("table", UnavailableError("away"))
    assert scene.look(held) is Verdict.WAIT
    scene.notes.well("table")
    assert scene.look(held) is Verdict.WAIT
    monkeypatch.setattr(guard, "CALM_S", 0.0)
    assert scene.look(held) is Verdict.RUN


def test_who_stopped_in_good_order_is_no_death(scene: Scene) -> None:
    held = scene.put()
    scene.beat("runner", age_s=5, state="stopped")
    assert scene.look(held) is Verdict.RUN
    assert held.message.deaths == 0


def test_what_failed_and_is_to_be_tried_again_is_the_next_attempt(scene: Scene) -> None:
    held = scene.put(retries=3)
    scene.place.table.keep_attempts([scene.failed(attempt=2, finished_at=scene.now - 60)])
    scene.beat("runner")
    assert scene.look(held) is Verdict.RUN
    assert (held.message.attempt, held.message.deaths) == (2, 0)


# -- retry ------------------------------------------------------------------------------------------


def fail_and_retry(scene: Scene, *indexes: int, finished_at: float | None = None) -> None:
    table = scene.place.table
    at = scene.now - 60 if finished_at is None else finished_at
    table.record([scene.failed(index, finished_at=at) for index in indexes])
    assert table.retract("bag", indexes) == set(indexes)


@pytest.mark.parametrize("gone", [True, False])
def test_what_a_retry_has_sent_again_isnt_run_beside_it(scene: Scene, gone: bool) -> None:
    held = scene.put()
    fail_and_retry(scene, 0)
    scene.beat("runner", age_s=400 if gone else 1)
    assert scene.look(held) is Verdict.DROP


def test_the_last_attempt_must_be_of_this_very_message(scene: Scene) -> None:
    """Else a task that was sent by the `retry`, and handed on since, would be lost with its worker."""
    held = scene.put()
    fail_and_retry(scene, 0, finished_at=held.message.sent_at - 5)
    scene.beat("runner", age_s=400)
    assert scene.look(held) is Verdict.RUN


def test_some_of_several_tasks_may_have_been_sent_again(scene: Scene) -> None:
    held = scene.put(3)
    scene.place.table.record([Result.done("bag", 0), Result.done("bag", 2)])
    fail_and_retry(scene, 1)
    scene.beat("runner")
    assert scene.look(held) is Verdict.DROP


def test_what_died_beside_it_still_runs(scene: Scene) -> None:
    held = scene.put(3)
    scene.place.table.record([Result.done("bag", 0)])
    fail_and_retry(scene, 1)
    scene.beat("runner", age_s=400)
    assert scene.look(held) is Verdict.RUN


def test_a_copy_that_is_given_back_still_says_when_it_was_handed_on(scene: Scene) -> None:
    held = scene.put()
    again = scene.held(held.whole())
    assert again.message == held.message
    assert again.message.sent_at == held.message.sent_at


# -- serial -----------------------------------------------------------------------------------------


def ended(scene: Scene) -> Held:
    held = scene.put()
    held.message = msgspec.structs.replace(held.message, then=1)
    scene.place.table.record([Result.done("bag", 0)])
    return held


def test_who_stopped_in_good_order_has_sent_the_next_of_its_key(scene: Scene) -> None:
    held = ended(scene)
    scene.beat("runner", age_s=HOUR_S, state="stopped")
    assert scene.look(held) is Verdict.DROP


def test_who_died_may_not_have_sent_it(scene: Scene) -> None:
    held = ended(scene)
    scene.beat("runner", age_s=400, runs=(0,))
    assert scene.look(held) is Verdict.END


def test_who_has_still_to_send_it_is_left_alone(scene: Scene) -> None:
    held = ended(scene)
    scene.beat("runner", runs=(0,))
    assert scene.look(held) is Verdict.WAIT
    scene.beat("runner")
    assert scene.look(held) is Verdict.DROP


def test_who_may_live_after_the_table_was_away_is_left_alone(scene: Scene) -> None:
    held = ended(scene)
    scene.beat("runner", age_s=400, runs=(0,))
    scene.notes.trouble("table", UnavailableError("away"))
    assert scene.look(held) is Verdict.WAIT
