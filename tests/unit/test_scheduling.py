"""Receivers and dispatchers of several hosts, with simulated time, queues and slots, against a simple model."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from mtask.queue import QueueLimits
from mtask.requirements import DEFAULT_LANE, Capabilities, Lane, Requirements
from mtask.worker.dispatcher import Dispatcher
from mtask.worker.held import Job
from mtask.worker.notes import Notes
from mtask.worker.options import Options
from mtask.worker.receiver import Receiver
from mtask.worker.room import Room, Share
from mtask.worker.served import ServedLanes

STEP_S = 0.5
LIMITS = QueueLimits(message_bytes=10**6, send_batch=10, receive_batch=10)


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class World:
    """The lanes, with tasks that are durations; the default one never gets empty."""

    limits = LIMITS

    def __init__(self, lanes: dict[Lane, list[float]], small_s: float) -> None:
        self.waiting = {lane.name: deque(tasks) for lane, tasks in lanes.items()}
        self.by_name = {lane.name: lane for lane in lanes} | {"": DEFAULT_LANE}
        self.small_s = small_s
        self.clock = Clock()

    def wake(self) -> None:
        pass

    def lanes(self) -> list[tuple[Lane, float]]:
        return [(lane, 0.0) for name, lane in self.by_name.items() if name]

    def receive(self, *, max_messages: int, lane: str, **_: Any) -> list[tuple[str, float]]:
        if not lane:
            return [("", self.small_s)] * max_messages
        tasks = self.waiting[lane]
        return [(lane, tasks.popleft()) for _ in range(min(max_messages, len(tasks)))]


class Slot:
    retiring = False

    def __init__(self, host: Host) -> None:
        self.host, self.jobs, self.share, self.over_s = host, deque[Job](), None, 0.0
        self.share: Share | None

    def suits(self, share: Share, job: Job) -> bool:
        return True

    def gpus(self) -> tuple[str, ...]:
        return ()

    def takes_behind(self, job: Job) -> bool:
        return False

    def start(self, job: Any) -> None:
        self.jobs.append(job)
        self.over_s = self.host.world.clock.now_s + job.held.seconds
        self.host.started(job)


class Host:
    """One worker, without processes and threads."""

    def __init__(self, world: World, can: Capabilities, slots: int) -> None:
        self.world, self.can = world, can
        self.slots = [Slot(self) for _ in range(slots)]
        self.ran: list[Lane] = []
        nothing: Any = SimpleNamespace(full=lambda: False, quiet=lambda: True)
        # The real ones, but for their threads.
        self.receiver = Receiver(
            world,  # type: ignore[arg-type]
            world,  # type: ignore[arg-type]
            bags=nothing,
            keeper=nothing,
            recorder=nothing,
            notes=Notes(),
            on_job=lambda job: None,
            on_round=lambda: None,
            worker="me",
            lease_s=60,
            can=can,
        )
        self.receiver._lanes = ServedLanes(world, can, Notes(), clock=world.clock)  # type: ignore[arg-type]
        self.receiver.stop()  # it never waits
        self.dispatcher = Dispatcher(
            self.slots,  # type: ignore[arg-type]
            Room(can, slots),
            receiver=self.receiver,
            recorder=nothing,
            limits=LIMITS,
            options=Options(),
        )

    def step(self) -> None:
        for slot in self.slots:
            if slot.jobs and slot.over_s <= self.world.clock.now_s:
                slot.jobs.clear()
        for _ in range(3):
            self.dispatcher.dispatch()
            wish = self.receiver._wish
            if wish is None:
                break
            _, _, deliveries = self.receiver._receive(wish, 60.0)
            for name, seconds in deliveries:  # type: ignore[misc]
                held: Any = SimpleNamespace(
                    lane=self.world.by_name[name],
                    seconds=seconds,
                    is_suspect=False,
                    message=SimpleNamespace(count=1),
                )
                self.dispatcher.ready.append(Job(held, 0, 1))
        self.dispatcher.dispatch()

    def started(self, job: Job) -> None:
        self.ran.append(job.held.lane)
        assert not self.can.lacks(job.held.lane.requires), "it runs what it can't"
        needs = [each.held.lane.requires for slot in self.slots for each in slot.jobs]
        assert sum(need.cpus for need in needs) <= self.can.cpus + 1e-6
        assert sum(need.memory_bytes for need in needs) <= self.can.memory_bytes
        assert sum(need.gpus for need in needs) <= len(self.can.gpus)


NEEDS = st.builds(
    Requirements,
    cpus=st.sampled_from([0.5, 1, 2, 3, 4]),
    memory_bytes=st.sampled_from([0, 5, 10]),
    gpus=st.sampled_from([0, 0, 1, 2]),
    tags=st.sampled_from([(), ("eu",), ("!eu",)]),
)
LANES = st.builds(Lane.of, st.sampled_from([-1, 0, 0, 1]), NEEDS, front=st.booleans()).filter(
    lambda lane: bool(lane.name)
)
HOSTS = st.tuples(
    st.builds(
        Capabilities,
        cpus=st.sampled_from([1, 2, 4]),
        memory_bytes=st.sampled_from([0, 5, 20]),
        gpus=st.sampled_from([(), ("0",), ("0", "1")]),
        tags=st.sampled_from([(), ("eu",)]),
    ),
    st.integers(1, 4),
)


@settings(max_examples=60, deadline=None)
@given(
    lanes=st.dictionaries(
        LANES, st.lists(st.sampled_from([0.5, 1.0, 3.0]), min_size=1, max_size=4), max_size=4
    ),
    hosts=st.lists(HOSTS, min_size=1, max_size=3),
    small_s=st.sampled_from([0.5, 2.0, 4.5]),
)
def test_nobody_runs_what_it_cant_and_nothing_waits_for_ever(
    lanes: dict[Lane, list[float]], hosts: list[tuple[Capabilities, int]], small_s: float
) -> None:
    """Beside an endless stream of small tasks, and of others of a higher priority."""
    world = World(lanes, small_s)
    made = [Host(world, can, slots) for can, slots in hosts]
    within_s = 60 + 30 * sum(map(len, lanes.values()))
    while world.clock.now_s < within_s:
        for host in made:
            host.step()
        world.clock.now_s += STEP_S
    for lane in lanes:
        served = any(not can.lacks(lane.requires) for can, _ in hosts)
        left = len(world.waiting[lane.name])
        assert left == (0 if served else len(lanes[lane])), f"{lane}: {left} left"
    assert all(DEFAULT_LANE in host.ran for host in made), "nor do the small ones"
