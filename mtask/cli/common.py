"""Options and small things that several verbs share."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from mtask.errors import SchemaError, UsageError
from mtask.start import import_msgspec

if TYPE_CHECKING:
    from rich.console import Console

    from mtask.bag import BagHandle
    from mtask.manager import Manager
    from mtask.table import Skipped

__all__ = [
    "Duration",
    "NothingHereError",
    "Whole",
    "bag_argument",
    "complete_bag",
    "connect",
    "console",
    "exit_code",
    "is_default",
    "no_password",
    "places",
    "quiet",
    "say_once",
    "tasks_text",
    "then_failed",
]

DEFAULT_PATH = ".mtask/mtask.db"


class NothingHereError(UsageError):
    """No task was ever submitted from this folder."""


_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


class Duration(click.ParamType[float]):
    """Seconds; also `90s`, `5m`, `2h`, `1d`."""

    name = "duration"

    def __init__(self, least: str = "0s", *, positive: bool = False) -> None:
        self._least, self._positive = least, positive

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds = self._seconds(str(value))
        if seconds is None:
            self.fail(f"{value!r} is not a duration; write seconds, or 90s, 5m, 2h, 1d", param, ctx)
        if self._positive and seconds == 0:
            self.fail(f"{value!r} is too short; it must be more than 0", param, ctx)
        if seconds < (self._seconds(self._least) or 0):
            self.fail(f"{value!r} is too short; the least is {self._least}", param, ctx)
        return seconds

    def _seconds(self, text: str) -> float | None:
        found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(s|m|min|h|d|)\s*", text)
        return float(found[1]) * _UNITS[found[2]] if found else None


class Whole(click.ParamType[int]):
    """A whole number, not below `least`."""

    name = "number"
    most = 2**53
    """As in a spec; a float has it exactly."""

    def __init__(self, least: int) -> None:
        self._least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value).strip()
        if not re.fullmatch(r"[+-]?\d+", text):
            self.fail(f"{value!r} is not a whole number", param, ctx)
        number = float(text)  # int() refuses what has thousands of digits
        if number > self.most:
            self.fail(
                f"{text[:40]!r}{'…' * (len(text) > 40)} is too large; the most is {self.most}", param, ctx
            )
        if number < self._least:
            self.fail(f"{value!r} is too small; the least is {self._least}", param, ctx)
        return int(number)


def places(command: Callable[..., Any]) -> Callable[..., Any]:
    """--queue and --table, of all commands that use them; these begin by importing what they need, quickly."""

    @functools.wraps(command)
    def begin(*args: Any, **options: Any) -> Any:
        import_msgspec()
        return command(*args, **options)

    table = click.option(
        "--table",
        metavar="URL",
        callback=no_password,
        help="Where results are kept.  [default: with the queue]",
    )
    queue = click.option(
        "--queue", metavar="URL", callback=no_password, help=f"The queue.  [default: {DEFAULT_PATH}]"
    )
    return queue(table(begin))


def no_password(ctx: click.Context, param: click.Parameter, url: str | None) -> str | None:
    """The URL of an option or an argument; raises UsageError for one with a password."""
    if url and not ctx.resilient_parsing and ("@" in url or "password=" in url):
        from mtask.registry import shown

        if shown(url) != url:
            variable = "MTASK_TABLE" if param.name == "table" else "MTASK_QUEUE"
            raise UsageError(
                f"{shown(url)!r}: a password on the command line is seen by everybody on this machine; leave it out if "
                f"the backend finds it elsewhere, or set {variable}, or write the URL to mtask.toml"
            )
    return url


def quiet(command: Callable[..., Any]) -> Callable[..., Any]:
    """--quiet and --json."""
    as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, and nothing else.")
    silent = click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
    return silent(as_json(command))


def bag_argument(*, required: bool) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.argument("bag", required=required, shell_complete=complete_bag)


def connect(queue: str | None, table: str | None, *, create: bool = True) -> Manager:
    """With `create` false, looking into a folder without `.mtask/` doesn't make one.

    Raises NothingHereError instead.
    """
    from mtask.manager import connect as open_both
    from mtask.settings import DEFAULT_URL, find_urls

    if not create and find_urls(queue, table).table == DEFAULT_URL and not os.path.exists(DEFAULT_PATH):
        raise NothingHereError(
            f"there is no {DEFAULT_PATH} in {os.getcwd()}: nothing was submitted here yet. Go to the folder "
            "where you did, or say --queue and --table, or set MTASK_QUEUE and MTASK_TABLE"
        )
    return open_both(queue, table)


def is_default(queue: str | None, table: str | None) -> bool:
    """Is the queue the SQLite file of this folder?"""
    from mtask.settings import DEFAULT_URL, find_urls

    return find_urls(queue, table).queue == DEFAULT_URL


def tasks_text(count: int) -> str:
    return "1 task" if count == 1 else f"{count:,} tasks"


def console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    made = Console(stderr=stderr, highlight=False, emoji=False)
    if not made.is_terminal:
        # Files and pipes get whole lines, whatever the width of the terminal.
        made.width = int(os.environ.get("COLUMNS") or 160)
    return made


def exit_code(failed: int) -> int:
    return 1 if failed else 0


def then_failed(bag: BagHandle, *, quiet: bool) -> int:
    """1 if the task that comes after a finished bag (`--then`) failed; says how it went, or that it won't come."""
    function, then = bag.info.spec.then, bag.then()
    if not function:
        return 0
    result = next(then.results(), None) if then is not None else None
    if then is None:
        text = (
            f"{function} was not called: not all tasks are done (`mtask retry {bag.name}` tries them again)"
        )
    elif result is None or result.error is None:
        text = f"{function} was called: `mtask results {then.name}` shows what it returned"
    else:
        text = f"{function} failed: {result.error.type}: {result.error.message} (`mtask retry {then.name}` calls it again)"
    if not quiet:
        click.echo(text, err=True)
    return int(result is not None and result.error is not None)


def say_once() -> Skipped:
    """Says of each bag that can't be read that the list is without it; how often it may be looked at."""
    said = set[str]()

    def say(error: SchemaError) -> None:
        if str(error) not in said:
            said.add(str(error))
            click.echo(f"mtask: left out: {error}", err=True)

    return say


def complete_bag(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from mtask.table import leave_out

    try:
        with connect(ctx.params.get("queue"), ctx.params.get("table"), create=False) as manager:
            names = [bag.name for bag in manager.bags(skipped=leave_out)]
    except Exception:
        return []  # completion must never print
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]
