"""What lies at the broker for a queue, by name, and with which settings.

| | |
|---|---|
| `NAME`, `NAME-LANE` | the queue and its lanes |
| `NAME.dead` | what was delivered too often |
| `NAME.delay.0`, `.1`, … | exchanges and queues in which messages wait for 0.5 s, 1 s, 2 s, …, a day and a half |
| `NAME.due` | the exchange where they come out of those |

All queues are quorum queues, replicated to three nodes if there are so many, and all messages are on disk before they
are confirmed. What a queue passes on (after a delay, or because it was delivered too often) stays in it until the next one
has confirmed it: `at-least-once`, https://www.rabbitmq.com/docs/quorum-queues#dead-lettering.

A message that is to wait passes through the delay queues of those powers of two that make up its delay, longest first. In
one queue all wait equally long, so none holds up another. Where it goes is in its routing key: a word for each of
the levels, 1 or 0, and then the queue where it is to end. An exchange looks at the word of its level: 1 goes into the level's
queue, 0 to the exchange below; from that queue, too, it goes to the exchange below.
"""

from __future__ import annotations

import math
from typing import Any

from mtask.errors import UsageError

__all__ = [
    "DELAY_S",
    "DELIVERIES",
    "LEVELS",
    "STEP_S",
    "dead",
    "delay",
    "due",
    "due_pattern",
    "path",
    "patterns",
    "physical",
    "steps",
]

DELIVERIES = 100
"""After so many the broker takes a message out: a net below mtask's own. Tasks that kill their workers end after
`max_deliveries`, and what is given back isn't counted."""
DEAD_LOOKS = 1_000_000
"""Each look at what is dead is a delivery; newer brokers have a limit of 20 where none is set."""
STEP_S = 0.5
LEVELS = 18
DELAY_S = 86_400.0
"""The longest delay that is asked for; with all levels it would be 36 hours."""


def physical(name: str, lane: str = "") -> str:
    if lane and not lane.isalnum():
        raise UsageError(f"the name of a lane has letters and digits, not {lane!r}")
    return f"{name}-{lane}" if lane else name


def dead(name: str) -> str:
    return f"{name}.dead"


def due(name: str) -> str:
    return f"{name}.due"


def delay(name: str, level: int) -> str:
    return f"{name}.delay.{level}"


def steps(delay_s: float) -> int:
    """The delay as a number of the shortest one, rounded up; at least one."""
    return max(1, math.ceil(min(delay_s, DELAY_S) / STEP_S))


def path(number: int, queue: str) -> str:
    """The routing key of a message that waits for so many steps and then goes to this queue."""
    return ".".join([*f"{number:0{LEVELS}b}", queue])


def patterns(level: int) -> tuple[str, str]:
    """Of routing keys that pass this level by, and of those that don't."""
    before = "*." * (LEVELS - 1 - level)
    return f"{before}0.#", f"{before}1.#"


def due_pattern(queue: str) -> str:
    return f"{'*.' * LEVELS}{queue}"


def queue_arguments(name: str) -> dict[str, Any]:
    """Of the queue and its lanes."""
    return _quorum("", dead(name)) | {"x-delivery-limit": DELIVERIES}


def dead_arguments() -> dict[str, Any]:
    return {"x-queue-type": "quorum", "x-delivery-limit": DEAD_LOOKS}


def delay_arguments(name: str, level: int) -> dict[str, Any]:
    below = delay(name, level - 1) if level else due(name)
    return _quorum(below) | {"x-message-ttl": round(STEP_S * 2**level * 1000)}


def _quorum(exchange: str, key: str = "") -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "x-queue-type": "quorum",
        "x-dead-letter-exchange": exchange,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",  # without it the broker passes on at most once
    }
    return arguments | ({"x-dead-letter-routing-key": key} if key else {})
