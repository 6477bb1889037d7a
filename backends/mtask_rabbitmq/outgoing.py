"""Sends messages to a lane of a queue, and makes on the way what they need and isn't there."""

from __future__ import annotations

from collections.abc import Sequence

from mtask.errors import SendError, UnavailableError
from mtask.model import Message
from mtask_rabbitmq import names
from mtask_rabbitmq.broker import Broker
from mtask_rabbitmq.errors import MissingError
from mtask_rabbitmq.sender import UNROUTABLE, Letter
from mtask_rabbitmq.topology import ensure_delays, make_lane, no_queue

__all__ = ["BATCH", "MESSAGE_BYTES", "Outgoing"]

BATCH = 200
"""Messages that are sent before their confirms are awaited."""
MESSAGE_BYTES = 1024 * 1024


class Outgoing:
    """What is sent to one lane."""

    def __init__(self, broker: Broker, lane: str) -> None:
        self._broker, self._address, self._lane = broker, broker.address, lane
        self._name = names.physical(self._address.name, lane)

    def send(self, messages: Sequence[Message], delay_s: float) -> None:
        """As `Queue.send`; from any thread."""
        fitting, unsent = [], []
        for message in messages:
            body = message.encode()
            if len(body) <= MESSAGE_BYTES:
                fitting.append((message, body))
            else:
                unsent.append((message, f"{len(body)} bytes are more than {MESSAGE_BYTES}"))
        for start in range(0, len(fitting), BATCH):
            batch = fitting[start : start + BATCH]
            try:
                answers = self._broker.call(self.post([(body, 0) for _, body in batch], delay_s))
            except UnavailableError as error:
                # What was sent before must not be sent again; what may have been sent now is called unsent.
                if not start:
                    raise
                answers = [str(error)] * len(batch)
            unsent += [(message, why) for (message, _), why in zip(batch, answers, strict=True) if why]
        if unsent:
            raise SendError(unsent)

    async def post(self, bodies: Sequence[tuple[bytes, int]], delay_s: float) -> list[str]:
        """Each with how often it was delivered before; for each why it wasn't sent."""
        try:
            answers = await self._broker.send(await self._letters(bodies, delay_s))
        except MissingError:  # an exchange of the delays; the broker ends the channel for it
            answers = [UNROUTABLE] * len(bodies)
        lost = [number for number, why in enumerate(answers) if why == UNROUTABLE]
        if lost:  # a lane that was removed, a queue, or what delays; perhaps the broker was made anew
            try:
                again = await self._post_anew([bodies[number] for number in lost], delay_s)
            except MissingError:
                raise no_queue(self._address) from None
            for number, why in zip(lost, again, strict=True):
                answers[number] = why
        return answers

    async def _post_anew(self, bodies: Sequence[tuple[bytes, int]], delay_s: float) -> list[str]:
        """As `post`, once; with what is needed made before."""
        self._broker.levels = 0
        if not self._lane and await self._broker.number(self._name) is None:
            raise no_queue(self._address)
        await make_lane(self._broker, self._address.name, self._lane)
        return await self._broker.send(await self._letters(bodies, delay_s))

    async def _letters(self, bodies: Sequence[tuple[bytes, int]], delay_s: float) -> list[Letter]:
        if delay_s <= 0:
            return [Letter("", self._name, body, deliveries) for body, deliveries in bodies]
        number = names.steps(delay_s)
        level = await ensure_delays(self._broker, self._address.name, number)
        if self._lane:  # one that was removed would be missed when they come out
            await make_lane(self._broker, self._address.name, self._lane)
        exchange, key = names.delay(self._address.name, level), names.path(number, self._name)
        return [Letter(exchange, key, body, deliveries) for body, deliveries in bodies]
