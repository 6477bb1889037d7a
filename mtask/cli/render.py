"""How status, results and summaries look on a terminal, and as JSON."""

from __future__ import annotations

import time
from itertools import islice
from typing import TYPE_CHECKING, Any

import click
import msgspec
from rich.cells import cell_len
from rich.console import Group
from rich.table import Table
from rich.text import Text

from mtask.cli.common import console, tasks_text
from mtask.costs import cost_text
from mtask.heartbeat import WorkerStatus
from mtask.model import DeadMessage, State
from mtask.progress import duration, eta
from mtask.status import BagStatus, FailureGroup, Summary, headline

if TYPE_CHECKING:
    from mtask.bag import BagHandle
    from mtask.export import Rows

__all__ = ["bag_panel", "bags_table", "dead_tables", "print_json", "print_summary", "results_table"]

MOST_GROUPS = 10
MOST_DEAD = 50
CELL = 40


def print_json(data: object) -> None:
    click.echo(msgspec.json.encode(data))


def bags_table(bags: list[BagStatus]) -> Table | Text:
    if not bags:
        return Text("there is no bag here yet; `mtask run tasks.csv …` makes one")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("bag", overflow="fold", min_width=8)
    table.add_column("state", no_wrap=True)
    for name in ("total", "done", "failed", "left"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("what", no_wrap=True, overflow="ellipsis", ratio=1)
    for bag in bags:
        failed = bag.failed + bag.expired
        table.add_row(
            Text(bag.bag),
            _state(bag),
            f"{bag.total:,}",
            f"{bag.done:,}",
            Text(f"{failed:,}", style="red" if failed else ""),
            f"{bag.left:,}",
            Text(_short(bag.title, 60)),
        )
    return table


def bag_panel(bag: BagStatus) -> Group:
    failed = bag.failed + bag.expired
    line = f"{tasks_text(bag.total)}: {bag.done:,} done, {failed:,} failed, {bag.left:,} left"
    if bag.left and bag.rate:
        line += f" · {bag.rate:,.1f}/s"
        line += f" · ETA {eta(bag.eta_s)}" if bag.eta_s is not None else ""
    parts: list[Any] = [
        Text.assemble((bag.bag, "bold"), "  ", _state(bag), "  ", _short(bag.title, 200)),
        Text(line),
    ]
    if bag.cost is not None:
        parts.append(Text(f"cost  {cost_text(bag.cost)}"))
    if bag.elsewhere:
        parts.append(Text(bag.elsewhere))
    elif bag.left and not bag.workers and bag.state != "cancelled":
        parts.append(Text("no worker is running; `mtask worker` starts one here", style="yellow"))
    parts += [Text(why, style="yellow") for why in bag.unserved]
    if bag.left:
        parts += _workers(bag)
    parts += _groups(bag.failures)
    return Group(*parts)


def _state(bag: BagStatus) -> Text:
    if bag.state == "cancelled":
        return Text("cancelled", style="yellow")
    if bag.unserved:
        return Text(f"waiting: {_short(bag.unserved[0], 60)}", style="yellow")
    if bag.open and not bag.left:
        return Text("open", style="cyan")
    if bag.open:
        return Text(f"open, {'running' if bag.workers or bag.elsewhere else 'waiting'}", style="cyan")
    if not bag.finished:
        return Text(
            {"open": "being submitted", "resending": "being sent again"}.get(
                bag.state, "running" if bag.workers or bag.elsewhere else "waiting"
            ),
            style="cyan",
        )
    return Text("finished", style="red" if bag.failed + bag.expired else "green")


def _workers(bag: BagStatus) -> list[Any]:
    if not bag.workers:
        return []
    table = Table(box=None, pad_edge=False, header_style="bold")
    roles = any(worker.roles is not None for worker in bag.workers)
    for name in ("worker", "state", *(["role"] if roles else []), "slots", "done", "rate", "runs"):
        table.add_column(name)
    now = time.time()
    for worker in bag.workers:
        running = [f"{task.bag}[{task.index}] {duration(now - task.since)}" for task in worker.running[:4]]
        more = ["…"] if len(worker.running) > 4 else []
        table.add_row(
            Text(worker.worker),
            worker.state,
            *([Text(_role(worker))] if roles else []),
            str(worker.slots),
            f"{worker.done:,}",
            f"{worker.rate:,.1f}/s",
            Text(", ".join(running + more)),
        )
    return [Text(), table]


def _role(worker: WorkerStatus) -> str:
    """`any` for one that serves bags whatever they ask for."""
    if worker.roles is None:
        return "any"
    return f"{','.join(worker.roles) or 'none'}{f' ({worker.takes})' if worker.takes else ''}"


def _groups(groups: tuple[FailureGroup, ...]) -> list[Any]:
    if not groups:
        return []
    parts: list[Any] = [Text()]
    for group in groups[:MOST_GROUPS]:
        example = f"task {group.index}" + (f" (id {_short(group.id, 40)})" if group.id else "")
        text = _short(headline(group.type, group.message), 200)
        parts.append(Text.assemble((f"{group.count:,} × ", "red"), text, (f"   e.g. {example}", "dim")))
    if len(groups) > MOST_GROUPS:
        parts.append(Text(f"and {len(groups) - MOST_GROUPS} other kinds of failure"))
    return parts


def print_summary(summary: Summary, *, finished: bool) -> None:
    failed, out = summary.failed + summary.expired, console()
    if not finished:
        out.print(
            Text(
                f"interrupted: {summary.done:,} done, {failed:,} failed, {summary.left:,} left; "
                f"the same command goes on, `mtask cancel {summary.bag}` gives up"
            )
        )
        return
    line = Text.assemble((f"{summary.done:,} done", "green" if not failed else ""))
    if failed:
        line.append(f", {failed:,} failed", style="red")
    if summary.left:
        line.append(f", {summary.left:,} cancelled", style="yellow")
    if summary.ran:
        if summary.ran < summary.done + failed:
            line.append(f" ({summary.ran:,} in this run)")
        line.append(f" in {duration(summary.wall_s)} · {summary.tasks_per_s:,.1f} tasks/s")
    if summary.ran and summary.p50_s is not None and summary.p95_s is not None:
        line.append(f" · a task p50 {duration(summary.p50_s)}, p95 {duration(summary.p95_s)}")
    if summary.efficiency is not None:
        line.append(f" · slots busy {summary.efficiency:.0%}")
    out.print(line)
    if summary.cost is not None:
        out.print(Text(f"cost  {cost_text(summary.cost)}"))
    if summary.failures:
        out.print(Group(*_groups(summary.failures)[1:]))
        out.print(
            Text(
                f"`mtask results {summary.bag} --failed` shows them, `mtask retry {summary.bag}` sends them again"
            )
        )
    elif summary.done:
        out.print(Text(f"`mtask results {summary.bag}` shows the results, with -o FILE writes them"))


def results_table(rows: Rows, width: int) -> tuple[Table | Text, int, list[str]]:
    """The picture, how many rows are in it, and the columns for which it has no room."""
    from mtask.export import OWN_COLUMNS

    cells = [[_cell(value, name) for name, value in zip(rows.columns, row, strict=True)] for row in rows]
    if not cells:
        return Text("no results"), 0, []
    widths = {
        at: max(cell_len(name), *(row[at].cell_len for row in cells)) + 2
        for at, name in enumerate(rows.columns)
        if name.removeprefix("mtask.") not in _HIDDEN and any(row[at] for row in cells)
    }
    left_out = []
    least = [at for at in reversed(widths) if rows.columns[at].removeprefix("mtask.") not in _IMPORTANT]
    own = {at for at in least if rows.columns[at] in OWN_COLUMNS}
    for at in sorted(least, key=lambda at: at not in own):
        if sum(widths.values()) > width:
            left_out.append(rows.columns[at])
            del widths[at]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for at in widths:
        table.add_column(Text(rows.columns[at]), no_wrap=True, overflow="ellipsis")
    for row in cells:
        table.add_row(*(row[at] for at in widths))
    return table, len(cells), left_out


_IMPORTANT = {"index", "state", "value", "error_type", "error_message"}
_HIDDEN = {"worker", "host", "queued_at", "started_at", "finished_at", "cpu_s", "peak_bytes", "traceback"}


def dead_tables(messages: list[DeadMessage], bags: list[BagHandle]) -> Group:
    """Messages that can't be read, and failed tasks, `MOST_DEAD` of each bag."""
    return Group(*_unreadable(messages), *(part for bag in bags for part in _failed(bag)))


def _unreadable(messages: list[DeadMessage]) -> list[Any]:
    if not messages:
        return [Text("no message was set aside")]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("at (UTC)", "reason", "body"):
        table.add_column(name)
    for message in messages:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(message.at))
        body = message.body[:200].decode("utf-8", "backslashreplace")
        table.add_row(at, Text(message.reason), Text(_short(body, 80)))
    return [table]


def _failed(bag: BagHandle) -> list[Any]:
    counts = bag.counts()
    failed = counts.failed + counts.expired
    if not failed:
        return []
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("task", "id", "reason", "attempts", "error"):
        table.add_column(name)
    for result in islice(bag.results(states=(State.FAILED, State.EXPIRED)), MOST_DEAD):
        assert result.error is not None
        error = _short(f"{result.error.type}: {result.error.message}", 120)
        table.add_row(
            str(result.index), Text(result.id or ""), result.error.reason, str(result.attempt), Text(error)
        )
    more = [Text(f"and {failed - MOST_DEAD:,} more")] if failed > MOST_DEAD else []
    return [Text(), Text(f"{bag.name}: {failed:,} failed", style="bold"), table, *more]


def _cell(value: Any, column: str) -> Text:
    if value is None:
        return Text("")
    if column == "wall_s":
        return Text(f"{value:.3f}" if value >= 0.01 else f"{value:.6f}")
    if isinstance(value, float):
        return Text(f"{value:.4g}")
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    style = {"done": "green", "failed": "red", "expired": "yellow"}.get(text, "")
    return Text(_short(text, CELL), style=style)


def _short(text: str, most: int) -> str:
    """On one line, and without what would command the terminal."""
    text = "".join(char if char.isprintable() else "�" for char in " ".join(text.split()))
    return text if len(text) <= most else text[: most - 1] + "…"
