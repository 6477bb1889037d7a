"""Publishes in batches, each message confirmed by the broker."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from pika import BasicProperties, DeliveryMode

from mtask.errors import BackendError, UnavailableError
from mtask_rabbitmq.link import Line

__all__ = ["DELIVERED", "UNROUTABLE", "Letter", "Sender"]

CONFIRM_S = 30.0
"""As long as that a broker may take; one that is short of memory or disk takes nothing at all."""
DELIVERED = "mtask-deliveries"
"""Header: how often the message had been delivered before this copy of it was sent."""
UNROUTABLE = "there is no such queue"


class Letter(NamedTuple):
    """A message on its way."""

    exchange: str
    key: str
    body: bytes
    deliveries: int = 0
    """How often it was delivered before."""

    def properties(self, number: int) -> BasicProperties:
        headers = {DELIVERED: self.deliveries} if self.deliveries else None
        return BasicProperties(
            content_type="application/json",
            delivery_mode=DeliveryMode.Persistent.value,
            headers=headers,
            message_id=str(number),
        )


class Sender:
    """A channel with publisher confirms. One batch after the other."""

    def __init__(self, line: Line) -> None:
        self.line = line
        line.on_confirm, line.on_return = self._confirmed, self._returned
        line.on_close = lambda: self._done.set()
        self._number = 0
        self._open: dict[int, str] = {}
        """Not confirmed yet, by delivery tag; and what the broker said of it, if it has given it back."""
        self._refused: dict[int, str] = {}
        self._done = asyncio.Event()
        self._one = asyncio.Lock()

    async def send(self, letters: Sequence[Letter]) -> list[str]:
        """For each why it is not in a queue; empty: it is there, and on disk.

        Raises UnavailableError if perhaps none of them is there.
        """
        async with self._one:
            first = self._number + 1
            self._refused.clear()
            self._done.clear()
            try:
                for number, letter in enumerate(letters, first):
                    self.line.publish(letter.exchange, letter.key, letter.body, letter.properties(number))
                    self._number, self._open[number] = number, ""
                trouble = await self._confirm()
                unsure, refused = set(self._open), dict(self._refused)
            finally:
                self._open.clear()
        if trouble is not None and len(unsure) == len(letters):
            raise trouble
        numbers = range(first, first + len(letters))
        return [str(trouble) if number in unsure else refused.get(number, "") for number in numbers]

    async def _confirm(self) -> BackendError | None:
        """Wait until all are confirmed; returns what kept it from that."""
        if not self._open:
            return None
        address, link = self.line.link.address, self.line.link
        try:
            await asyncio.wait_for(self._done.wait(), CONFIRM_S)
        except TimeoutError:
            why = f"it is short of {link.blocked}" if link.blocked else "it doesn't answer"
            # What it hasn't taken yet shall not reach it later.
            link.abort()
            return UnavailableError(
                f"the RabbitMQ broker at {address.server} confirmed no message for {CONFIRM_S:g} s: {why}"
            )
        if self._open:
            error = self.line.error("publishing")
            return error if isinstance(error, BackendError) else UnavailableError(str(error))
        return None

    def _confirmed(self, tag: int, several: bool, well: bool) -> None:
        for number in [each for each in self._open if each <= tag] if several else [tag]:
            returned = self._open.pop(number, "")
            if returned or not well:
                self._refused[number] = returned or "the broker refuses it: the queue is full"
        if not self._open:
            self._done.set()

    def _returned(self, message_id: str, why: str) -> None:
        number = int(message_id) if message_id.isdigit() else 0
        if number in self._open:
            self._open[number] = UNROUTABLE if why == "NO_ROUTE" else why
