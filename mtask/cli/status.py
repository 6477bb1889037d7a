"""`mtask status`."""

from __future__ import annotations

import contextlib
import time

import click

from mtask.cli.common import NothingHereError, bag_argument, connect, places, say_once

__all__ = ["status"]


@click.command()
@bag_argument(required=False)
@click.option("--watch", is_flag=True, help="Show it anew every second, until all is done.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; with --watch, a line each time.")
@places
def status(bag: str | None, watch: bool, as_json: bool, queue: str | None, table: str | None) -> int:
    """Show how all bags stand, or one of them in detail.

    Of one bag: counts, pace, workers, why tasks failed, and, where somebody bills it, what it has cost.
    """
    from mtask.cli.common import console
    from mtask.cli.render import bag_panel, bags_table, print_json
    from mtask.errors import UnavailableError
    from mtask.status import status_of

    try:
        manager = connect(queue, table, create=False)
    except NothingHereError:
        if bag is not None:
            raise
        print_json([]) if as_json else console().print(bags_table([]))
        return 0

    skipped = say_once()

    def look() -> tuple[object, object, bool]:
        """(what JSON shows, what people see, is there nothing left to watch)."""
        with contextlib.suppress(UnavailableError):  # said below, with how the jobs stand
            manager.collect()
        if bag is not None:
            one = status_of(manager.table, manager.bag(bag), cost=True)
            return one, bag_panel(one), one.finished
        several = [status_of(manager.table, each, failures=False) for each in manager.bags(skipped=skipped)]
        return several, bags_table(several), all(each.finished for each in several)

    with manager:
        data, picture, over = look()
        if as_json:
            print_json(data)
            while watch and not over:
                time.sleep(1)
                data, _, over = look()
                print_json(data)
        elif not watch:
            console().print(picture)
        else:
            from rich.live import Live

            with Live(picture, console=console(), auto_refresh=False) as live:  # type: ignore[arg-type]
                while not over:
                    time.sleep(1)
                    _, picture, over = look()
                    live.update(picture, refresh=True)  # type: ignore[arg-type]
    return 0
