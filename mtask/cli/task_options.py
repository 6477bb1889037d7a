"""What `mtask run` and `mtask submit` take: the tasks, what to run, and how."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

import click

from mtask.cli.common import Duration, Whole

__all__ = ["task_options"]

_SIZES = {"": 1, "B": 1, "K": 1000, "KB": 1000, "KIB": 1024, "M": 10**6, "MB": 10**6, "MIB": 2**20}
_SIZES |= {"G": 10**9, "GB": 10**9, "GIB": 2**30, "T": 10**12, "TB": 10**12, "TIB": 2**40}


class Size(click.ParamType[int]):
    """Bytes; also `16KiB`, `512MB`, `2GB`."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        found = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([A-Za-z]*)\s*", str(value))
        if not found or found[2].upper() not in _SIZES:
            self.fail(f"{value!r} is not a size; write bytes, or 512MB, 2GB, 2GiB", param, ctx)
        return int(float(found[1]) * _SIZES[found[2].upper()])


class Names(click.ParamType[tuple[str, ...]]):
    """Words separated by commas."""

    name = "names"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        names = tuple(part.strip() for part in str(value).split(","))
        if not all(names):
            self.fail(f"{value!r} has an empty name in it", param, ctx)
        return names


class When(click.ParamType[float]):
    """A time from now on (`2h`), or a date and time of this machine's zone, or with its own. UTC seconds."""

    name = "when"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return datetime.fromisoformat(str(value)).astimezone().timestamp()
        except ValueError:
            pass
        try:
            return time.time() + Duration().convert(value, param, ctx)
        except click.BadParameter:
            self.fail(
                f"{value!r} is neither a time from now, like 2h, nor a date, like 2030-01-31T08:00",
                param,
                ctx,
            )


class PerMessage(click.ParamType[int | None]):
    """A number of tasks, or `auto`."""

    name = "number or auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        if value == "auto":
            return None
        if not str(value).isdecimal() or int(value) < 1:
            self.fail(f"{value!r} is neither a number from 1 on nor 'auto'", param, ctx)
        return int(value)


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
            help="Try again only these: exception classes, exit codes, or timeout, signal, memory, ….",
        ),
        click.option("--no-retry", type=Names(), metavar="NAME,…", help="Don't try these again."),
        click.option(
            "--memory",
            "memory_bytes",
            type=Size(),
            metavar="SIZE",
            help="End an attempt that takes more, as 2GB or 512MiB.",
        ),
        click.option(
            "--expires",
            "expires_s",
            type=Duration(positive=True),
            metavar="TIME",
            help="A task that hasn't started by then is not run.",
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
