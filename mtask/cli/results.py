"""`mtask results`."""

from __future__ import annotations

import click

from mtask.cli.common import bag_argument, connect, places

__all__ = ["results"]

SHOWN = 50


@click.command()
@bag_argument(required=True)
@click.option("-o", "--output", metavar="FILE", help="Write to FILE: .csv, .csv.gz, .jsonl, .jsonl.gz, .parquet.")
@click.option("--failed", is_flag=True, help="Only tasks that failed or expired.")
@click.option("--state", "states", multiple=True, type=click.Choice(["done", "failed", "expired"]), help="Only these.")
@click.option("--limit", type=click.IntRange(0), metavar="N", help=f"At most N.  [default: {SHOWN} on the screen]")
@click.option("--attempts", is_flag=True, help="The failed attempts that were tried again, instead.")
@places
def results(
    bag: str,
    output: str | None,
    failed: bool,
    states: tuple[str, ...],
    limit: int | None,
    attempts: bool,
    queue: str | None,
    table: str | None,
) -> int:
    """Show the results of a bag, or write them to a file with the parameters beside them.

    A function's dictionary becomes columns, one a key. The rows are in the order of the tasks.
    """
    from mtask.cli.common import console
    from mtask.cli.render import results_table
    from mtask.errors import UsageError
    from mtask.export import Rows, check_path, write
    from mtask.model import State

    if failed and states:
        raise UsageError("say --failed or --state, not both")
    chosen = {State.FAILED, State.EXPIRED} if failed else {State(state) for state in states} or None
    if output is not None:
        check_path(output)
    with connect(queue, table) as manager:
        handle = manager.bag(bag)
        if output is not None:
            count = write(Rows(handle, states=chosen, limit=limit, attempts=attempts), output)
            click.echo(f"{output}: {count:,} rows", err=True)
        else:
            rows = Rows(handle, states=chosen, limit=SHOWN if limit is None else limit, attempts=attempts)
            picture, count = results_table(rows)
            console().print(picture)
            if limit is None and count == SHOWN:
                click.echo(f"the first {SHOWN}; --limit N shows more, -o FILE writes all", err=True)
        if (left := handle.counts().left) and not attempts:
            click.echo(f"{left:,} tasks have not ended yet", err=True)
    return 0
