"""What the recorder is told to write down."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import NamedTuple

import msgspec

from mtask.errors import BagNotFoundError, MtaskError
from mtask.model import DeadMessage, Delivery, Failure, Message, Reason, Result, State
from mtask.portion import Portion, expanded
from mtask.worker.held import Held

__all__ = ["Ends", "Item", "as_refused", "checking", "emptied", "singles", "unsent_of"]


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """Something to be written down: what became of `settles` tasks of a held message."""

    held: Held
    settles: int = 0
    results: Sequence[Result | Portion] = ()
    attempts: Sequence[Result] = ()
    sends: Sequence[tuple[float, Message]] = ()
    """(delay in seconds, message)."""
    over: int = 0
    """So many of the message's tasks have ended for good."""
    release_s: float | None = None
    """Give the whole message back after this delay."""
    dead: DeadMessage | None = None
    """Set the message aside as this."""
    lets_go: bool = False
    """Delete the message, though its tasks run on: what is sent takes its place."""
    size_bytes: int = 0
    """About how much memory the results take."""


class Ends(NamedTuple):
    """Which messages a worker holds no more, once some items are written down."""

    settled: dict[Held, int]
    """So many of their tasks."""
    over: list[Held]
    """Nothing is left of them."""
    released: list[tuple[Held, float]]
    """Given back, after so many seconds."""
    let_go: list[Held]
    """Their tasks run on."""

    @classmethod
    def of(cls, items: Sequence[Item]) -> Ends:
        settled: dict[Held, int] = defaultdict(int)
        for item in items:
            settled[item.held] += item.settles
        return cls(
            settled,
            over=[held for held, n in settled.items() if n >= held.unsettled],
            released=[(item.held, item.release_s) for item in items if item.release_s is not None],
            let_go=[item.held for item in items if item.lets_go],
        )

    def mine(self) -> list[Held]:
        """All whose leases end with this. Of what runs on without, the heartbeat tells until its rows are written."""
        ends = (*self.over, *(held for held, _ in self.released), *self.let_go)
        return [held for held in ends if not held.let_go]

    def deleted(self, *, but: Collection[Held]) -> list[Delivery]:
        """With their present tokens."""
        return [held.delivery for held in {*self.over, *self.let_go}.difference(but) if not held.let_go]


def checking(item: Item) -> Item:
    """The same; but who receives what it sends looks first whether it was done meanwhile."""
    if not item.sends:
        return item
    sends = [(delay_s, msgspec.structs.replace(message, check=True)) for delay_s, message in item.sends]
    return msgspec.structs.replace(item, sends=sends)


def singles(item: Item) -> list[Item]:
    """The same in items of one result each, and one of the rest."""
    results = list(expanded(item.results))
    if len(results) < 2:
        return [msgspec.structs.replace(item, results=results)]
    rest = msgspec.structs.replace(item, results=(), settles=item.settles - len(results))
    return [rest, *(Item(held=item.held, settles=1, results=[result]) for result in results)]


def emptied(item: Item) -> Item:
    """The same of a bag that is gone: its message is settled, and nothing comes of it."""
    return msgspec.structs.replace(item, results=(), attempts=(), sends=())


def as_refused(item: Item, error: MtaskError) -> Item:
    """The same with a failure in place of its result; with nothing at all when the bag is gone."""
    if isinstance(error, BagNotFoundError):
        return emptied(item)
    failure = Failure(
        reason=Reason.VALUE, type="refused", message=f"the table refused the result: {error}"[:4096]
    )
    results = [
        msgspec.structs.replace(
            result, state=State.FAILED, error=failure, value_json=msgspec.Raw(b"null"), stdout="", stderr=""
        )
        for result in expanded(item.results)
    ]
    return msgspec.structs.replace(item, results=results, attempts=())


def unsent_of(item: Item, unsent: Collection[int]) -> Item:
    """What is left of it when its rows are written and its messages sent, but for these (by `id`)."""
    sends = [(delay_s, message) for delay_s, message in item.sends if id(message) in unsent]
    rest = msgspec.structs.replace(item, results=(), attempts=(), dead=None, size_bytes=0, sends=sends)
    # "Not sent" may mean: perhaps.
    return checking(rest)
