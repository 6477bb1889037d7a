"""What `mtask run` and `mtask submit` take: the tasks, what to run, and how."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

from mtask.cli.common import Duration, Whole
from mtask.cli.types import Cpus, Gpus, Memory, Names, PerMessage, Priority, Rate, Size, Staged, Tags, When

__all__ = ["task_options"]


def _by_name(
    context: click.Context, option: click.Parameter, given: Sequence[tuple[str, str]]
) -> dict[str, str] | None:
    """None, as any option that wasn't given."""
    named = dict(given)
    if len(named) < len(given):
        raise click.BadParameter("the same name twice", context, option)
    return named or None


def task_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What to run, and how."""
    options = (
        click.argument("tasks", metavar="TASKS", type=click.Path()),
        click.option("--call", metavar="MODULE:FUNCTION", help="Call this Python function with each row."),
        click.option(
            "--run", "template", metavar="TEMPLATE", help="Start this program; {column} is replaced."
        ),
        click.option(
            "--shell", metavar="SCRIPT", help="Run this sh script; columns are its variables: $column."
        ),
        click.option(
            "--in",
            "inputs",
            type=Staged("--in"),
            multiple=True,
            callback=_by_name,
            metavar="NAME=URL",
            help="Fetch this first, once a host; {NAME} or $NAME is its path. In the URL, {column} is replaced.",
        ),
        click.option(
            "--out",
            "outputs",
            type=Staged("--out"),
            multiple=True,
            callback=_by_name,
            metavar="NAME=URL",
            help="Put what the task wrote to {NAME} or $NAME there, when it has succeeded.",
        ),
        click.option("--bag", metavar="NAME", help="Name of the bag.  [default: the file's name]"),
        click.option(
            "--retries",
            type=Whole(0),
            default=3,
            show_default=True,
            metavar="N",
            help="How often a failed task is tried again.",
        ),
        click.option(
            "--timeout",
            "timeout_s",
            type=Duration(positive=True),
            metavar="TIME",
            help="Longest time of an attempt.  [default: none]",
        ),
        click.option(
            "--lease",
            "lease_s",
            type=Duration("1s"),
            metavar="TIME",
            default="60s",
            show_default=True,
            help="A dead worker's tasks start elsewhere after this time.",
        ),
        click.option(
            "--max-deliveries",
            type=Whole(1),
            default=5,
            show_default=True,
            metavar="N",
            help="A task fails when so many workers died with it.",
        ),
        click.option(
            "--retry-on",
            type=Names(),
            metavar="NAME,…",
            help="Try again only these: exception classes, exit codes, or timeout, signal, memory, staging, ….",
        ),
        click.option("--no-retry", type=Names(), metavar="NAME,…", help="Don't try these again."),
        click.option(
            "--cpus", type=Cpus(), metavar="N", help="CPUs that a task takes of its worker's.  [default: 1]"
        ),
        click.option(
            "--memory",
            "memory_bytes",
            type=Memory(),
            metavar="SIZE",
            help="Reserved for a task, as 2GB or 512MiB; an attempt that takes more is ended.",
        ),
        click.option("--gpus", type=Gpus(), metavar="N", help="GPUs that a task takes.  [default: 0]"),
        click.option(
            "--tags",
            type=Tags(negative=True),
            metavar="TAG,…",
            help="The worker has all of these, and none written '!TAG'.",
        ),
        click.option(
            "--only-on",
            type=Tags(),
            metavar="TAG,…",
            help="The worker has at least one of these: for data that must stay in a place.",
        ),
        click.option(
            "--priority",
            type=Priority(),
            metavar="HOW",
            help="high, normal, low, or from -9 to 9: higher ones start first.  [default: normal]",
        ),
        click.option(
            "--max-running", type=Whole(1), metavar="N", help="Most tasks that run at a time, on all workers."
        ),
        click.option(
            "--rate",
            type=Rate(),
            metavar="RATE",
            help="Most tasks that start, on all workers: 10/s, 600/min, 100/h.",
        ),
        click.option(
            "--key", metavar="COLUMN", help="Leave out rows whose value in this column was there before."
        ),
        click.option(
            "--serial",
            metavar="COLUMN",
            help="Run rows with the same value in this column one after the other.",
        ),
        click.option(
            "--then",
            metavar="MODULE:FUNCTION",
            help="When all tasks are done, call this with an iterator of their results: the one task of the bag NAME.then.",
        ),
        click.option(
            "--expires",
            "expires_s",
            type=Duration(positive=True),
            metavar="TIME",
            help="A task that hasn't started by then is not run.",
        ),
        click.option(
            "--keep",
            "keep_s",
            type=Duration("1h"),
            metavar="TIME",
            help="The table may forget the results so long after the submit: 30d.  [default: never]",
        ),
        click.option(
            "--not-before",
            "not_before_at",
            type=When(),
            metavar="WHEN",
            help="Start none before: in 2h, or at 2030-01-31T08:00.",
        ),
        click.option(
            "--tail",
            "tail_bytes",
            type=Size(),
            metavar="SIZE",
            default="16KiB",
            show_default=True,
            help="How much of the end of what a task prints is kept.",
        ),
        click.option(
            "--per-message",
            type=PerMessage(),
            default="auto",
            show_default=True,
            metavar="N",
            help="Most tasks in a message; auto begins with 1 and grows.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command
