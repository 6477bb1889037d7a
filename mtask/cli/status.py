"""`mtask status`."""

from __future__ import annotations

import time

import click

from mtask.cli.common import bag_argument, connect, places

__all__ = ["status"]


@click.command()
@bag_argument(required=False)
@click.option("--watch", is_flag=True, help="Show it anew every second, until all is done.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; with --watch, a line each time.")
@places
def status(bag: str | None, watch: bool, as_json: bool, queue: str | None, table: str | None) -> int:
    """Show how all bags stand, or one: counts, pace, workers, and why tasks failed."""
    from mtask.cli.common import console
    from mtask.cli.render import bag_panel, bags_table, print_json
    from mtask.status import status_of

    with connect(queue, table) as manager:

        def look() -> tuple[object, object, bool]:
            """(what JSON shows, what people see, is there nothing left to watch)."""
            if bag is not None:
                one = status_of(manager.table, manager.bag(bag))
                return one, bag_panel(one), one.finished
            several = [status_of(manager.table, each, failures=False) for each in manager.bags()]
            return several, bags_table(several), all(each.finished for each in several)

        data, picture, over = look()
        if not watch:
            print_json(data) if as_json else console().print(picture)
            return 0
        if as_json:
            print_json(data)
            while not over:
                time.sleep(1)
                data, _, over = look()
                print_json(data)
            return 0
        from rich.live import Live

        with Live(picture, console=console(), auto_refresh=False) as live:  # type: ignore[arg-type]
            while not over:
                time.sleep(1)
                _, picture, over = look()
                live.update(picture, refresh=True)  # type: ignore[arg-type]
    return 0
