"""For the tests of the worker: a place with a queue and a table, and workers that run in it."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from mtask.bag import BagHandle
from mtask.errors import UnavailableError
from mtask.manager import Manager
from mtask.model import Bag, Block, Delivery, Message, Result, Spec
from mtask.portion import Portion
from mtask.queue import Queue
from mtask.worker.held import Held, Job
from mtask.worker.notes import Notes
from mtask.worker.supervisor import Options, Worker

TASKS = f"{Path(__file__).with_name('worker_tasks.py')}"


def wait_until(condition: Callable[[], Any], *, timeout_s: float = 20, what: str = "") -> Any:
    """Poll; returns what the condition did as soon as that is true."""
    end_s = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > end_s:
            raise AssertionError(f"not within {timeout_s:g} s: {what or condition}")
        time.sleep(0.005)
    return value


class Place:
    """A queue and a table, and what workers said."""

    def __init__(self, manager: Manager) -> None:
        self.manager = manager
        self.queue, self.table = manager.queue, manager.table
        self.said: list[str] = []

    def submit(self, function: str, rows: Iterable[Any], **options: Any) -> BagHandle:
        """Tasks of a function in worker_tasks.py, never tried again if nothing else is said."""
        columns = options.pop("columns", None)
        options = {"retries": 0, "bag": "bag"} | options
        return self.manager.submit(list(rows), call=f"{TASKS}:{function}", columns=columns, **options)

    def submit_command(self, rows: Iterable[Any], **options: Any) -> BagHandle:
        return self.manager.submit(list(rows), **({"retries": 0, "bag": "bag"} | options))

    def put_bag(self, rows: Sequence[Sequence[Any]], *, columns: Sequence[str] = ("x",), **spec: Any) -> Bag:
        """A sealed bag in the table, with one block, and no message in the queue."""
        fields: dict[str, Any] = {"kind": "call", "target": (f"{TASKS}:double",), "retries": 0}
        bag = Bag(name="bag", spec=Spec(**(fields | spec)), columns=tuple(columns), total=len(rows))
        self.table.create_bag(bag)
        self.table.put_blocks([self.block(rows)])
        return bag

    @staticmethod
    def block(rows: Sequence[Sequence[Any]], *, first: int = 0, number: int = 0) -> Block:
        encoded = msgspec.json.encode(list(map(list, rows)))
        return Block(bag="bag", number=number, first=first, count=len(rows), rows=encoded)

    def worker(self, *, queue: Queue | None = None, table: Any = None, **options: Any) -> Worker:
        return Worker(
            queue or self.queue,
            table or self.table,
            Options(**({"slots": 1} | options)),
            say=self.said.append,
        )

    def work(self, bag: BagHandle, **options: Any) -> list[Result]:
        """Run a worker until the bag is finished; returns all rows."""
        with watchdog():
            self.worker(**options).run(until=bag.finished)
        return list(bag.results())

    @contextmanager
    def working(self, **options: Any) -> Iterator[Worker]:
        """A worker in a thread; it is drained at the end, and its error raised."""
        made = self.worker(**options)
        errors: list[BaseException] = []

        def run() -> None:
            try:
                made.run()
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=run, name="worker", daemon=True)
        thread.start()
        try:
            yield made
        finally:
            made.drain("the test is over", grace_s=0)
            thread.join(30)
            assert not thread.is_alive(), "the worker hangs"
        if errors:
            raise errors[0]


@contextmanager
def watchdog(timeout_s: float = 60) -> Iterator[None]:
    """A worker that hangs in the test's own thread would hang the test."""
    import faulthandler

    faulthandler.dump_traceback_later(timeout_s, exit=True, file=sys.__stderr__ or sys.stderr)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def held_of(
    count: int = 3, *, lease_s: float = 60, deliveries: int = 1, token: Any = None, **spec: Any
) -> Held:
    """A held message of `count` tasks."""
    fields: dict[str, Any] = {"kind": "call", "target": ("m:f",), "lease_s": max(lease_s, 1)}
    bag = Bag(name="bag", spec=Spec(**(fields | spec)), columns=("x",), total=count, uid="uid")
    message = Message.of(bag, Place.block([[i] for i in range(count)]))
    delivery = Delivery(body=message.encode(), token=token, deliveries=deliveries)
    return Held(delivery, message, bag, body=delivery.body, lease_s=lease_s, asked_s=time.monotonic())


class Wrapper:
    """A queue or a table of which single methods can be replaced: `wrapper.faults[name] = function`.

    The function gets the true method and its arguments.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.faults: dict[str, Callable[..., Any]] = {}
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if not callable(found):
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((name, args))
            if (fault := self.faults.get(name)) is not None:
                return fault(found, *args, **kwargs)
            return found(*args, **kwargs)

        return call

    def called(self, name: str) -> list[tuple[Any, ...]]:
        return [args for called, args in self.calls if called == name]


def unavailable(*_args: Any, **_kwargs: Any) -> Any:
    raise UnavailableError("it is away")


def failing(times: int, error: Exception | None = None) -> Callable[..., Any]:
    """Fails so often, then works."""
    left = [times]

    def fault(method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise error or UnavailableError("it is away")
        return method(*args, **kwargs)

    return fault


class FakeHost:
    """Takes the place of a worker: runs the selector, and notes what a runner says."""

    def __init__(self) -> None:
        import selectors

        self.selector = selectors.DefaultSelector()
        self.name, self.path, self.notes = "host", (), Notes(lambda text: None)
        self.checkpoints = ".mtask/checkpoints"
        self.results: list[Result] = []
        self.left: list[Job] = []
        self.bad: list[tuple[Job, str]] = []
        self.problems: list[str] = []
        self.over = 0

    def attempts_ended(self, job: Job, results: list[Result], size_bytes: int = 0) -> None:
        self.results += results

    def portion_done(self, job: Job, portion: Portion) -> None:
        self.results += portion.results()

    def job_over(self, took_s: float) -> None:
        self.over += 1

    def left_over(self, jobs: Sequence[Job]) -> None:
        self.left += jobs

    def bad_message(self, job: Job, problem: str) -> None:
        self.bad.append((job, problem))

    def broken(self, problem: str) -> None:
        self.problems.append(problem)

    def turn(self, wait_s: float = 0.02) -> None:
        for key, _ in self.selector.select(wait_s):
            key.data()

    def run_until(self, condition: Callable[[], Any], *, timeout_s: float = 20) -> Any:
        end_s = time.monotonic() + timeout_s
        while not (value := condition()):
            assert time.monotonic() < end_s, f"not within {timeout_s} s"
            self.turn()
        return value


def exists(pid: int) -> bool:
    """Is there such a process (a zombie is none)?"""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def append(path: str, line: str) -> None:
    """One line, in one write."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{line}\n".encode())
    os.close(fd)
