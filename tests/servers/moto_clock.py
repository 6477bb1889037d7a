"""A moto server whose clock can be moved: run as `python moto_clock.py FILE [options of moto_server]`.

Its time is ahead of the true one by the seconds in FILE, read at each look; a second number there is a time (UTC, since
the epoch) at which the true one stands still, but for a microsecond at each look. And it takes messages one request at a time:
moto itself gives the same message to two requests that come together.
"""

from __future__ import annotations

import datetime
import itertools
import sys
import threading
import time
from pathlib import Path
from typing import Any

import moto.core.utils
from moto.server import main

FILE = Path(sys.argv[1])
PAUSE_S = 0.2
"""Between two looks of a request that waits, for what became visible meanwhile."""
true_time = moto.core.utils.utcnow
looks = itertools.count()


def utcnow() -> datetime.datetime:
    ahead_s, *stands_at = map(float, FILE.read_text().split())
    now = true_time()
    if stands_at:
        now = moto.core.utils.utcfromtimestamp(0) + datetime.timedelta(
            seconds=stands_at[0], microseconds=next(looks)
        )
    return now + datetime.timedelta(seconds=ahead_s)


def take_singly() -> None:
    from moto.sqs.models import SQSBackend

    lock, take = threading.Lock(), SQSBackend.receive_message

    def receive_message(
        self: Any, name: str, count: int, wait: int, visibility: int, names: list[str] | None = None
    ) -> Any:
        until_s = time.monotonic() + wait
        while True:
            with lock:
                taken = take(self, name, count, 0, visibility, names)
            if taken or time.monotonic() >= until_s:
                return taken
            self.get_queue(name).wait_for_messages(PAUSE_S)

    SQSBackend.receive_message = receive_message  # type: ignore[assignment,method-assign]


if __name__ == "__main__":
    # Before the services are imported, which takes the function from there.
    moto.core.utils.utcnow = utcnow
    take_singly()
    main(sys.argv[2:])
