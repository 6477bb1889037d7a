"""`mtask worker`, and the working part of `mtask run`."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from mtask.cli.common import Duration, Whole, connect, places
from mtask.cli.types import Cpus, GpuIds, Memory, Roles, Size, Tags

if TYPE_CHECKING:
    from mtask.bag import BagHandle
    from mtask.manager import Manager
    from mtask.worker.supervisor import Worker

__all__ = ["Saying", "make_worker", "slot_options", "work_until", "worker", "worker_options"]

CHECKPOINTS = ".mtask/checkpoints"


def _cpus() -> int:
    from mtask.worker.capabilities import cpus_of_machine

    return cpus_of_machine()


def slot_options(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "-j",
        "--slots",
        type=Whole(1),
        metavar="N",
        default=_cpus,
        show_default="number of CPUs",
        help="How many tasks run at a time.",
    )(command)


def worker_options(command: Callable[..., Any]) -> Callable[..., Any]:
    options = (
        click.option(
            "--grace",
            "grace_s",
            type=Duration(),
            default="30s",
            show_default=True,
            metavar="TIME",
            help="How long running tasks may go on after SIGTERM or Ctrl-C; in its last third (at most 10s) they "
            "get SIGTERM themselves, at its end SIGKILL.",
        ),
        click.option(
            "--max-tasks-per-child",
            type=Whole(1),
            metavar="N",
            help="Renew a function's process after N tasks.",
        ),
        click.option(
            "--max-memory-per-child",
            "max_memory_per_child_bytes",
            type=Size(),
            metavar="SIZE",
            help="Renew a function's process that holds more when a task has ended.",
        ),
        click.option("--split-after", "split_after_s", type=Duration(), default="10s", hidden=True),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@slot_options
@click.option(
    "--idle-exit", "idle_exit_s", type=Duration(), metavar="TIME", help="End after TIME without a task."
)
@click.option(
    "--max-runtime", "max_runtime_s", type=Duration(positive=True), metavar="TIME", help="Drain after TIME."
)
@click.option("--max-tasks", type=Whole(1), metavar="N", help="Drain when N attempts have ended.")
@click.option(
    "--notices",
    type=click.Choice(["auto", "off", "azure", "ec2", "google"]),
    envvar="MTASK_NOTICES",
    default="auto",
    show_default=True,
    help="Ask a cloud whether it will take this machine away.",
)
@click.option(
    "--checkpoints",
    metavar="PLACE",
    default=CHECKPOINTS,
    show_default=True,
    help="Folder, or fsspec URL, for tasks that save their state.",
)
@click.option("--lease", "lease_s", type=Duration("1s"), metavar="TIME", help="Instead of what the bags say.")
@worker_options
@click.option("--cpus", type=Cpus(), metavar="N", help="CPUs for its tasks.  [default: as many as slots]")
@click.option(
    "--memory",
    "memory_bytes",
    type=Memory(),
    metavar="SIZE",
    help="Memory for its tasks, as 30GB.  [default: what the machine has]",
)
@click.option(
    "--gpus",
    type=GpuIds(),
    metavar="N|ID,…",
    help="GPUs for its tasks: how many, or which (0,2). 0 for none.  [default: what the machine has]",
)
@click.option(
    "--tags",
    type=Tags(),
    envvar="MTASK_TAGS",
    metavar="TAG,…",
    help="What it has, or where it is, for tasks that ask for that.  [default: MTASK_TAGS]",
)
@click.option(
    "--roles",
    type=Roles(),
    metavar="TAG,…|auto|by-backlog",
    help="Serve only bags that ask for one of these tags, which it has then. auto: for the one that `mtask roles set` "
    "gives it, by-backlog: for one that has open tasks; either may change while it runs.",
)
@click.option("--pin", is_flag=True, help="Keep each task on CPUs of its own.")
@places
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
def worker(queue: str | None, table: str | None, quiet: bool, **settings: Any) -> int:
    """Run tasks of any bag until told to stop.

    SIGTERM and Ctrl-C drain: what hasn't started goes back to the queue at once, what runs may end
    within the grace, and is given to another worker otherwise. A second one hurries.

    Functions are imported from the working directory and from Python's search path. A TIME is in
    seconds, or like 90s, 5m, 2h.
    """
    if settings["checkpoints"] != CHECKPOINTS:  # somebody wants to use them
        from mtask.task import check

        check(settings["checkpoints"])
    settings["tags"] = settings["tags"] or ()
    roles = settings.pop("roles")
    with connect(queue, table) as manager:
        _check_pulled(manager)
        settings |= _roles(manager, roles)
        made = make_worker(manager, say=_say, alone=False, **settings)
        if not quiet:
            slots = "1 slot" if len(made.slots) == 1 else f"{len(made.slots)} slots"
            click.echo(f"worker {made.name}: {slots}, takes tasks from {manager.place}", err=True)
        with _signals(made, quiet=quiet):
            made.run()
        if not quiet:
            ended = made.outcomes
            click.echo(f"worker {made.name}: {ended.done:,} done, {ended.failed:,} failed attempts", err=True)
    return 0


def _roles(manager: Manager, roles: tuple[str, ...] | None) -> dict[str, Any]:
    """The settings of a worker with these. Says which of them nobody asks for."""
    from mtask.roles import POOLS, unasked

    if roles is None:
        return {}
    if roles[0] in POOLS:
        return {"takes": roles[0]}
    if problem := unasked(manager.table, roles):
        _say(f"{problem}. The worker waits for one that does")
    return {"roles": roles}


def _check_pulled(manager: Manager) -> None:
    """Raises UsageError for a queue from which nobody can receive."""
    if not manager.queue.limits.pulled:
        from mtask.errors import UsageError

        raise UsageError(
            f"{manager.place}: no worker is needed here, since the queue starts its jobs by itself; `mtask wait BAG` waits "
            "for them and records their results, `mtask status BAG` shows how it goes"
        )


def _say(text: str) -> None:
    click.echo(f"mtask: {text}", err=True)


class Saying:
    """Passes lines on to whoever shows them just now."""

    def __init__(self) -> None:
        self.to: Callable[[str], None] = _say

    def __call__(self, text: str) -> None:
        self.to(text)


def work_until(made: Worker, bag: BagHandle, *, saying: Saying, shown: bool, quiet: bool) -> bool:
    """Work here until the bag is finished; False: interrupted before that."""
    from mtask.progress import Progress, Ticker

    with Progress(bag, shown=shown, busy=made.busy) as progress:
        saying.to = progress.say
        ticker = Ticker(progress)
        with _signals(made, quiet=quiet, say=progress.say):
            ticker.start()
            try:
                made.run(until=bag.finished_all)
            finally:
                ticker.stop()
    return bag.finished_all()


def make_worker(manager: Manager, *, say: Callable[[str], None], **settings: Any) -> Worker:
    from mtask.worker.supervisor import Options, Worker

    return Worker(manager.queue, manager.table, Options(**settings), say=say)


@contextmanager
def _signals(
    made: Worker, *, quiet: bool, say: Callable[[str], None] = lambda text: click.echo(text, err=True)
) -> Iterator[None]:
    """The first SIGINT, SIGTERM or SIGHUP (the terminal was closed) drains, the second one hurries."""
    asked = [0]

    def on_signal(_number: int, _frame: object) -> None:
        asked[0] += 1
        if asked[0] > 1:
            made.drain("told twice to stop", grace_s=0)
            return
        made.drain("told to stop")
        if not quiet:
            busy, grace_s = made.busy()[0], made.options.grace_s
            rest = (
                f"; what runs ({busy}) may end within {grace_s:g} s, once more stops it now" if busy else ""
            )
            say(f"stopping: what hasn't started goes back to the queue{rest}")

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup sets it
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, on_signal) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
