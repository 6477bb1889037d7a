"""`mtask wait` and `mtask collect`."""

from __future__ import annotations

import time

import click

from mtask.cli.common import (
    Duration,
    bag_argument,
    connect,
    exit_code,
    places,
    quiet,
    tasks_text,
    then_failed,
)

__all__ = ["collect", "wait"]


@click.command()
@bag_argument(required=True)
@click.option(
    "--timeout",
    "timeout_s",
    type=Duration(positive=True),
    metavar="TIME",
    help="Give up waiting after TIME, with exit status 4; the tasks go on.",
)
@places
@quiet
def wait(
    bag: str, timeout_s: float | None, queue: str | None, table: str | None, quiet: bool, as_json: bool
) -> int:
    """Wait until all tasks of a bag have ended.

    Workers elsewhere run them. With HTCondor as the queue, this also records the results that jobs bring back, and
    sends failed attempts again, where no job of HTCondor's does so. Stop it and start it again as you like: nothing is
    lost, nothing is recorded twice.
    """
    from mtask.cli.render import print_json, print_summary
    from mtask.model import BagState
    from mtask.status import summarize

    with connect(queue, table, create=False) as manager:
        handle = manager.bag(bag)
        if handle.info.endless and handle.info.state is BagState.OPEN and not (quiet or as_json):
            click.echo(f"bag {bag!r} is open: this waits until `mtask seal {bag}`, too", err=True)
        began_s, before = time.monotonic(), handle.counts().ended
        try:
            handle.wait(progress=not (quiet or as_json), timeout_s=timeout_s)
        except TimeoutError as error:
            click.echo(f"mtask: {error}; `mtask status {bag}` shows why", err=True)
            return 4
        summary = summarize(handle, wall_s=time.monotonic() - began_s, ended=handle.counts().ended - before)
        failed = then_failed(handle, quiet=quiet or as_json)
    if as_json:
        print_json(summary)
    elif not quiet:
        print_summary(summary, finished=True)
    return exit_code(summary.failed + summary.expired + summary.left + failed)


@click.command()
@places
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
def collect(queue: str | None, table: str | None, quiet: bool) -> int:
    """Record what jobs have brought back until now.

    For HTCondor as the queue, and for cron or a script: `mtask wait` does the same until a bag is finished. Failed
    attempts are sent again by this, too.
    """
    with connect(queue, table, create=False) as manager:
        recorded = manager.collect()
        hands_out = manager.hands_out
    if not quiet:
        none = "" if hands_out else "; workers record their results by themselves here"
        click.echo(f"{tasks_text(recorded)} recorded{none}", err=True)
    return 0
