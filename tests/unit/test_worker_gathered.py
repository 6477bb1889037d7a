"""Results of quick tasks go to the recorder together; no other one waits."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from mtask.model import Result, State
from mtask.portion import Portion
from mtask.worker import gathered
from mtask.worker.dispatcher import Dispatcher
from mtask.worker.gathered import ENOUGH_BYTES, GATHER_S, Gathered
from mtask.worker.held import Held
from tests.unit.worker_kit import held_of


class FakeRecorder:
    def __init__(self) -> None:
        self.got: list[tuple[Held, list[int], int]] = []
        self.portions: list[tuple[Held, Portion]] = []

    def attempts_ended(self, held: Held, results: list[Result], size_bytes: int = 0) -> None:
        self.got.append((held, [result.index for result in results], size_bytes))

    def portion_done(self, held: Held, portion: Portion) -> None:
        self.portions.append((held, portion))

    def full(self) -> bool:
        return False


def done(index: int) -> Result:
    return Result(bag="bag", index=index, state=State.DONE)


def test_who_comes_after_a_pause_doesnt_wait_and_those_behind_it_go_together() -> None:
    recorder = FakeRecorder()
    made = Gathered(recorder)  # type: ignore[arg-type]
    first, second = held_of(), held_of()
    assert made.due_s == math.inf
    made.add(first, [done(0)], 10)
    assert made.due_s <= time.monotonic()
    made.pass_on()
    assert recorder.got == [(first, [0], 10)]
    assert made.due_s == math.inf
    passed_s = time.monotonic()
    for held, index in [(first, 1), (second, 0), (first, 2)]:
        made.add(held, [done(index)], 1)
        assert passed_s < made.due_s <= passed_s + GATHER_S
    made.pass_on()
    assert recorder.got[1:] == [(first, [1, 2], 3), (second, [0], 0)]


def test_to_pass_on_nothing_makes_nobody_wait() -> None:
    made = Gathered(FakeRecorder())  # type: ignore[arg-type]
    made.pass_on()
    made.add(held_of(), [done(0)], 1)
    assert made.due_s <= time.monotonic()


def test_portions_of_quick_messages_go_together_and_much_goes_at_once() -> None:
    recorder = FakeRecorder()
    made = Gathered(recorder)  # type: ignore[arg-type]
    held, passed_s = held_of(), time.monotonic()
    made.add_portion(held, Portion("bag", 0, 1, b"{}\n"))
    assert made.due_s <= time.monotonic(), "nothing preceded it"
    made.pass_on()
    for number in (1, 2):
        made.add_portion(held, Portion("bag", number, 1, b"{}\n"))
    assert made.awaited
    assert passed_s < made.due_s <= time.monotonic() + GATHER_S
    assert len(recorder.portions) == 1
    made.add_portion(held, Portion("bag", 3, 1, b" " * ENOUGH_BYTES))
    assert made.due_s <= time.monotonic()
    made.pass_on()
    assert [portion.first for _, portion in recorder.portions] == [0, 1, 2, 3]


def test_what_somebody_was_told_waits_for_others_but_no_longer_than_they() -> None:
    recorder, began_s = FakeRecorder(), time.monotonic()
    made = Gathered(recorder)  # type: ignore[arg-type]
    held, portions = held_of(), [Portion("bag", number, 1, b"{}\n") for number in range(2)]
    for portion in portions:
        made.add_portion(held, portion, told=True)
    assert began_s + GATHER_S <= made.due_s <= time.monotonic() + GATHER_S
    assert not made.awaited
    made.add(held, [done(2)], 1)
    assert made.awaited
    assert made.due_s <= time.monotonic()
    made.pass_on()
    assert recorder.portions == [(held, portion) for portion in portions]
    assert recorder.got == [(held, [2], 1)]
    assert not made.awaited
    assert made.due_s == math.inf


@pytest.fixture
def wishes() -> list[Any]:
    return []


def dispatcher_of(queued: list[int], wishes: list[Any]) -> Dispatcher:
    """With slots that have so many jobs each, of 2 ms."""
    lane = held_of().lane
    jobs = SimpleNamespace(held=SimpleNamespace(lane=lane, is_suspect=False))
    slots: Any = [SimpleNamespace(jobs=[jobs] * n, share=None, retiring=False) for n in queued]
    space = SimpleNamespace(slots=0)
    made = Dispatcher(
        slots,
        SimpleNamespace(space=lambda: space),  # type: ignore[arg-type]
        receiver=SimpleNamespace(want=lambda wish, _: wishes.append(wish)),  # type: ignore[arg-type]
        recorder=FakeRecorder(),  # type: ignore[arg-type]
        limits=SimpleNamespace(workers_send=True),  # type: ignore[arg-type]
        options=SimpleNamespace(),  # type: ignore[arg-type]
    )
    made.job_over(0.002)  # so 32 may wait behind one
    return made


@pytest.mark.parametrize(("queued", "asked"), [([33, 17], 0), ([33, 16], 17), ([16, 16], 34), ([1, 33], 32)])
def test_messages_are_asked_for_when_half_of_a_slot_s_are_gone(
    wishes: list[Any], queued: list[int], asked: int
) -> None:
    dispatcher_of(queued, wishes).dispatch()
    (wish,) = wishes
    assert (sum(wish.queued.values()) if wish is not None else 0) == asked


def test_a_worker_passes_on_what_is_due_also_while_its_slots_are_busy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """And not only when the next command ends."""
    from mtask.manager import connect
    from tests.unit.worker_kit import Place, wait_until

    monkeypatch.setattr(gathered, "GATHER_S", 0.3)
    url = f"sqlite:///{tmp_path}/m.db"
    with connect(url, url) as manager:
        place = Place(manager)
        rows = [{"s": 0}] * 3 + [{"s": 20}]
        bag = place.submit_command(rows, run="sleep {s}", per_message=4)
        with place.working():
            count: Callable[[], int] = lambda: bag.counts().done  # noqa: E731
            wait_until(lambda: count() == 3, timeout_s=5)
