"""`mtask run` and `mtask submit`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from mtask.cli.common import connect, exit_code, is_default, places, quiet, tasks_text, then_failed
from mtask.cli.estimate import estimate_option, show_estimate
from mtask.cli.task_options import task_options
from mtask.cli.work import Saying, make_worker, slot_options, work_until, worker_options

if TYPE_CHECKING:
    from mtask.bag import BagHandle
    from mtask.manager import Manager
    from mtask.sources import Source
    from mtask.submitting import Prepared
    from mtask.worker.supervisor import Worker

__all__ = ["run", "submit"]

WORKER_SETTINGS = ("grace_s", "max_tasks_per_child", "max_memory_per_child_bytes", "split_after_s")
"""What `worker_options` adds to the options of the tasks."""


@click.command()
@task_options
@estimate_option
@click.option(
    "--retry-failed",
    is_flag=True,
    help="Tasks of --bag that failed in an earlier run get new attempts.",
)
@slot_options
@worker_options
@places
@quiet
def run(
    tasks: str,
    queue: str | None,
    table: str | None,
    quiet: bool,
    as_json: bool,
    slots: int,
    estimate: bool,
    retry_failed: bool,
    **options: Any,
) -> int:
    """Run all tasks of a file here and now.

    TASKS is a CSV file (also .tsv, .jsonl, .parquet; .gz and .zst of them; - is standard input), one
    task a line, whose columns are the parameters. A column `id` is your own name for the task. Without
    --call, --run and --shell, the column `command` holds the command line of each task.

    Interrupted, it goes on by the same command. Others may help: `mtask worker` in the same folder.
    A TIME is in seconds, or like 90s, 5m, 2h.

    What a task needs can also be said by columns of its row: cpus, memory, gpus, tags, priority. An empty
    cell takes the option's value.

    \b
    Examples:
    mtask run tasks.csv --call mymodule:predict -j 4
    mtask run tasks.csv --run 'blastn -query {reads} -db {db} -outfmt 6'
    """
    if retry_failed and options["bag"] is None:
        raise click.UsageError(
            "--retry-failed needs --bag NAME: without it, a run of tasks that have ended is a new bag"
        )
    alone = is_default(queue, table)
    worker_settings = {"alone": alone, **{key: options.pop(key) for key in WORKER_SETTINGS}}
    shown = not (quiet or as_json)
    source = _opened(tasks, options, here=True)
    if estimate:
        return show_estimate(source, options, queue, table, as_json=as_json)

    saying = Saying()
    made: list[Worker] = []

    def on_checked(prepared: Prepared, say: Callable[[str], None]) -> None:
        from mtask.cli.needs import tags_here

        needs = prepared.placing.needs
        tags = tags_here(needs, slots, alone=alone, say=say)
        made.append(make_worker(manager, say=saying, slots=slots, tags=tags, **worker_settings))
        if len(needs) == 1:
            made[0].warm(
                needs[0], prepared.total, functions=prepared.spec.kind == "call"
            )  # while the tasks are sent

    with connect(queue, table) as manager:
        if manager.hands_out:
            from mtask.errors import UsageError

            raise UsageError(
                f"{manager.place} runs tasks elsewhere: `mtask submit {tasks} …` with the same options, then `mtask wait BAG`"
            )
        finished = True
        try:
            bag, sent = _submit(manager, source, options, shown, on_checked)
            again = bag.retry() if retry_failed else 0
            if shown:
                if again:
                    click.echo(f"bag {bag.name!r}: {tasks_text(again)} tried again", err=True)
                _announce(bag, sent, again="--retry-failed for the tasks that failed")
                _warn_of_others(manager, bag)
            began_s, before = time.monotonic(), bag.counts().ended
            if not bag.finished_all():
                finished = work_until(made.pop(), bag, saying=saying, shown=shown, quiet=quiet)
        finally:
            for each in made:
                each.discard()
        return _conclude(bag, slots, time.monotonic() - began_s, before, finished, quiet, as_json)


def _conclude(
    bag: BagHandle, slots: int, wall_s: float, before: int, finished: bool, quiet: bool, as_json: bool
) -> int:
    counts = bag.counts()
    if as_json or not quiet:
        from mtask.cli.render import print_json, print_summary
        from mtask.status import summarize

        summary = summarize(bag, wall_s=wall_s, ended=counts.ended - before, slots=slots)
        if as_json:
            print_json(summary)
        elif summary.total or finished:
            print_summary(summary, finished=finished)
    if not finished:
        return 130
    return exit_code(counts.failed + counts.expired + counts.left + then_failed(bag, quiet=quiet or as_json))


@click.command()
@task_options
@click.option(
    "--open",
    "open",
    is_flag=True,
    help="Add them to the open bag of this name, to which more can be added until it is sealed.",
)
@click.option("--seal", is_flag=True, help="The same, for the last time: seal the bag then.")
@estimate_option
@places
@quiet
def submit(
    tasks: str,
    queue: str | None,
    table: str | None,
    quiet: bool,
    as_json: bool,
    estimate: bool,
    **options: Any,
) -> int:
    """Send all tasks of a file to the queue, for workers.

    First all of them are checked; when one is wrong, none is sent. TASKS and the options are those of
    `mtask run`. Interrupted, it goes on by the same command.

    With --open, further submits add to the bag until it is sealed. The same tasks once more add nothing; with
    --key, nor does a row whose key is in the bag already.

    \b
    Example:
    mtask submit tasks.csv --call mymodule:predict --bag june
    mtask worker -j 8
    mtask status june
    """
    from mtask.cli.needs import of_workers, worker_for

    shown, starts = not (quiet or as_json), "mtask worker"
    source = _opened(tasks, options, here=False)
    if estimate:
        return show_estimate(source, options, queue, table, as_json=as_json)

    def on_checked(prepared: Prepared, say: Callable[[str], None]) -> None:
        nonlocal starts
        needs = prepared.placing.needs
        starts, now = worker_for(needs), time.time()
        for note in of_workers(needs, [worker for worker in manager.table.workers() if worker.alive(now)]):
            say(note)

    with connect(queue, table) as manager:
        bag, sent = _submit(manager, source, options, shown, on_checked)
        if as_json:
            from mtask.cli.render import print_json

            print_json({"bag": bag.name, "total": bag.counts().total, "sent": sent})
        elif shown:
            runs = f"`{starts}` runs them"
            if manager.collects:
                runs = "HTCondor runs them, records their results and tries again what failed"
            elif manager.hands_out:
                runs = f"`mtask wait {bag.name}` records their results and, while it runs, tries again what failed"
            hint = f"{runs}, `mtask status {bag.name}` shows how it goes"
            if options["open"] or options["seal"]:
                _announce_added(bag, sent, hint)
            else:
                again = f"`mtask retry {bag.name}` for the tasks that failed"
                _announce(bag, sent, again=again, hint=hint)
    return 0


def _opened(tasks: str, options: dict[str, Any], *, here: bool) -> Source:
    """The task file, after the checks that need neither its rows nor the queue.

    With `here`, the program must be on this machine.
    """
    from mtask.arguments import check_program
    from mtask.manager import make_spec
    from mtask.sources import open_source
    from mtask.staging import staged_columns
    from mtask.submitting import check_name
    from mtask.template import Template

    if options["bag"] is not None:
        check_name(options["bag"])
    source = open_source(tasks)
    inputs, outputs = options["inputs"] or {}, options["outputs"] or {}
    named = staged_columns(source.columns, inputs, outputs)
    make_spec(call=options["call"], run=options["template"], shell=options["shell"], columns=named)
    if here and options["template"] is not None:
        check_program(Template.parse(options["template"], named))
    return source


def _submit(
    manager: Manager,
    source: Source,
    options: dict[str, Any],
    shown: bool,
    on_checked: Callable[[Prepared, Callable[[str], None]], None],
) -> tuple[BagHandle, int]:
    """The bag, and how many of its tasks were sent just now.

    `on_checked` gets the tasks, before any is sent, and something to say a line with; it may raise.
    """
    sent = 0
    line = _Line(shown and sys.stderr.isatty())
    template = options.pop("template")
    given = {name: value for name, value in options.items() if value is not None}

    def say(text: str) -> None:
        if shown:
            line.clear()
            click.echo(text, err=True)

    def on_prepared(prepared: Prepared) -> None:
        from mtask.cli.needs import of_rows

        for note in of_rows(prepared):
            say(note)
        on_checked(prepared, say)

    def on_sent(through: int) -> None:
        nonlocal sent
        sent = through
        line.show(f"{tasks_text(through)} sent")

    try:
        bag = manager.submit(
            source,
            run=template,
            on_rows=lambda n: line.show(f"{tasks_text(n)} checked"),
            on_checked=on_prepared,
            on_sent=on_sent,
            **given,
        )
    except KeyboardInterrupt:
        line.clear()
        how = f"after {tasks_text(sent)} were sent" if sent else "before all tasks were checked and sent"
        click.echo(f"interrupted {how}; the same command goes on", err=True)
        raise click.exceptions.Exit(130) from None
    finally:
        line.clear()
    return bag, sent


class _Line:
    """A line that is written over, for what may take a while."""

    def __init__(self, shown: bool) -> None:
        self._shown, self._last_s, self._width = shown, time.monotonic(), 0

    def show(self, text: str) -> None:
        now_s = time.monotonic()
        if self._shown and now_s - self._last_s > 0.2:
            self._last_s = now_s
            sys.stderr.write("\r" + text.ljust(self._width))
            sys.stderr.flush()
            self._width = len(text)

    def clear(self) -> None:
        if self._width:
            sys.stderr.write("\r" + " " * self._width + "\r")
            sys.stderr.flush()


def _announce(bag: BagHandle, sent: int, *, again: str, hint: str = "") -> None:
    """`again`: what runs failed tasks again."""
    counts = bag.counts()
    if not counts.total:
        text = f"bag {bag.name!r}: there is no task in the file; nothing to do"
    elif not sent and not counts.left:
        text = f"bag {bag.name!r}: all {counts.total:,} tasks have ended already; for another run choose another --bag"
        if counts.failed:
            text += f", or {again}"
    elif counts.ended or not sent:
        text = f"bag {bag.name!r}: going on, {counts.left:,} of {tasks_text(counts.total)} are left"
    else:
        text = f"bag {bag.name!r}: {tasks_text(counts.total)}"
    click.echo(f"{text}; {hint}" if hint and counts.left else text, err=True)


def _announce_added(bag: BagHandle, added: int, hint: str) -> None:
    from mtask.model import BagState

    total, what = bag.counts().total, tasks_text(added) if added else "nothing new"
    if bag.info.state is not BagState.OPEN:
        hint = "sealed"
    elif not added:
        hint = f"`mtask seal {bag.name}` closes it"
    click.echo(f"bag {bag.name!r}: {what} added, {total:,} in all; {hint}", err=True)


def _warn_of_others(manager: Manager, bag: BagHandle) -> None:
    """What waits in the queue already comes first: say so, or a run seems to stand still."""
    from mtask.model import BagState
    from mtask.table import leave_out

    waiting = list[str]()
    for other in manager.table.bags(skipped=leave_out):
        if other.name == bag.name or other.state is BagState.CANCELLED or len(waiting) == 3:
            continue
        if left := manager.table.counts(other.name).left:
            waiting.append(f"{other.name} ({left:,} left)")
    if waiting and not bag.finished():
        click.echo(
            f"in the queue are also {', '.join(waiting)}, and may come first; `mtask cancel NAME` gives a bag up",
            err=True,
        )
