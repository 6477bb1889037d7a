"""What publishes to a topic: messages in batches, to a lane that is made again where it was removed."""

from __future__ import annotations

from collections.abc import Sequence

from mtask.errors import BackendError, SendError, UnusableError
from mtask.model import Message
from mtask.packing import fit
from mtask_gcp.address import Address
from mtask_gcp.client import MissingError
from mtask_gcp.names import Envelope, physical, topic_path
from mtask_gcp.requests import BATCH, BATCH_BYTES, MESSAGE_BYTES, OVERHEAD_BYTES, Requests, batches
from mtask_gcp.setup_queue import make_lane

__all__ = ["LIGHT_S", "Sender"]

LIGHT_S = 1200.0
"""What is delayed for longer is looked at, and billed, again and again: it leaves its rows in the table."""


class Sender:
    """Of a queue, or of a lane of it."""

    def __init__(self, address: Address, requests: Requests, lane: str) -> None:
        self._address, self._requests, self._lane = address, requests, lane
        self.topic = topic_path(address, physical(address, lane))
        self.shown = f"pubsub://{address.project}/{physical(address, lane)}"
        """For people."""

    def send(self, messages: Sequence[Message], delay_s: float) -> None:
        """Raises SendError, which names those not sent, or a BackendError if none was."""
        unsent: list[tuple[Message, str]] = []
        fitting: list[tuple[Message, Envelope]] = []
        for message in messages:
            body = (fit(message, 0) if delay_s > LIGHT_S else message).encode()
            if len(body) > MESSAGE_BYTES:
                unsent.append((message, f"{len(body)} bytes are more than {MESSAGE_BYTES}"))
            else:
                fitting.append((message, Envelope(body, delay_s)))
        sizes = [len(envelope.body) + OVERHEAD_BYTES for _, envelope in fitting]
        sent = False
        for run in batches(sizes, BATCH, BATCH_BYTES):
            batch = [fitting[number] for number in run]
            try:
                taken, why = self.publish([envelope for _, envelope in batch]), "Pub/Sub gave no id for it"
            except BackendError as error:
                # What was sent before must not be sent again; what may have been sent now is called unsent.
                if not sent and len(batch) == len(messages):
                    raise
                taken, why = 0, str(error)
            sent = sent or taken > 0
            unsent += [(message, why) for message, _ in batch[taken:]]
        if unsent:
            raise SendError(unsent)

    def publish(self, envelopes: Sequence[Envelope]) -> int:
        """How many of them, from the first on, are there; at most a batch. Raises BackendError."""
        try:
            return self._requests.publish(self.topic, envelopes)
        except MissingError:
            if not self._lane:
                raise self.deleted() from None
        make_lane(self._requests.client, self._address, self._lane)
        return self._requests.publish(self.topic, envelopes)

    def deleted(self) -> UnusableError:
        """To raise where the queue itself is gone."""
        return UnusableError(
            f"{self.shown}: the topic or its subscription was deleted; make it again with `mtask init`, and send what was "
            "in it with `mtask repair BAG`"
        )
