"""The poison queue: what was received too often, put there by this backend or by Azure Functions."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from azure.storage.queue import QueueMessage

from mtask.errors import BackendError
from mtask.model import DeadMessage
from mtask_azure.address import Address
from mtask_azure.bodies import from_text
from mtask_azure.client import Queues
from mtask_azure.faults import NoQueueError
from mtask_azure.names import physical
from mtask_azure.setup import make_there

__all__ = ["dead_messages", "put_aside"]

PAGE = 32
HIDDEN_S = 120
"""What was read is hidden while the rest is, and is given back then. Reading takes half of that at most."""


def put_aside(queues: Queues, address: Address, text: str) -> None:
    """Keep a message in the poison queue, as it came."""
    name = physical(address, poison=True)
    for again in (True, False):
        try:
            with queues.errors("send", address._replace(name=name).url):
                queues.queue(name).send_message(text, time_to_live=-1)
            return
        except NoQueueError:
            if not again:
                raise
            make_there(queues, address, name)


def dead_messages(queues: Queues, address: Address) -> Iterator[DeadMessage]:
    """Those in the poison queue, oldest first; none, if there is no such queue. Raises BackendError.

    Azure shows no more than 32 without taking them: if there are more, all are taken, read, and given back.
    """
    name = physical(address, poison=True)
    try:
        with queues.errors("peek", address._replace(name=name).url):
            messages = list(queues.queue(name).peek_messages(max_messages=PAGE))
        if len(messages) == PAGE:
            messages = _read(queues, address, name)
    except NoQueueError:
        return iter(())
    return iter(sorted((_dead(message, name) for message in messages), key=lambda each: each.at))


def _read(queues: Queues, address: Address, name: str) -> list[QueueMessage]:
    queue, read = queues.queue(name), dict[str, QueueMessage]()
    until_s = time.monotonic() + HIDDEN_S / 2

    def give_back(message: QueueMessage) -> None:
        with (
            contextlib.suppress(BackendError),
            queues.errors("update", address._replace(name=name).url),
        ):  # then it is hidden for a while
            queue.update_message(message.id, message.pop_receipt, visibility_timeout=0)

    try:
        while time.monotonic() < until_s:
            with queues.errors("receive", address._replace(name=name).url):
                pages = queue.receive_messages(
                    messages_per_page=PAGE, max_messages=PAGE, visibility_timeout=HIDDEN_S
                )
                page = list(next(pages.by_page(), ()))
            read |= {str(message.id): message for message in page}
            if not page:
                break
    finally:
        queues.each(list(read.values()), give_back)
    return list(read.values())


def _dead(message: QueueMessage, name: str) -> DeadMessage:
    return DeadMessage(
        body=from_text(str(message.content or "")),
        reason=f"received too often and never deleted; it was moved to {name}",
        at=message.inserted_on.timestamp() if message.inserted_on else 0.0,
    )
