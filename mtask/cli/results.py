"""`mtask results`."""

from __future__ import annotations

import click

from mtask.cli.common import Whole, bag_argument, connect, places

__all__ = ["results"]

SHOWN = 50


@click.command()
@bag_argument(required=True)
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    metavar="FILE",
    help="Write to FILE: .csv, .csv.gz, .jsonl, .jsonl.gz, .parquet.",
)
@click.option("--failed", is_flag=True, help="Only tasks that failed or expired.")
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice(["done", "failed", "expired"]),
    help="Only tasks that ended so; may be given several times.",
)
@click.option("--limit", type=Whole(0), metavar="N", help=f"At most N.  [default: {SHOWN} on the screen]")
@click.option(
    "-f", "--follow", is_flag=True, help="Print rows as they come, until the bag is finished or Ctrl-C."
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["csv", "jsonl"]),
    help="Of --follow.  [default: csv]",
)
@click.option("--attempts", is_flag=True, help="Instead, the failed attempts that were tried again.")
@places
def results(
    bag: str,
    output: str | None,
    failed: bool,
    states: tuple[str, ...],
    limit: int | None,
    attempts: bool,
    follow: bool,
    form: str | None,
    queue: str | None,
    table: str | None,
) -> int:
    """Show the results of a bag, or write them to a file.

    The rows are in the order of the tasks, and begin with their parameters. A dictionary that a
    function returned becomes columns, one a key.

    With --follow they are printed one by one, in the order in which they come, and a dictionary is JSON in the
    column `value`.
    """
    import sys

    from mtask.cli.common import console
    from mtask.cli.render import results_table
    from mtask.errors import UsageError
    from mtask.export import Rows, check_path, write
    from mtask.model import State

    if failed and states:
        raise UsageError("say --failed or --state, not both")
    if attempts and (failed or states):
        raise UsageError(
            "--attempts shows attempts, which have all failed; say it without --failed and --state"
        )
    if follow and (attempts or output is not None):
        raise UsageError(
            "--follow prints rows, for a pipe or a file: `… > rows.csv`; say it without -o and --attempts"
        )
    if form is not None and not follow:
        raise UsageError("--format is for --follow; else the suffix of -o says it")
    chosen = {State.FAILED, State.EXPIRED} if failed else {State(state) for state in states} or None
    if output is not None:
        check_path(output)
    with connect(queue, table, create=False) as manager:
        handle = manager.bag(bag)
        if follow:
            from mtask.follow import FollowedRows, print_followed

            followed = FollowedRows(handle, states=chosen, limit=limit)
            print_followed(followed, sys.stdout, as_json=form == "jsonl")
            return 0
        if output is not None:
            count = write(Rows(handle, states=chosen, limit=limit, attempts=attempts), output)
            click.echo(f"{output}: {count:,} {'row' if count == 1 else 'rows'}", err=True)
        else:
            rows, screen = (
                Rows(handle, states=chosen, limit=SHOWN if limit is None else limit, attempts=attempts),
                console(),
            )
            picture, count, left_out = results_table(rows, screen.width)
            screen.print(picture)
            if left_out:
                click.echo(f"no room for {', '.join(left_out)}; -o FILE writes all columns", err=True)
            if limit is None and count == SHOWN:
                click.echo(f"the first {SHOWN}; --limit N shows more, -o FILE writes all", err=True)
        if (left := handle.counts().left) and not attempts:
            click.echo(
                "1 task has not ended yet" if left == 1 else f"{left:,} tasks have not ended yet", err=True
            )
    return 0
