"""What is said about the needs of tasks before they are sent, and what a worker of `mtask run` is made of."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from mtask.cli.types import Tags
from mtask.errors import UsageError
from mtask.requirements import Capabilities, Requirements, size_text
from mtask.worker.options import Options

if TYPE_CHECKING:
    from mtask.heartbeat import WorkerStatus
    from mtask.submitting import Prepared

__all__ = ["of_rows", "of_workers", "tags_here", "worker_for"]

TAGS_VARIABLE = "MTASK_TAGS"
MOST_NOTES = 3


def of_rows(prepared: Prepared) -> Iterator[str]:
    """What was made of the rows, that their owner may not expect."""
    columns = prepared.placing.by_row
    if columns:
        names = (
            f"{', '.join(columns[:-1])} and {columns[-1]} say" if len(columns) > 1 else f"{columns[0]} says"
        )
        yield f"note: the column{'s' * (len(columns) > 1)} {names} what each task needs of its worker"
    if prepared.repeated:
        rows, repeated = prepared.total + prepared.repeated, prepared.repeated
        one = repeated == 1
        yield (
            f"note: {repeated:,} of {rows:,} rows repeat{'s' * one} a value of {prepared.spec.key!r} and "
            f"{'is' if one else 'are'} left out"
        )


def of_workers(needs: Sequence[Requirements], workers: Sequence[WorkerStatus]) -> Iterator[str]:
    """What none of these workers can run. Nothing when there is no worker: one may be started later."""
    if not workers:
        return
    one = len(workers) == 1
    none = "the only worker doesn't have" if one else f"none of the {len(workers):,} workers has"
    unmet = dict.fromkeys(filter(None, (_lacked(each, workers) for each in needs)))
    for what in list(unmet)[:MOST_NOTES]:
        tasks = "the tasks" if len(needs) == 1 else "some tasks"
        yield f"note: needs {what}: {none} that; {tasks} wait for one that does"
    if len(unmet) > MOST_NOTES:
        yield f"note: and {len(unmet) - MOST_NOTES:,} other needs that no worker meets"


def _lacked(needs: Requirements, workers: Sequence[WorkerStatus]) -> str:
    """What none of them has; empty: one of them has all."""
    from mtask.status import unable

    lacks = {unable(worker, needs) for worker in workers}
    if "" in lacks:
        return ""
    return lacks.pop() if len(lacks) == 1 else str(needs)


def worker_for(needs: Sequence[Requirements]) -> str:
    """The command that starts a worker for such tasks."""
    if any(f"!{tag}" in each.tags for tag in _wanted(needs) for each in needs):
        return "mtask worker --tags …"  # more than one
    wanted = _wanted(needs)
    wanted |= {each.only_on[0] for each in needs if each.only_on and not wanted & set(each.only_on)}
    return f"mtask worker --tags {','.join(sorted(wanted))}" if wanted else "mtask worker"


def tags_here(
    needs: Sequence[Requirements], slots: int, *, alone: bool, say: Callable[[str], None]
) -> tuple[str, ...]:
    """The tags of the worker of `mtask run`: those that its tasks ask for, and those that this machine is said to have.

    Where data must stay is another matter: who asks for `--only-on` doesn't answer it.
    Raises UsageError if this worker is `alone` and can't run all of the tasks.
    """
    said = os.environ.get(TAGS_VARIABLE)
    try:
        tags = tuple(sorted({*_wanted(needs), *(Tags().parse(said) if said else ())}))
    except ValueError as error:
        raise UsageError(f"{TAGS_VARIABLE}: {error}") from None
    if any(each != Requirements() for each in needs):
        _check_here(needs, Options(slots=slots, tags=tags), alone=alone, say=say)
    return tags


def _check_here(
    needs: Sequence[Requirements], options: Options, *, alone: bool, say: Callable[[str], None]
) -> None:
    from mtask.worker.capabilities import found

    can = found(options)
    lacking = next(filter(None, map(can.lacks, needs)), "")
    if not lacking:
        return
    tasks = "the tasks need" if len(needs) == 1 else "some tasks need"
    here, advice = _here(lacking, can)
    if alone:
        raise UsageError(
            f"{tasks} {lacking}, and {here}; {advice}, or choose a --queue that other workers serve, too. "
            "Nothing was sent"
        )
    say(f"note: {tasks} {lacking}, and {here}; they wait for another worker that can run them")


def _wanted(needs: Sequence[Requirements]) -> set[str]:
    return {tag for each in needs for tag in each.tags if not tag.startswith("!")}


def _here(lacking: str, can: Capabilities) -> tuple[str, str]:
    """What this machine has of it, and what to do."""
    if lacking.startswith("cpus"):
        return f"the worker here has {can.cpus:g}, as many as -j says", "ask for less, or give it more by -j"
    if lacking.startswith("memory"):
        return f"this machine has {size_text(can.memory_bytes)}", "ask for less"
    if lacking.startswith("gpus"):
        return f"this machine has {len(can.gpus) or 'none'}", "run them where there are more"
    if lacking.startswith("a worker without"):
        return "the one here has it", "run them elsewhere"
    return f"{TAGS_VARIABLE} doesn't say that this machine has one", "set it where that is so"
