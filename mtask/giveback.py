"""Giving messages back so that it doesn't look like the death of a worker.

Where a released message comes back with its delivery counted (`QueueLimits.counts_releases`), too many of them would
end its tasks as `lost`. There a copy is sent in its place, which forgets no death, and the message is deleted.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from mtask.errors import MessageError, NewerMessageError, SendError
from mtask.model import Delivery, Message
from mtask.queue import Queue, QueueLimits, send_all

__all__ = ["Common", "copy_of", "give_back", "sends_copies"]


class Common(msgspec.Struct):
    """What messages of all versions have in common."""

    bag: str
    uid: str
    deaths: int = 0


class _Unread(Message, frozen=True, kw_only=True):
    """A message that only a newer mtask can read: it is sent as it came."""

    body: bytes

    def encode(self) -> bytes:
        return self.body


def sends_copies(limits: QueueLimits) -> bool:
    """Is a copy to be sent, where a message is given back?"""
    return limits.counts_releases and limits.workers_send


def give_back(
    queue: Queue, deliveries: Sequence[Delivery], *, delay_s: float = 0, check: bool = False
) -> None:
    """To be received by anyone after `delay_s`, or after as much of it as the queue can.

    `check`: some of their tasks may have ended. What isn't known to be a message is released, whatever that counts.
    Raises BackendError; the leases of what was not given back then run out.
    """
    delay_s = min(delay_s, queue.limits.delay_s)
    copies: list[tuple[Delivery, Message]] = []
    as_they_are: list[Delivery] = []
    for delivery in deliveries:
        copy = copy_of(delivery, check) if sends_copies(queue.limits) else None
        if copy is None:
            as_they_are.append(delivery)
        else:
            copies.append((delivery, copy))
    if as_they_are:
        queue.release(as_they_are, delay_s=delay_s)
    if not copies:
        return
    try:
        send_all(queue, [copy for _, copy in copies], delay_s=delay_s)
    except SendError as error:
        unsent = {id(message) for message, _ in error.unsent}
        if sent := [delivery for delivery, copy in copies if id(copy) not in unsent]:
            queue.delete(sent)
        raise
    queue.delete([delivery for delivery, _ in copies])


def copy_of(delivery: Delivery, check: bool = False) -> Message | None:
    """To be sent in its place: it forgets no death. None for what is no message."""
    died = delivery.deliveries - 1
    try:
        message = Message.decode(delivery.body)
    except NewerMessageError:
        return _unread_copy_of(delivery, died)
    except MessageError:
        return None
    return msgspec.structs.replace(message, deaths=message.deaths + died, check=message.check or check)


def _unread_copy_of(delivery: Delivery, died: int) -> Message | None:
    body = delivery.body
    try:
        common = msgspec.json.decode(body, type=Common)
        if died:
            fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
            fields["deaths"] = msgspec.Raw(msgspec.json.encode(common.deaths + died))
            body = msgspec.json.encode(fields)
        return _Unread(
            bag=common.bag, uid=common.uid, block=0, first=0, count=1, lane=delivery.lane, body=body
        )
    except (ValueError, RecursionError):
        return None
