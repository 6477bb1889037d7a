"""Makes what `mtask init` does, a queue with its poison queue and a table with its container; and what workers do, lanes."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing, suppress

from azure.core.exceptions import ResourceExistsError

from mtask.meter import Meter
from mtask.registry import MADE, THERE
from mtask_azure.address import Address, queue_address, table_address
from mtask_azure.client import Account, Queues
from mtask_azure.faults import (
    BEING_DELETED,
    BLOB,
    QUEUE,
    TABLE,
    BeingDeletedError,
    NoQueueError,
    Service,
    code_of,
)
from mtask_azure.names import physical

__all__ = ["make_lane", "make_queue", "make_table", "make_there"]

PATIENCE_S = 120.0
"""Azure keeps the name of what was deleted for 30 s (queues) or 40 s (tables) at least (REST API, Delete Queue, Delete
Table)."""
PAUSE_S = 2.0


def make_queue(url: str) -> list[tuple[str, str]]:
    """Make the queue at `url` and its poison queue, unless they are there already; a queue has no settings.

    Returns, for each, (what, "made" | "was there"). One that is being deleted is waited for. Raises UsageError,
    UnusableError (no such account, no right to it), UnavailableError.
    """
    address = queue_address(url)
    with closing(Queues(address, Meter())) as queues:
        made = []
        for what, poison in (("queue", False), ("poison queue", True)):
            name = physical(address, poison=poison)
            how = _patiently(lambda name=name: make_there(queues, address, name))  # type: ignore[misc]
            made.append((f"{what} {name} in {address.account}", how))
        return made


def make_table(url: str) -> list[tuple[str, str]]:
    """The same of the table at `url` and its container, which is private: nobody reads it without credentials."""
    address = table_address(url)
    with closing(Account(address)) as account:

        def table() -> str:
            return _made(account, lambda: account.tables().create_table(address.name), TABLE, address.url)

        def container() -> str:
            return _made(account, lambda: account.container().create_container(), BLOB, address.place)

        return [
            (f"table {address.name} in {address.account}", _patiently(table)),
            (f"container {address.container} in {address.account}", _patiently(container)),
        ]


def make_lane(queues: Queues, address: Address, lane: str) -> None:
    """Make this lane's queue if it isn't there. Raises UnavailableError while Azure keeps the name of one that was
    removed."""
    make_there(queues, address, physical(address, lane))


def make_there(queues: Queues, address: Address, name: str) -> str:
    """MADE or THERE; many may do the same at once."""
    queue, shown = queues.queue(name), address._replace(name=name).url
    with suppress(NoQueueError), queues.errors("read the settings", shown):
        queue.get_queue_properties()
        return THERE
    return _made(queues.account, queue.create_queue, QUEUE, shown)


def _made(account: Account, make: Callable[[], object], service: Service, shown: str) -> str:
    with account.errors(f"make a {service.thing}", service, shown):
        try:
            make()
        except ResourceExistsError as error:
            if code_of(error) in BEING_DELETED:
                raise
            return THERE  # somebody else was quicker
    return MADE


def _patiently(make: Callable[[], str]) -> str:
    """While the last one of this name is being deleted, wait."""
    until_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            return make()
        except BeingDeletedError:
            if time.monotonic() >= until_s:
                raise
        time.sleep(PAUSE_S)
