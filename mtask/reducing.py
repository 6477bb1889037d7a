"""`--then MODULE:FUNCTION`: when all tasks of a bag are done, one more task runs over all of its results.

That task is the only one of the bag `NAME.then`, an open bag that is sealed at once: whoever sees that the bag is done
adds it, always under the same name, so that it is there once (see `mtask.append`). That is the worker that wrote the last row;
other workers that had tasks of the bag of late, if that one dies; and whoever waits for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from mtask.append import add, open_bag, seal
from mtask.binding import resolve
from mtask.model import Bag, BagState, Result
from mtask.queue import Queue
from mtask.spec import Spec
from mtask.table import Table

__all__ = ["COLUMNS", "pages_of", "results_of", "run", "send_when_done", "spec_of", "then_name"]

COLUMNS = ("bag", "function")
PAGE_RESULTS = 1000
PAGE_BYTES = 1024 * 1024


def then_name(bag: str) -> str:
    """Of the bag of its last task."""
    return f"{bag}.then"


def spec_of(spec: Spec) -> Spec:
    """Of the last task: with the same needs, time and retries."""
    return msgspec.structs.replace(
        spec,
        kind="call",
        target=("mtask.reducing:run",),
        then="",
        key="",
        serial="",
        inputs={},
        outputs={},
        expires_s=None,
        not_before_at=None,
        max_running=None,
        rate=None,
    )


def send_when_done(queue: Queue, table: Table, bag: Bag) -> bool:
    """Send the last task if all others are done; any number may, at any time. Is it sent?"""
    now, counts = table.bag(bag.name), table.counts(bag.name)
    if (
        not now.spec.then
        or now.uid != bag.uid
        or now.state is not BagState.SEALED
        or counts.done != counts.total
    ):
        return False
    spec = spec_of(now.spec)
    last, lanes = open_bag(
        table,
        then_name(bag.name),
        spec,
        COLUMNS,
        [(spec.priority, spec.requires)],
        source=f"the end of {bag.name}",
    )
    row = msgspec.json.encode([bag.name, now.spec.then])
    add(queue, table, last, [(lanes[0], row)], submit=f"then/{bag.uid}", digest=bag.uid)
    seal(queue, table, last)
    return True


def run(bag: str, function: str) -> Any:
    """What the last task calls, in its child."""
    from mtask.worker.submits import next_results

    return resolve(function)(results_of(lambda after: next_results(bag, after)))


def results_of(page: Callable[[int], Sequence[Result]]) -> Iterator[Result]:
    """All results, in the order of the tasks, a page at a time: `page` gets the index behind which it begins."""
    after = -1
    while results := page(after):
        yield from results
        after = results[-1].index


def pages_of(table: Table, bag: str, after: int) -> list[Result]:
    """The next page; at the end an empty one."""
    page, size = list[Result](), 0
    for result in table.results(bag, after=after):
        page.append(result)
        size += len(result.value_json) + len(result.stdout) + len(result.stderr)
        if len(page) == PAGE_RESULTS or size > PAGE_BYTES:
            break
    return page
