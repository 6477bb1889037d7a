"""What `mtask submit --estimate` and `mtask run --estimate` say."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from mtask.cli.common import console, tasks_text

if TYPE_CHECKING:
    from mtask.estimate import Estimate
    from mtask.sources import Source

__all__ = ["estimate_option", "show_estimate"]


def estimate_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--estimate", is_flag=True, help="Only check the tasks, and say what they will cost; send nothing."
    )(command)


def show_estimate(
    source: Source, options: dict[str, Any], queue: str | None, table: str | None, *, as_json: bool
) -> int:
    """Check and pack the tasks as `submit` would, and say what that will cost on this queue and table."""
    from mtask.cli.render import print_json
    from mtask.estimate import estimate
    from mtask.manager import make_spec
    from mtask.settings import find_urls
    from mtask.submitting import prepare

    urls = find_urls(queue, table)
    given = {
        name: value
        for name, value in options.items()
        if name not in ("bag", "open", "seal", "template") and value is not None
    }
    spec = make_spec(run=options["template"], columns=source.columns, **given)
    prepared = prepare(source, spec)
    try:
        found = estimate(prepared, urls)
    finally:
        prepared.spool.close()
    if as_json:
        print_json(found)
    else:
        _print(found)
    return 0


def _print(found: Estimate) -> None:
    from rich.text import Text

    from mtask.costs import cost_text

    out = console()
    messages = "1 message" if found.messages == 1 else f"{found.messages:,} messages"
    what = f"{tasks_text(found.tasks)} in {messages} ({found.message_bytes / 1000:,.1f} kB); nothing was sent"
    if found.packed is None or found.alone is None:
        out.print(Text(f"{what}\ncosts nothing on this queue and table"))
        return
    out.print(Text(what))
    out.print(Text(f"as they are packed      {cost_text(found.packed)}"))
    out.print(Text(f"one message for each    {cost_text(found.alone)}"))
    out.print(
        Text(
            f"if the tasks are quick and their results take {found.result_bytes} bytes each; what depends on time comes "
            "on top: leases of long tasks, heartbeats, workers that wait",
            style="dim",
        )
    )
