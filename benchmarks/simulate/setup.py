"""What is simulated, and what came out."""

from __future__ import annotations

from dataclasses import dataclass, field

from benchmarks.simulate.clouds import CLOUDS, Cloud, Count
from benchmarks.simulate.times import Seconds

__all__ = ["Outcome", "Setup"]


@dataclass(frozen=True)
class Setup:
    """A bag, a fleet and a cloud. Durations in seconds."""

    times_s: Seconds
    """Of each task."""
    slots: int
    slots_per_worker: int = 8
    cloud: Cloud = CLOUDS["none"]
    preempt_per_hour: float = 0.0
    """Of one worker, on average; exponentially distributed."""
    takes: tuple[tuple[float, int], ...] = ()
    """(time, number of a worker): preempted then, besides those by chance."""
    killed: float = 0.0
    """Share of the preemptions of which there is no notice."""
    boot_s: float = 60.0
    """From the loss of a worker until another takes its place."""
    lease_s: float = 60.0
    split_after_s: float = 10.0
    front: bool = True
    """What a draining worker gives back goes to a lane that is received first; else behind all others."""
    per_message: int | None = None
    row_bytes: int = 40
    start_s: float = 0.0
    """Before the first task of each message: mtask's own time."""
    seed: int = 1


@dataclass
class Outcome:
    """What came out. Durations in seconds."""

    makespan_s: float = 0.0
    """From a full queue and an idle fleet until the last row is written."""
    work_s: float = 0.0
    """Of all tasks, each once."""
    longest_s: float = 0.0
    lost_running_s: float = 0.0
    """Of tasks that were running when their worker was taken."""
    lost_done_s: float = 0.0
    """Of tasks that had ended, and whose rows weren't written."""
    twice_s: float = 0.0
    """Of tasks that ran although they had a row, or got one meanwhile."""
    slot_s: float = 0.0
    """In which slots were running something, by the clock: the sum of work and losses."""
    runs: int = 0
    """Executions that ended, of any task."""
    preempted: int = 0
    """Workers that were taken."""
    twin_tasks: int = 0
    """Tasks that were in two messages because a worker died with a message whose rest it had sent on."""
    most_in_flight: int = 0
    work_bound_s: float = 0.0
    """When all work can be done at the earliest, slots that were taken counted out."""
    bound_s: float = 0.0
    """That, or the longest task."""
    notice_bound_s: float = 0.0
    """The same with slots counted out from the notice on."""
    marks_s: dict[float, float] = field(default_factory=dict)
    """When which share of the tasks had ended."""
    count: Count = field(default_factory=Count)

    @property
    def lost_share(self) -> float:
        """Beyond what was running when it was taken."""
        return (self.lost_done_s + self.twice_s) / self.work_s
