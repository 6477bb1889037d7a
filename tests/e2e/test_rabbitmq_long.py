"""What was started with the first test of RabbitMQ, a minute ago if all tests run: see tests/servers/rabbitmq_long.py."""

from __future__ import annotations

import time

from mtask.model import State
from tests.chaos.harness import check, wait_for
from tests.servers.rabbitmq import CONSUMER_TIMEOUT_S
from tests.servers.rabbitmq_long import LONG_S, LongTask


def test_what_is_held_for_too_long_is_lost_and_the_broker_says_why(long_task: LongTask) -> None:
    """That the broker does what the next test relies on; and heartbeats of 5 s were answered all the time, by nobody who
    was asked for anything."""
    left_s = long_task.began_s + CONSUMER_TIMEOUT_S - time.monotonic()
    wait_for(long_task.extend, "the channel is closed", timeout_s=max(0.0, left_s) + 30)
    assert long_task.queue.limits.hold_s == CONSUMER_TIMEOUT_S


def test_a_task_longer_than_the_consumer_timeout_runs_once(long_task: LongTask) -> None:
    left_s = long_task.began_s + LONG_S - time.monotonic()
    wait_for(long_task.bag.finished, "it has ended", timeout_s=max(0.0, left_s) + 30)
    (result,) = check(long_task.bag)
    assert (result.state, result.attempt) == (State.DONE, 1)
    assert result.wall_s is None or result.wall_s > CONSUMER_TIMEOUT_S
    assert len(long_task.site.begins()) == 1
    (worker,) = {begin.worker for begin in long_task.site.begins()}
    assert worker in {each.pid for each in long_task.site.workers}
    said = "".join(each.said() for each in long_task.site.workers)
    assert "lost" not in said, said
