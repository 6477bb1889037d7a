"""A thread of a worker that may wait for a vendor, while the main thread runs the slots."""

from __future__ import annotations

import threading
from collections.abc import Callable

__all__ = ["Service"]


class Service(threading.Thread):
    """Does `work` until told to stop.

    A worker without one of its services would hang, or lose its leases, without a word: so whatever
    ends one too early goes to `on_failure`, and the worker stops with that error.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name=f"mtask-{name}", daemon=True)
        self.on_failure: Callable[[BaseException], None] | None = None

    def work(self) -> None:
        raise NotImplementedError

    def run(self) -> None:
        try:
            self.work()
        except BaseException as error:
            if self.on_failure is None:
                raise
            self.on_failure(error)
