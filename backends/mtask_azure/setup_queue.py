"""Makes queues: `mtask init` the queue and its poison queue, workers the lanes."""

from __future__ import annotations

import time
from contextlib import suppress

from azure.core.exceptions import ResourceExistsError

from mtask.meter import Meter
from mtask.registry import MADE, THERE
from mtask_azure.address import Address
from mtask_azure.client import BeingDeletedError, Client, NoQueueError, code_of
from mtask_azure.names import address_of, physical

__all__ = ["make_lane", "make_queue", "make_there"]

PATIENCE_S = 120.0
"""Azure keeps the name of a queue that was deleted for 30 s at least (REST API, Delete Queue)."""
PAUSE_S = 2.0


def make_queue(url: str) -> list[tuple[str, str]]:
    """Make the queue at `url` and its poison queue, unless they are there already; a queue has no settings.

    Returns, for each, (what, "made" | "was there"). One that is being deleted is waited for. Raises UsageError,
    UnusableError (no such account, no right to it), UnavailableError.
    """
    address = address_of(url)
    client = Client(address, Meter())
    try:
        made = []
        for what, poison in (("queue", False), ("poison queue", True)):
            name = physical(address, poison=poison)
            made.append((f"{what} {name} in {address.account}", _make_patiently(client, address, name)))
        return made
    finally:
        client.close()


def make_lane(client: Client, address: Address, lane: str) -> None:
    """Make this lane's queue if it isn't there. Raises UnavailableError while Azure keeps the name of one that was
    removed."""
    make_there(client, address, physical(address, lane))


def make_there(client: Client, address: Address, name: str) -> str:
    """MADE or THERE; many may do the same at once."""
    queue, shown = client.queue(name), f"azureq://{address.account}/{name}"
    with suppress(NoQueueError), client.errors("read the settings", shown):
        queue.get_queue_properties()
        return THERE
    with client.errors("make a queue", shown):
        try:
            queue.create_queue()
        except ResourceExistsError as error:
            if code_of(error) == "QueueBeingDeleted":
                raise
            return THERE  # somebody else was quicker
    return MADE


def _make_patiently(client: Client, address: Address, name: str) -> str:
    until_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            return make_there(client, address, name)
        except BeingDeletedError:
            if time.monotonic() >= until_s:
                raise
        time.sleep(PAUSE_S)
