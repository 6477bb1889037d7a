"""The simulation, where the answer is known without it."""

from __future__ import annotations

import dataclasses
import json
import xml.etree.ElementTree as ET
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks.simulate.__main__ import main
from benchmarks.simulate.bound import greedy_s, shortest_s
from benchmarks.simulate.charts import Chart, Line
from benchmarks.simulate.clouds import CLOUDS, Cloud, Count
from benchmarks.simulate.fleet import Fleet, simulate
from benchmarks.simulate.setup import Outcome, Setup
from benchmarks.simulate.times import task_times
from mtask.packing import piece_size

FREE = Cloud("free")
LONG_S = 1e6


def outcome(tasks: int, task_s: float, slots: int, cloud: Cloud = FREE, **options: Any) -> Outcome:
    return simulate(Setup(np.full(tasks, task_s), slots, cloud=cloud, **options))


def test_constant_tasks_take_what_one_computes_by_hand():
    out = outcome(105, 2.0, 10, slots_per_worker=10)
    assert out.makespan_s == 22.0  # 10 full rounds, and one of 5
    assert out.bound_s == 21.0
    assert (out.work_s, out.slot_s, out.runs) == (210.0, 210.0, 105)
    count = out.count
    # Messages of one task, one a request; at the end one worker waits for another.
    assert (count.sends, count.receives, count.deletes, count.rows) == (105, 106, 105, 105)
    assert (count.extends, count.releases, count.reads) == (0, 0, 0)


def test_each_message_waits_for_its_receive_and_the_last_for_its_row():
    cloud = dataclasses.replace(FREE, receive_s=0.5, table_s=0.25, flush_s=0.125)
    assert outcome(4, 1.0, 1, cloud).makespan_s == 4 * 1.5 + 0.375


def test_batches_save_requests():
    cloud = dataclasses.replace(FREE, send_batch=10, receive_batch=10, delete_batch=10)
    count = outcome(20, 1.0, 20, cloud, slots_per_worker=20).count
    assert (count.sends, count.deletes) == (2, 2)
    assert count.receives == 2 + 1


def test_a_slow_message_is_cut_by_the_code_of_mtask():
    # After 4 s the fifth task runs, at 0.8 s a task, and 5 are left: at 2 s a piece, or 0.4 of the 10 that the one
    # slot has ahead of it, at 3.2 s a piece, that is one and a half.
    assert piece_size(5, begun=5, took_s=4.0, ahead=10.0, least_s=2.0) is None
    alone = outcome(10, 1.0, 1, per_message=10, split_after_s=4.0)
    assert (alone.makespan_s, alone.count.messages) == (10.0, 1)
    # With four slots it is 2.5 tasks ahead: pieces of 3 and 2.
    assert piece_size(5, begun=5, took_s=4.0, ahead=2.5, least_s=2.0) == 3
    shared = outcome(10, 1.0, 4, per_message=10, split_after_s=4.0)
    assert (shared.makespan_s, shared.count.messages) == (7.0, 3)
    # A first task that long says that the others should begin at once.
    assert outcome(4, 10.0, 4, per_message=4, split_after_s=4.0).count.messages == 4


def test_the_more_tasks_a_slot_has_ahead_the_fewer_are_the_messages():
    messages = [outcome(40_000, 1.0, slots).count.messages for slots in (10, 100, 1000)]
    assert messages == sorted(set(messages))


def test_leases_are_extended_at_a_third():
    assert outcome(1, 100.0, 1, lease_s=60.0).count.extends == 5  # at 20, 40, 60, 80 and 100
    together = dataclasses.replace(FREE, delete_batch=10)
    assert outcome(8, 99.0, 8, together, lease_s=60.0).count.extends == 4


def test_a_killed_worker_loses_exactly_what_was_not_written():
    options = {"per_message": 10, "split_after_s": LONG_S, "takes": ((4.5, 0),), "boot_s": 60.0}
    out = outcome(10, 1.0, 1, **options)
    assert (out.lost_running_s, out.lost_done_s, out.twice_s) == (0.5, 0.0, 0.0)
    # The lease ends at 60, another worker is there at 64.5, and 6 tasks are left.
    assert out.makespan_s == 70.5
    assert out.bound_s == 70.0
    assert out.count.messages == 1 + 6
    assert out.count.reads == 10 + 6
    late = dataclasses.replace(FREE, flush_s=1.0)
    out = outcome(10, 1.0, 1, late, **options)
    assert (out.lost_running_s, out.lost_done_s) == (0.5, 1.0)
    assert out.makespan_s == 71.5 + 1.0


def test_a_lease_counts_from_its_last_extension():
    out = outcome(1, 50.0, 1, takes=((45.0, 0),), boot_s=1.0, lease_s=60.0)
    assert out.lost_running_s == 45.0
    assert out.makespan_s == 40.0 + 60.0 + 50.0


@pytest.mark.parametrize(("task_s", "lost_s"), [(15.0, 0.0), (35.0, 20.0)])
@pytest.mark.parametrize("front", [False, True])
def test_a_notice_lets_what_runs_end_within_its_grace(task_s: float, lost_s: float, front: bool):
    cloud = dataclasses.replace(FREE, notice_s=30.0)  # of which 20 s until SIGTERM
    options = {"per_message": 4, "split_after_s": LONG_S, "slots_per_worker": 1, "boot_s": LONG_S}
    options |= {"takes": ((0.0, 0),), "front": front}
    out = outcome(4, task_s, 2, cloud, **options)
    assert (out.lost_running_s, out.lost_share) == (lost_s, 0.0)
    # The rest of the message is the other worker's at once, or when its poll elsewhere is over; the task that was
    # stopped is so 20 s later.
    assert out.makespan_s == (15.0 if front else 0.0) + (3 * task_s if not lost_s else 4 * task_s)
    assert out.count.reads == 0


def test_who_dies_with_a_message_that_was_cut_leaves_twins_that_are_looked_up():
    options = {"per_message": 10, "takes": ((20.0, 0),), "slots_per_worker": 1}
    out = outcome(10, 100.0, 2, **options)
    assert out.twin_tasks == 9
    # One worker runs five pieces from 10 on, the other, back at 80, four: then comes the whole message,
    # of which only the first task, and one that is running, have no row.
    assert out.makespan_s == 480 + 100
    assert out.count.reads == 10 + 2
    assert (out.lost_running_s, out.twice_s) == (20.0, 0.0)


@pytest.mark.parametrize("cloud", list(CLOUDS))
@pytest.mark.parametrize("front", [False, True])
@pytest.mark.parametrize("killed", [0.0, 0.3])
def test_every_task_ends_and_no_second_is_unaccounted_for(cloud: str, front: bool, killed: float):
    times_s = task_times("lognormal:20:1", 3000, seed=3)
    setup = Setup(times_s, 100, cloud=CLOUDS[cloud], preempt_per_hour=20, killed=killed, front=front)
    fleet = Fleet(setup)
    out = fleet.run()
    assert out.preempted > 10
    assert bytes(fleet.done) == b"\x01" * 3000
    assert out.runs >= 3000
    assert out.slot_s == pytest.approx(out.work_s + out.lost_running_s + out.lost_done_s + out.twice_s)
    assert out.makespan_s >= out.bound_s
    if not killed and CLOUDS[cloud].notice_s:
        assert (out.lost_done_s, out.twice_s) == (0.0, 0.0)


def test_the_same_seed_gives_the_same():
    def once(seed: int) -> Outcome:
        times_s = task_times("pareto:10:2", 2000, seed)
        return simulate(Setup(times_s, 64, cloud=CLOUDS["aws"], preempt_per_hour=10, killed=0.5, seed=seed))

    assert once(5) == once(5)
    assert once(5) != once(6)


@pytest.mark.parametrize(("front", "at_s"), [(True, 110.0 + 100), (False, 110.0 + 4 * 50 + 100)])
def test_what_was_given_back_goes_first_or_last(front: bool, at_s: float):
    """A task of 100 s is stopped after 20 s of 30; 90 s later another worker is there. Four others wait."""
    cloud = dataclasses.replace(FREE, notice_s=30.0)
    times_s = np.array([100.0, 50, 50, 50, 50])
    options = {"slots_per_worker": 1, "takes": ((0.0, 0),), "boot_s": 80.0, "lease_s": 1000.0}
    fleet = Fleet(Setup(times_s, 1, cloud=cloud, front=front, **options))
    ended: list[tuple[float, int]] = []
    ran = fleet._ran

    def note(now_s: float, first: int, stop: int) -> None:
        ended.extend((now_s, index) for index in range(first, stop))
        ran(now_s, first, stop)

    fleet._ran = note  # type: ignore[method-assign]
    fleet.run()
    assert (at_s, 0) in ended


def test_one_looks_rarely_for_what_was_given_back():
    """Of 200 messages, 25 s each, one was given back; the look for more is taken every minute."""
    cloud = dataclasses.replace(FREE, notice_s=30.0)
    options = {
        "slots_per_worker": 1,
        "takes": ((0.0, 0),),
        "boot_s": 1.0,
        "per_message": 1,
        "lease_s": 1000.0,
    }
    never = outcome(200, 25.0, 1, cloud, front=False, **options).count.receives
    looks = outcome(200, 25.0, 1, cloud, front=True, **options).count.receives - never
    assert looks == pytest.approx(200 * 25 / 75, abs=3)  # at every third message


def test_slots_that_are_draining_are_counted_out_of_one_bound_only():
    cloud = dataclasses.replace(FREE, notice_s=30.0)
    out = outcome(100, 10.0, 2, cloud, slots_per_worker=1, takes=((100.0, 0),), boot_s=40.0)
    assert (out.bound_s, out.notice_bound_s) == (520.0, 535.0)


def test_who_waits_asks_again_and_again():
    cloud = dataclasses.replace(FREE, wait_s=5.0)
    assert outcome(1, 31.0, 2, cloud, slots_per_worker=1).count.receives == 1 + 6 + 2  # two are under way


def test_bounds():
    assert shortest_s(100.0, 10, []) == 10.0
    assert shortest_s(100.0, 10, [(4.0, 8.0, 5)]) == 12.0
    assert shortest_s(100.0, 10, [(20.0, 30.0, 5)]) == 10.0
    assert greedy_s(np.array([3.0, 1.0, 1.0, 4.0]), 2) == 6.0
    assert outcome(2, 7.0, 10).bound_s == 7.0


@pytest.mark.parametrize("kind", ["constant:60", "uniform:0:120", "lognormal:60:0.7", "pareto:60:3"])
def test_means_are_what_was_asked_for(kind: str):
    times_s = task_times(kind, 200_000, seed=1)
    assert times_s.mean() == pytest.approx(60, rel=0.02)
    assert times_s.min() >= 0


def test_prices_by_hand():
    count = Count(sends=1, receives=2, deletes=3, sent_units=4, received_units=5, moved_bytes=2**40)
    count.rows = count.reads = 1_000_000
    assert CLOUDS["aws"].queue_dollars(count) == pytest.approx(12 * 0.40e-6)
    assert CLOUDS["aws"].table_dollars(count) == pytest.approx(0.75)
    assert CLOUDS["gcp"].queue_dollars(count) == pytest.approx(40)
    assert CLOUDS["azure"].queue_dollars(count) == pytest.approx(6 * 4e-6)


def test_the_command_prints_the_seed_and_refuses_nonsense():
    said = CliRunner().invoke(main, ["--tasks", "50", "--slots", "5", "--seed", "7", "--greedy"])
    assert said.exit_code == 0, said.output
    assert "seed 7" in said.output
    assert CliRunner().invoke(main, ["--times", "normal:1"]).exit_code == 2


def test_an_order_by_a_guess_is_neither_that_of_the_times_nor_any():
    def marks_s(*options: str) -> float:
        arguments = ["--tasks", "500", "--slots", "5", "--per-message", "1", "--json", *options]
        said = CliRunner().invoke(main, arguments)
        assert said.exit_code == 0, said.output
        return float(json.loads(said.output)["marks_s"]["0.5"])

    exact, guessed = marks_s("--longest-first"), marks_s("--longest-first", "--guess", "0.7")
    assert exact > guessed > marks_s()


def test_a_picture_is_readable():
    chart = Chart("a & b", "x", "y", x_ticks=[1, 10, 100], y_ticks=[0, 1], log_y=False)
    root = ET.fromstring(chart.svg([Line("one", [(1, 0), (100, 1)])]))
    drawn = root.find(".//{http://www.w3.org/2000/svg}polyline")
    assert drawn is not None
    assert len(drawn.attrib["points"].split()) == 2
