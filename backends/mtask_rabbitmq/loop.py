"""A thread with an asyncio loop, which owns the connections of a queue; other threads hand calls over to it.

So heartbeats are answered whatever the callers do, and pika, which is not made for several threads, sees one.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["Loop"]

T = TypeVar("T")


class Loop:
    """Runs coroutines for other threads."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, T], *, timeout_s: float) -> T:
        """Its result, or what it raises. Raises TimeoutError when it takes longer, or the loop has stopped."""
        try:
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError:
            work.close()
            raise TimeoutError("the queue is closed") from None
        try:
            return future.result(timeout_s)
        except concurrent.futures.CancelledError:
            raise TimeoutError("the queue is closed") from None
        except BaseException:
            future.cancel()
            raise

    def soon(self, work: Any, *args: Any) -> None:
        """Call it in the loop's thread; don't wait."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(work, *args)

    def stop(self) -> None:
        """End the thread; what still waits is cancelled."""
        self.soon(self._loop.stop)
        if threading.current_thread() is not self._thread:
            self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            tasks = asyncio.all_tasks(self._loop)
            for task in tasks:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        finally:
            self._loop.close()
