"""`mtask roles`: which bags the workers serve that take their role from the table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from mtask.cli.common import Whole, connect, console, places, say_once

if TYPE_CHECKING:
    from rich.console import Group

    from mtask.roles import Roles

__all__ = ["roles"]


class Shares(click.ParamType[tuple[str, int]]):
    """ROLE=N."""

    name = "share"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int]:
        role, equals, number = str(value).partition("=")
        if not equals or not role or not number.isdecimal():
            self.fail(f"{value!r} should look like physics=4", param, ctx)
        return role, Whole(0).convert(number, param, ctx)


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@places
@click.pass_context
def roles(ctx: click.Context, as_json: bool, queue: str | None, table: str | None) -> int:
    """Show or set how many workers serve which role.

    A role is a tag that bags ask for (--tags). Workers started with `--roles auto` take the roles that are set here,
    and change them while they run.
    """
    ctx.obj = queue, table
    if ctx.invoked_subcommand is None:
        from mtask.cli.render import print_json

        with connect(queue, table, create=False) as manager:
            found = manager.roles(skipped=say_once())
        print_json(found) if as_json else console().print(_picture(found))
    return 0


@roles.command("set")
@click.argument("shares", type=Shares(), nargs=-1, required=True, metavar="ROLE=N…")
@click.option("--new", is_flag=True, help="Also roles that no bag asks for yet.")
@places
@click.pass_context
def set_(
    ctx: click.Context, shares: tuple[tuple[str, int], ...], new: bool, queue: str | None, table: str | None
) -> int:
    """Have N of the workers serve each ROLE.

    The numbers are shares if there are more or fewer workers with `--roles auto`. What was set before is replaced.
    Workers change within 10 s: what they run may end, and what they haven't started is given back.
    """
    from mtask.errors import UsageError
    from mtask.table import leave_out

    want = dict(shares)
    if len(want) < len(shares):
        raise UsageError("a role is named twice")
    with connect(*_places(ctx, queue, table)) as manager:
        manager.set_roles(want, new=new)
        _say_how_many(manager.roles(skipped=leave_out))
    return 0


@roles.command()
@places
@click.pass_context
def unset(ctx: click.Context, queue: str | None, table: str | None) -> int:
    """Take the roles away again.

    Workers with `--roles auto` wait then, until others are set.
    """
    from mtask.table import leave_out

    with connect(*_places(ctx, queue, table), create=False) as manager:
        manager.set_roles({})
        _say_how_many(manager.roles(skipped=leave_out))
    return 0


def _places(ctx: click.Context, queue: str | None, table: str | None) -> tuple[str | None, str | None]:
    """Those of this command, or of the one above."""
    above = ctx.obj or (None, None)
    return queue or above[0], table or above[1]


def _say_how_many(found: Roles) -> None:
    auto = sum(takes == "auto" for takes in found.taking.values())
    then = ": `mtask worker --roles auto` starts one" if not auto else ", which change within 10 s"
    click.echo(
        f"{_wanted(found.wanted)}; {auto:,} worker{'s' * (auto != 1)} with --roles auto{then}", err=True
    )


def _wanted(wanted: Mapping[str, int]) -> str:
    return " ".join(f"{role}={number}" for role, number in wanted.items()) or "no roles are set"


def _picture(found: Roles) -> Group:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("role", "wanted", "workers", "open tasks", "which"):
        table.add_column(name)
    serving = found.serving
    for role in sorted({*found.wanted, *serving, *found.open_tasks}):
        names = [worker for worker, roles in found.workers.items() if role in roles]
        how = [f"{name} ({found.taking[name]})" if found.taking[name] else name for name in names[:4]]
        table.add_row(
            Text(role),
            str(found.wanted.get(role, "")),
            str(serving.get(role, 0)),
            f"{found.open_tasks.get(role, 0):,}",
            Text(", ".join(how + ["…"] * (len(names) > 4))),
        )
    lines = [Text(f"set for --roles auto: {_wanted(found.wanted)}")]
    idle = [worker for worker, roles in found.workers.items() if not roles]
    if idle:
        lines.append(Text(f"without a role: {', '.join(idle[:4])}{', …' * (len(idle) > 4)}", style="yellow"))
    return Group(*lines, *([Text(), table] if table.row_count else [Text("no bag asks for a role")]))
