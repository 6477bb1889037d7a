"""`mtask retry`, `cancel`, `dead` and `completion`."""

from __future__ import annotations

import click

from mtask.cli.common import bag_argument, connect, places, tasks_text

__all__ = ["cancel", "completion", "dead", "retry"]


@click.command()
@bag_argument(required=True)
@click.option("--failed", "_failed", is_flag=True, help="All that failed or expired.  [default]")
@click.option("--ids", metavar="ID,…", help="Only tasks with these ids, or indexes where there are no ids.")
@places
def retry(bag: str, _failed: bool, ids: str | None, queue: str | None, table: str | None) -> int:
    """Send the failed tasks of a bag once more, with fresh attempts.

    Workers run them; or the `mtask run` of before, once more. What failed before is still shown by
    `mtask results BAG --attempts`.
    """
    from mtask.errors import UsageError
    from mtask.model import State

    ended = (State.FAILED, State.EXPIRED)
    with connect(queue, table, create=False) as manager:
        handle, indexes = manager.bag(bag), None
        if ids is not None:
            wanted = {part.strip() for part in ids.split(",")}
            indexes = {r.index for r in handle.results(states=ended) if (r.id or str(r.index)) in wanted}
            if not indexes:
                raise UsageError(f"no task of bag {bag!r} that failed or expired has one of these ids: {ids}")
        count = handle.retry(states=ended, indexes=indexes)
    if count:
        click.echo(f"{tasks_text(count)} sent again; `mtask worker` runs them", err=True)
    else:
        click.echo("no task failed; nothing to do", err=True)
    return 0


@click.command()
@bag_argument(required=True)
@places
def cancel(bag: str, queue: str | None, table: str | None) -> int:
    """Run nothing more of a bag.

    Workers stop within seconds what they run of it. What has ended stays.
    """
    with connect(queue, table, create=False) as manager:
        handle = manager.bag(bag)
        handle.cancel()
        counts = handle.counts()
    click.echo(
        f"bag {bag!r} is cancelled: {tasks_text(counts.ended)} had ended, {counts.left:,} will not run",
        err=True,
    )
    return 0


@click.command()
@places
def dead(queue: str | None, table: str | None) -> int:
    """List the messages that no worker could read, and why."""
    from mtask.cli.common import console
    from mtask.cli.render import dead_table

    with connect(queue, table, create=False) as manager:
        console().print(dead_table(list(manager.table.dead())))
    return 0


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> int:
    """Print a script that completes verbs, options and bags.

    \b
    bash:  mtask completion bash > ~/.local/share/bash-completion/completions/mtask
    zsh:   mtask completion zsh > ~/.zfunc/_mtask      (with ~/.zfunc in fpath)
    fish:  mtask completion fish > ~/.config/fish/completions/mtask.fish
    """
    from click.shell_completion import get_completion_class

    from mtask.cli import cli

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "mtask", "_MTASK_COMPLETE").source())
    return 0
