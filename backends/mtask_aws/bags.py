"""Bags in a DynamoDB table.

A bag is one item: `b` or `z` its JSON as it was made, `now` what has changed since, `v` the version of that,
`wide` whether it has pages behind the first ones, `ttl` when it expires.
"""

from __future__ import annotations

import threading

from mtask.errors import BagExistsError, BagNotFoundError, UnavailableError
from mtask.model import Bag, BagState
from mtask.stored_bag import bag_of, changed, listed, made, now_of, tries
from mtask.table import Skipped
from mtask_aws import keys
from mtask_aws.blobs import Blobs
from mtask_aws.dynamo import ConditionError, Dynamo, Item, item_at
from mtask_aws.keys import BAGS, SHARDS, Key
from mtask_aws.pages import Frontier

__all__ = ["Bags", "Known"]


class Known:
    """What one client remembers of a bag."""

    def __init__(self, bag: Bag) -> None:
        self.name, self.uid = bag.name, bag.uid
        self.keep_s = bag.spec.keep_s
        self.ttl = _ttl(bag)
        self.wide = False
        self.counting = threading.Lock()
        self.frontiers = [Frontier(shard) for shard in range(SHARDS)]

    @property
    def shards(self) -> range:
        """Those that may hold something."""
        return range(SHARDS if self.wide else 1)


class Bags:
    """The bags of one table."""

    def __init__(self, db: Dynamo, blobs: Blobs) -> None:
        self._db, self._blobs = db, blobs
        self._known: dict[str, Known] = {}

    def create(self, bag: Bag) -> None:
        """Raises BagExistsError."""
        body = made(bag)
        packed = self._blobs.pack(body, bag.uid, keep_s=bag.spec.keep_s)
        item = item_at(_key(bag.name), **packed, now=_text(now_of(bag)), v={"N": "1"})
        if ttl := _ttl(bag):
            item["ttl"] = {"N": str(ttl)}
        try:
            self._db.put(
                item,
                condition="attribute_not_exists(pk) OR #ttl < :now",
                names={"#ttl": "ttl"},
                values={":now": {"N": str(int(self._db.clock.now()))}},
            )
        except ConditionError:
            there = self._db.get(_key(bag.name))
            # Ours, if the answer to the first of several tries was lost.
            if there is None or self._blobs.unpack(there) != body:
                raise BagExistsError(f"there is a bag {bag.name!r} already") from None
        self._known[bag.name] = Known(bag)

    def get(self, name: str) -> Bag:
        """As it is now. Raises BagNotFoundError."""
        return self._read(name)[0]

    def all(self, skipped: Skipped | None) -> list[Bag]:
        """Oldest first. See `Table.bags`."""
        now = self._db.clock.now()
        items = [item for page in self._db.query(BAGS) for item in page if not _expired(item, now)]
        return sorted(listed(items, self._bag_of, skipped), key=lambda bag: (bag.created_at, bag.name))

    def update(
        self,
        name: str,
        *,
        state: BagState | None,
        total: int | None,
        sent: int | None,
        digest: str | None,
        generation: int | None,
    ) -> None:
        """See `Table.update_bag`."""
        for _ in tries():
            bag, item = self._read(name)
            now = changed(bag, state=state, total=total, sent=sent, digest=digest, generation=generation)
            if now is None:
                return
            values = {":now": _text(now), ":one": {"N": "1"}, ":v": item["v"]}
            try:
                self._db.update(_key(name), "SET now = :now, v = v + :one", condition="v = :v", values=values)
            except ConditionError:
                continue
            else:
                return
        raise UnavailableError(f"the bag {name!r} was changed by others again and again while this tried to")

    def find(self, name: str) -> Known | None:
        """None: there is no such bag."""
        known = self._known.get(name)
        if known is not None and known.wide:
            return known  # nothing of it can change any more
        try:
            self._read(name)
        except BagNotFoundError:
            return None
        return self._known[name]

    def known(self, name: str) -> Known:
        """What is remembered of it may do. Raises BagNotFoundError."""
        if name not in self._known:
            self._read(name)
        return self._known[name]

    def widen(self, known: Known, number: int) -> None:
        """Before anything of this page or block is written."""
        if number >= keys.NARROW and not known.wide:
            try:
                self._db.update(
                    _key(known.name),
                    "SET wide = :one",
                    condition="attribute_exists(pk)",
                    values={":one": {"N": "1"}},
                )
            except ConditionError:
                self._known.pop(known.name, None)
                raise _not_found(known.name) from None
            known.wide = True

    def _read(self, name: str) -> tuple[Bag, Item]:
        item = self._db.get(_key(name))
        if item is None or _expired(item, self._db.clock.now()):
            self._known.pop(name, None)
            raise _not_found(name)
        bag = self._bag_of(item)
        known = self._known.get(name)
        if known is None or known.uid != bag.uid:
            known = self._known[name] = Known(bag)
        known.wide = known.wide or "wide" in item
        return bag, item

    def _bag_of(self, item: Item) -> Bag:
        return bag_of(self._blobs.unpack(item), item.get("now", {}).get("S"), str(item["sk"].get("S")))


def _key(name: str) -> Key:
    return BAGS, keys.short(name)


def _text(now: bytes) -> dict[str, str]:
    return {"S": now.decode()}


def _ttl(bag: Bag) -> int | None:
    """When the bag and all that is its expire (UTC, whole seconds, as DynamoDB's time to live wants it)."""
    return None if bag.spec.keep_s is None else int(bag.created_at + bag.spec.keep_s)


def _expired(item: Item, now: float) -> bool:
    """It is removed by DynamoDB some day, but may be taken for gone now."""
    return "ttl" in item and int(item["ttl"]["N"]) < now


def _not_found(name: str) -> BagNotFoundError:
    return BagNotFoundError(f"there is no bag {name!r}")
