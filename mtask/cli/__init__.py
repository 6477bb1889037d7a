"""The command `mtask`. One module a group of verbs; each is imported when it is called for."""

from __future__ import annotations

import gc
import importlib
import os
import sys

import click

import mtask

__all__ = ["cli", "main"]

VERBS = {
    "run": "run",
    "submit": "run",
    "worker": "work",
    "roles": "roles",
    "fleet": "fleet",
    "wait": "collect",
    "collect": "collect",
    "status": "status",
    "results": "results",
    "retry": "manage",
    "repair": "manage",
    "seal": "manage",
    "cancel": "manage",
    "dead": "manage",
    "pmc": "pipelines",
    "seqexec": "pipelines",
    "init": "setup",
    "doctor": "setup",
    "completion": "manage",
}
"""Verb → module of this package, in the order of `mtask --help`."""

UNCOLLECTED = 100_000
"""So many objects are made between two looks for cycles: what is read and written by the million has none, and the looks of
Python's default took an eighth of a submit."""


class LazyGroup(click.Group):
    """Knows its verbs by name, and imports them when they are needed."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"mtask.cli.{VERBS[cmd_name]}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            near = difflib.get_close_matches(args[0], VERBS, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"There are {', '.join(VERBS)}."
            raise click.UsageError(f"{error.format_message()} {hint}", ctx) from None


@click.group(
    cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(mtask.__version__, prog_name="mtask")
def cli() -> None:
    """Run many independent tasks: on this machine, a pool, or a cloud fleet.

    The short way: `mtask run tasks.csv --run 'program {column}'`. Queue and table are the SQLite
    file .mtask/mtask.db, unless --queue and --table, MTASK_QUEUE and MTASK_TABLE, or mtask.toml say
    otherwise.

    Exit status: 0 all tasks done; 1 some failed; 2 wrong usage or input, or a place that can't be written; 3 queue
    or table out of reach; 130 interrupted.
    """


def main() -> None:
    """Entry point of the command; turns errors into one message and an exit status."""
    from mtask.errors import MtaskError

    gc.set_threshold(UNCOLLECTED)
    try:
        code = cli.main(prog_name="mtask", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        code = 130
    except MtaskError as error:
        click.echo(f"mtask: {error}", err=True)
        code = error.exit_code
    except BrokenPipeError:
        # Whoever read the output has seen enough, as in `mtask results … | head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code if isinstance(code, int) else 0)
