"""Progress for people: a live bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from mtask.errors import BackendError
from mtask.model import Counts

if TYPE_CHECKING:
    from collections.abc import Callable

    from mtask.bag import BagHandle

__all__ = ["Progress", "Ticker", "duration", "eta"]

WINDOW_S = 10.0
"""The pace shown is that of the last so many seconds."""
LINE_EVERY_S = 10.0


class Progress:
    """Shows how a bag goes, on standard error. Use it in a `with` statement and call `update`."""

    def __init__(
        self, bag: BagHandle, *, shown: bool = True, busy: Callable[[], tuple[int, int]] | None = None
    ):
        """`busy` returns (busy slots, slots)."""
        self._bag, self._shown, self._busy = bag, shown, busy
        self._seen: deque[tuple[float, int]] = deque()
        self._live: Any = None
        self._bar: Any = None
        self._task: Any = None
        self._next_line_s = 0.0

    def __enter__(self) -> Self:
        if self._shown:
            self._next_line_s = time.monotonic() + LINE_EVERY_S
            self._start_live()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            with suppress(BackendError):
                self._show(self._bag.counts())  # those of late may be of before the end
            self._live.stop()

    def _start_live(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bars
        from rich.table import Column

        console = Console(stderr=True, emoji=False)
        if not console.is_terminal:
            return
        line = TextColumn("{task.fields[line]}", table_column=Column(overflow="ellipsis", no_wrap=True))
        if console.width < 80:
            self._bar = Bars(line, console=console)
        else:
            name = Column(overflow="ellipsis", no_wrap=True, max_width=20)
            bar = BarColumn(min(40, console.width - 75))
            self._bar = Bars(TextColumn("{task.description}", table_column=name), bar, line, console=console)
        self._task = self._bar.add_task(self._bag.name, total=None, line="")
        self._live = self._bar
        self._bar.start()

    def say(self, text: str) -> None:
        """A line above the bar."""
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def update(self) -> Counts:
        return self._show(self._bag.counts_of_late())

    def _show(self, counts: Counts) -> Counts:
        now_s = time.monotonic()
        self._seen.append((now_s, counts.ended))
        while len(self._seen) > 2 and now_s - self._seen[0][0] > WINDOW_S:
            self._seen.popleft()
        if not self._shown:
            return counts
        if self._live is not None:
            self._bar.update(
                self._task, total=counts.total or None, completed=counts.ended, line=self._line(counts)
            )
        elif now_s >= self._next_line_s:
            self._next_line_s = now_s + LINE_EVERY_S
            self.say(f"{self._bag.name}: {self._line(counts)}")
        return counts

    def _line(self, counts: Counts) -> str:
        rate = self._rate()
        parts = [f"{counts.done:,} done"]
        if counts.failed + counts.expired:
            parts.append(f"{counts.failed + counts.expired:,} failed")
        parts.append(f"{counts.left:,} left")
        if rate:
            parts.append(f"{rate:,.1f}/s" if rate < 100 else f"{rate:,.0f}/s")
            if counts.left:
                parts.append(f"ETA {eta(counts.left / rate)}")
        if self._busy is not None:
            busy, slots = self._busy()
            parts.append(f"{busy}/{slots} slots busy")
        return " · ".join(parts)

    def _rate(self) -> float:
        (first_s, first), (last_s, last) = self._seen[0], self._seen[-1]
        return (last - first) / (last_s - first_s) if last_s > first_s else 0.0


class Ticker(threading.Thread):
    """Updates a progress from a thread, while the main thread works."""

    def __init__(self, progress: Progress, every_s: float = 0.25) -> None:
        super().__init__(name="mtask-progress", daemon=True)
        self._progress, self._every_s = progress, every_s
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(self._every_s):
            try:
                self._progress.update()
            except BackendError:
                continue  # the worker says so

    def stop(self) -> None:
        self._over.set()
        self.join()


def duration(seconds: float) -> str:
    """For people: `0.12 s`, `45 s`, `12 min 3 s`, `3 h 5 min`, `2 d 4 h`."""
    if seconds < 0.0005:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 0.1:
        return f"{seconds * 1e3:.2g} ms"
    if seconds < 10:
        return f"{seconds:.2f} s".replace(".00 ", " ")
    whole = round(seconds)
    for size, name, small, small_name in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            return f"{whole // size} {name} {whole % size // small} {small_name}"
    return f"{whole} s"


def eta(seconds: float) -> str:
    """An estimate, without digits that nobody can know."""
    return duration(max(1, round(seconds)))
