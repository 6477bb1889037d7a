"""Options and small things that several verbs share."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from rich.console import Console

    from mtask.manager import Manager

__all__ = ["DURATION", "bag_argument", "connect", "console", "exit_code", "places", "quiet"]


class Duration(click.ParamType[float]):
    """Seconds; also `90s`, `5m`, `2h`, `1d`."""

    name = "duration"
    _UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, int | float):
            return float(value)
        found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(s|m|min|h|d|)\s*", str(value))
        if not found:
            self.fail(f"{value!r} is not a duration; write seconds, or 90s, 5m, 2h, 1d", param, ctx)
        return float(found[1]) * self._UNITS[found[2]]


DURATION = Duration()


def places(command: Callable[..., Any]) -> Callable[..., Any]:
    """--queue and --table."""
    table = click.option("--table", metavar="URL", help="Where results are kept.  [default: see above]")
    queue = click.option("--queue", metavar="URL", help="The queue.  [default: .mtask/mtask.db]")
    return queue(table(command))


def quiet(command: Callable[..., Any]) -> Callable[..., Any]:
    """--quiet and --json."""
    as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, and nothing else.")
    silent = click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
    return silent(as_json(command))


def bag_argument(*, required: bool) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.argument("bag", required=required, shell_complete=_complete_bag)


def connect(queue: str | None, table: str | None) -> Manager:
    from mtask.manager import connect as open_both

    return open_both(queue, table)


def console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    made = Console(stderr=stderr, highlight=False)
    if not made.is_terminal:
        # Files and pipes get whole lines, whatever the width of the terminal.
        made.width = int(os.environ.get("COLUMNS") or 160)
    return made


def exit_code(failed: int) -> int:
    return 1 if failed else 0


def _complete_bag(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    try:
        with connect(ctx.params.get("queue"), ctx.params.get("table")) as manager:
            names = [bag.name for bag in manager.bags()]
    except Exception:
        return []  # completion must never print
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]
