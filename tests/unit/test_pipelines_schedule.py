"""Any DAG on any host: the order is kept, the host is never overcommitted, and each task is run once."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtask.pipelines.dag import Dag, Task
from mtask.pipelines.schedule import Room, Schedule

ROOM = Room(slots=4, cpus=6, memory_mb=100)


def task(name: object = "t", **fields) -> Task:
    return Task(str(name), 1, ["x"], **fields)


@st.composite
def dags(draw) -> Dag:
    count = draw(st.integers(1, 14))
    tasks = [
        task(
            at,
            cpus=draw(st.integers(0, ROOM.cpus)),
            memory_mb=draw(st.integers(0, ROOM.memory_mb)),
            priority=draw(st.integers(-2, 2)),
            tries=draw(st.integers(1, 3)),
        )
        for at in range(count)
    ]
    order = draw(st.permutations(range(count)))
    pairs = st.tuples(st.integers(0, count - 1), st.integers(0, count - 1))
    edges = [(order[a], order[b]) for a, b in draw(st.lists(pairs, max_size=30)) if a < b]
    return Dag(tasks, edges)


@settings(max_examples=300)
@given(dags(), st.data())
def test_any_dag_on_any_host(dag, data):
    slots = data.draw(st.integers(1, ROOM.slots))
    failing, done_before = (data.draw(st.sets(st.sampled_from(range(len(dag.tasks))))) for _ in range(2))
    most = data.draw(st.sampled_from([0, 0, 1, 2]))
    parents: list[set[int]] = [set() for _ in dag.tasks]
    for at, children in enumerate(dag.children):
        for child in children:
            parents[child].add(at)

    room = Room(slots, ROOM.cpus, ROOM.memory_mb)
    schedule = Schedule(dag, room, done=done_before, max_failures=most)
    attempts = [0] * len(dag.tasks)
    gone: list[int] = []
    while not schedule.finished:
        while (at := schedule.next()) is not None:
            attempts[at] += 1
            assert at not in done_before
            assert parents[at] <= schedule.done
            running = [dag.tasks[each] for each in schedule.running]
            assert len(running) <= slots
            assert sum(each.cpus for each in running) <= room.cpus
            assert sum(each.memory_mb for each in running) <= room.memory_mb
        # Processes end, and their ends are written down later, both in any order.
        if schedule.running and (not gone or data.draw(st.booleans())):
            gone.append(data.draw(st.sampled_from(sorted(schedule.running))))
            schedule.gone(gone[-1])
        else:
            at = gone.pop(data.draw(st.integers(0, len(gone) - 1)))
            again = schedule.ended(at, success=at not in failing)
            assert again == (
                at in failing and attempts[at] < dag.tasks[at].tries and at not in schedule.failed
            )
            assert not again or not schedule.stopped
    assert (schedule.slots, schedule.cpus, schedule.memory_mb) == (slots, room.cpus, room.memory_mb)

    run = [at for at in range(len(dag.tasks)) if attempts[at]]
    for at in run:
        # Each once; and once more only while it fails, and has tries left.
        assert attempts[at] <= (dag.tasks[at].tries if at in failing else 1)
        assert (at in schedule.done) != (at in schedule.failed)
    if not schedule.stopped:
        for at in range(len(dag.tasks)):
            reachable = parents[at] <= schedule.done and at not in done_before
            assert bool(attempts[at]) == reachable
            assert not reachable or at not in failing or attempts[at] == dag.tasks[at].tries
    elif most:
        assert len(schedule.failed) >= most


def run_alone(dag: Dag, room: Room) -> list[str]:
    schedule, order = Schedule(dag, room), []
    while not schedule.finished:
        at = schedule.next()
        assert at is not None
        order.append(dag.tasks[at].name)
        schedule.gone(at)
        schedule.ended(at, success=True)
    return order


def test_higher_priorities_first_and_then_as_in_the_file():
    dag = Dag([task(name, priority=p) for name, p in [("G", 0), ("D", 1), ("I", 5), ("E", 1), ("N", -1)]], [])
    assert run_alone(dag, Room(1, 1, 1)) == ["I", "D", "E", "G", "N"]


def test_who_does_not_fit_holds_up_nobody():
    dag = Dag([task("all", cpus=2), task("big", cpus=2, priority=9), task("small", priority=-9)], [])
    schedule = Schedule(dag, Room(4, 3, 0))
    assert [schedule.next(), schedule.next(), schedule.next()] == [1, 2, None]


def test_a_task_that_never_fits_is_refused():
    with pytest.raises(ValueError, match="'t' doesn't fit"):
        Schedule(Dag([task(memory_mb=101)], []), ROOM)


def test_what_is_done_already_is_not_done_again_because_its_parent_is():
    schedule = Schedule(Dag([task("parent"), task("child")], [(0, 1)]), ROOM, done={1})
    assert (schedule.next(), schedule.next()) == (0, None)
    schedule.gone(0)
    schedule.ended(0, success=True)
    assert (schedule.next(), schedule.finished, schedule.done) == (None, True, {0, 1})


def test_a_part_of_the_host_is_free_before_the_end_is_written_down_but_what_waits_does_not_start():
    dag = Dag([task("parent"), task("child"), task("other")], [(0, 1)])
    schedule = Schedule(dag, Room(1, 1, 0))
    assert (schedule.next(), schedule.next()) == (0, None)
    schedule.gone(0)
    assert (schedule.next(), schedule.next()) == (2, None)
    schedule.gone(2)
    assert (schedule.next(), schedule.finished) == (None, False)
    schedule.ended(0, success=True)
    assert schedule.next() == 1


def test_ten_thousand_tasks_and_fifty_thousand_edges():
    count, chance = 10_000, random.Random(7)
    edges = []
    while len(edges) < 50_000:
        a, b = chance.randrange(count), chance.randrange(count)
        if a != b:
            edges.append((min(a, b), max(a, b)))
    dag = Dag([task(at, memory_mb=chance.choice([0, 5, 10])) for at in range(count)], edges)
    assert dag.cycle() == []
    order = [int(name) for name in run_alone(dag, Room(8, 8, 100))]
    place = {at: n for n, at in enumerate(order)}
    assert sorted(order) == list(range(count))
    assert all(place[a] < place[b] for a, b in edges)
