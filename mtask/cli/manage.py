"""`mtask retry`, `repair`, `seal`, `cancel`, `dead` and `completion`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mtask.cli.common import bag_argument, complete_bag, connect, places, say_once, tasks_text

if TYPE_CHECKING:
    from mtask.manager import Manager

__all__ = ["cancel", "completion", "dead", "repair", "retry", "seal"]


@click.command()
@bag_argument(required=True)
@click.option("--failed", "_failed", is_flag=True, help="All that failed or expired.  [default]")
@click.option("--ids", metavar="ID,…", help="Only tasks with these ids, or indexes where there are no ids.")
@click.option(
    "--where", metavar="CONDITION", help='Only results like: error like "%Timeout%" and exit_code != 2.'
)
@places
def retry(
    bag: str, _failed: bool, ids: str | None, where: str | None, queue: str | None, table: str | None
) -> int:
    """Send the failed tasks of a bag once more, with fresh attempts.

    Workers run them; or the `mtask run` of before, once more. What failed before is still shown by
    `mtask results BAG --attempts`. A cancelled bag is taken up again, with all that hasn't ended.

    A condition is FIELD OPERATOR VALUE, or several joined by `and`. Fields: error, type, message, reason,
    state, exit_code, attempt, id, index, stdout, stderr, wall_s, host, worker. Operators: = != < <= > >=
    like, not like.
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
        count = handle.retry(states=ended, indexes=indexes, where=where)
        runs = _runs(manager, bag)
    if count:
        click.echo(f"{tasks_text(count)} sent again; {runs}", err=True)
    else:
        click.echo("no task failed; nothing to do", err=True)
    return 0


@click.command()
@bag_argument(required=True)
@places
def seal(bag: str, queue: str | None, table: str | None) -> int:
    """Add nothing more to an open bag.

    It is finished when all of its tasks have ended. A bag is open after `mtask submit --open`.
    """
    with connect(queue, table, create=False) as manager:
        handle = manager.bag(bag)
        handle.seal()
        counts = handle.counts()
    click.echo(f"bag {bag!r} is sealed: {tasks_text(counts.total)}, {counts.left:,} left", err=True)
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
@bag_argument(required=True)
@places
def repair(bag: str, queue: str | None, table: str | None) -> int:
    """Send all tasks again that have no result.

    As after the loss of a queue: the table knows all tasks. What is still in the queue is in it twice then, which does no harm:
    workers look for a result before they run such a task. What HTCondor still has as a job is not sent again.
    """
    with connect(queue, table, create=False) as manager:
        count = manager.bag(bag).repair()
        runs, none = _runs(manager, bag), "every task has a result"
        if manager.hands_out:
            none += ", or its message is in the queue"
    click.echo(f"{tasks_text(count)} sent again; {runs}" if count else none, err=True)
    return 0


def _runs(manager: Manager, bag: str) -> str:
    if manager.collects:
        return "HTCondor runs them, and records their results"
    return f"`mtask wait {bag}` records their results" if manager.hands_out else "`mtask worker` runs them"


@click.command()
@click.argument("bag", required=False, shell_complete=complete_bag)
@places
def dead(bag: str | None, queue: str | None, table: str | None) -> int:
    """List unreadable messages and failed tasks.

    Unreadable messages are kept with their bodies, and so is what a queue's vendor took out of it by itself.
    Failed tasks are those of BAG, or of all bags, with their reasons; `mtask retry` sends them again.
    """
    from mtask.cli.common import console
    from mtask.cli.render import dead_tables

    with connect(queue, table, create=False) as manager:
        bags = [manager.bag(bag)] if bag is not None else manager.bags(skipped=say_once())
        console().print(dead_tables([*manager.table.dead(), *manager.queue.dead()], bags))
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
