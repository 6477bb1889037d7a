"""`mtask init` and `mtask doctor`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mtask.cli.common import places

if TYPE_CHECKING:
    from mtask.doctor import Finding
    from mtask.settings import Urls

__all__ = ["doctor", "init"]

MARKS = {True: "ok", False: "problem", None: "?"}


@click.command()
@click.argument("queue", required=False, metavar="[URL]")
@click.option("--table", metavar="URL", help="Where results are kept.  [default: with the queue]")
@click.option(
    "--file/--no-file", "write", default=True, help="Write the URLs to ./mtask.toml.  [default: file]"
)
def init(queue: str | None, table: str | None, write: bool) -> int:
    """Make the queue and the table, and all that they need.

    What is there already is left as it is, so it can be called again. URL is that of the queue; without one, those that are set
    up already are made (MTASK_QUEUE, MTASK_TABLE, mtask.toml). A new URL is written to mtask.toml, so that
    `mtask submit` and `mtask worker` in this folder need none.

    \b
    Example:
    mtask init sqs://us-west-2/reads
    mtask doctor
    """
    from mtask.registry import make
    from mtask.settings import DEFAULT_URL, find_urls

    urls = _urls_of(queue, table) if queue else find_urls(None, table)
    if not queue and urls.queue == DEFAULT_URL:
        click.echo(
            f"no queue is set up, so it is the default, {DEFAULT_URL}: a file below the folder you work in, made when "
            "it is needed.\nFor another one say its URL, as in: mtask init sqs://us-west-2/reads"
        )
        return 0
    for what, how in make(urls.queue, urls.table):
        click.echo(f"{how:<10} {what}")
    if queue:
        _settle(urls, beside=table is None, write=write)
    return 0


def _urls_of(queue: str, table: str | None) -> Urls:
    """Raises UsageError for a queue without a table."""
    from mtask.errors import UsageError
    from mtask.registry import scheme_of, table_beside
    from mtask.settings import Urls

    table = table or table_beside(queue)
    if table is None:
        raise UsageError(
            f"{scheme_of(queue)}:// is a queue without a table; say where results go with --table URL"
        )
    return Urls(queue, table)


def _settle(urls: Urls, *, beside: bool, write: bool) -> None:
    """Have the next command find them, and say how."""
    import msgspec

    from mtask.errors import UnusableError
    from mtask.registry import shown
    from mtask.settings import FILE, find_urls

    keys = {"queue": urls.queue} if beside else {"queue": urls.queue, "table": urls.table}
    in_environment = [name for name in ("MTASK_QUEUE", "MTASK_TABLE") if os.environ.get(name)]
    there = next(
        (path for folder in (Path.cwd(), *Path.cwd().parents) if (path := folder / FILE).is_file()), None
    )
    if write and there is None:
        lines = (f"{key} = {msgspec.json.encode(url).decode()}\n" for key, url in keys.items())
        try:
            Path(FILE).write_text("".join(lines), encoding="utf-8")
        except OSError as error:
            raise UnusableError(
                f"{FILE} can't be written: {error.strerror}; set MTASK_QUEUE instead, or say --no-file"
            ) from None
        click.echo(
            f"{'made':<10} {FILE}, which names {'it' if beside else 'both'} for all commands in this folder"
        )
    if find_urls() == urls:
        return
    if in_environment:
        because = " and ".join(f"{name} is {shown(os.environ[name])}" for name in in_environment)
    else:
        because = f"{there} names another" if there else f"there is no {FILE}"
    exports = " ".join(f"MTASK_{key.upper()}={shown(url)}" for key, url in keys.items())
    click.echo(f"not in use yet, because {because}; change that, or: export {exports}")


@click.command()
@places
@click.option(
    "--role",
    type=click.Choice(["manager", "worker"]),
    help="Look only for what is needed to submit and see results, or to run tasks.  [default: both]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, and nothing else.")
def doctor(queue: str | None, table: str | None, role: str | None, as_json: bool) -> int:
    """Look for what is missing, wrong or not allowed.

    Python, the URLs, the queue and the table, workers and their versions; at a cloud also credentials, clock,
    settings, and each permission that submitting and working need. Nothing is changed. Exit status 1 if
    there is a problem.
    """
    from mtask.doctor import examine
    from mtask.registry import ROLES
    from mtask.settings import find_urls

    found = []
    for finding in examine(find_urls(queue, table), (role,) if role else ROLES):
        found.append(finding)
        if not as_json:
            _print(finding)
    problems = sum(finding.ok is False for finding in found)
    if as_json:
        from mtask.cli.render import print_json

        print_json([finding._asdict() for finding in found])
    else:
        click.echo(
            f"{problems} problems" if problems > 1 else "1 problem" if problems else "no problem found"
        )
    return 1 if problems else 0


def _print(finding: Finding) -> None:
    colour = {True: "green", False: "red", None: "yellow"}[finding.ok]
    mark = click.style(f"{MARKS[finding.ok]:<8}", fg=colour)
    click.echo(f"{mark} {finding.what}: {finding.text}")
    if finding.todo:
        click.echo(f"{'':<8} → {finding.todo}")
