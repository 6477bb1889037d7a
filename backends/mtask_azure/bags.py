"""Bags in an Azure table.

A bag is one entity: its JSON as it was made (`mtask_azure.blobs`), `now` what has changed since, `wide` whether there is
anything behind the first run, `gone_at` when it expires.
"""

from __future__ import annotations

from mtask.errors import BagExistsError, BagNotFoundError, UnavailableError
from mtask.model import Bag, BagState
from mtask.stored_bag import bag_of, changed, listed, made, now_of, tries
from mtask.table import Skipped
from mtask_azure import keys
from mtask_azure.blobs import Blobs
from mtask_azure.keys import BAGS, GONE, SHARDS, Key
from mtask_azure.pages import Frontier
from mtask_azure.store import ConditionError, Entity, Store, Unit, put, replace, row_of

__all__ = ["Bags", "Known"]


class Known:
    """What one client remembers of a bag."""

    def __init__(self, bag: Bag) -> None:
        self.name, self.uid = bag.name, bag.uid
        self.wide = False
        self.frontiers = [Frontier(shard) for shard in range(SHARDS)]

    @property
    def shards(self) -> range:
        """Those that may hold something."""
        return range(SHARDS if self.wide else 1)

    def partition(self, shard: int) -> str:
        return keys.partition(self.uid, shard)


class Bags:
    """The bags of one table."""

    def __init__(self, store: Store, blobs: Blobs) -> None:
        self._store, self._blobs = store, blobs
        self._known: dict[str, Known] = {}

    def create(self, bag: Bag) -> None:
        """Raises BagExistsError."""
        body = made(bag)
        key = _key(bag.name)
        values = self._blobs.pack(body, bag.uid) | {"now": now_of(bag).decode(), "uid": bag.uid}
        if bag.spec.keep_s is not None:
            values["gone_at"] = bag.created_at + bag.spec.keep_s
        for _ in tries():
            try:
                self._store.insert(key, values)
                break
            except ConditionError:
                there = self._store.get(key)
            if there is None:
                continue
            if not self._expired(there):
                # Ours, if the answer to the first of several tries was lost.
                if self._blobs.unpack(there) == body:
                    break
                raise BagExistsError(f"there is a bag {bag.name!r} already")
            # What the old one has left is found by its entry as gone, which is made in the same transaction.
            left = {name: there[name] for name in ("uid", "gone_at")}
            gone = put(keys.gone_key(there["uid"]), left)
            swap = replace(key, values, there.metadata["etag"])  # type: ignore[attr-defined]
            if not self._store.commit(BAGS, [Unit([swap, gone])]):
                break
        else:
            raise _changed(bag.name)
        self._known[bag.name] = Known(bag)

    def get(self, name: str) -> Bag:
        """As it is now. Raises BagNotFoundError."""
        return self._read(name)[0]

    def all(self, skipped: Skipped | None) -> list[Bag]:
        """Oldest first. See `Table.bags`."""
        entities = [
            entity
            for answer in self._store.query(BAGS)
            for entity in answer
            if not row_of(entity).startswith(GONE) and not self._expired(entity)
        ]
        return sorted(listed(entities, self._bag_of, skipped), key=lambda bag: (bag.created_at, bag.name))

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
            bag, entity = self._read(name)
            now = changed(bag, state=state, total=total, sent=sent, digest=digest, generation=generation)
            if now is None:
                return
            if self._merge(name, {"now": now.decode()}, entity):
                return
        raise _changed(name)

    def find(self, name: str) -> Known | None:
        """As it is now; None: there is no such bag."""
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

    def widen(self, known: Known, run: int) -> None:
        """Before anything of this run is written."""
        for _ in tries():
            if run == 0 or known.wide:
                return
            _, entity = self._read(known.name)
            if "wide" in entity or self._merge(known.name, {"wide": True}, entity):
                known.wide = True
                return
        raise _changed(known.name)

    def _merge(self, name: str, values: Entity, read: Entity) -> bool:
        """Was it still as it was read?"""
        try:
            self._store.replace(_key(name), values, read.metadata["etag"], merge=True)  # type: ignore[attr-defined]
        except ConditionError:
            return False
        return True

    def _read(self, name: str) -> tuple[Bag, Entity]:
        entity = self._store.get(_key(name))
        if entity is None or self._expired(entity):
            self._known.pop(name, None)
            raise BagNotFoundError(f"there is no bag {name!r}")
        bag = self._bag_of(entity)
        known = self._known.get(name)
        if known is None or known.uid != bag.uid:
            known = self._known[name] = Known(bag)
        known.wide = known.wide or "wide" in entity
        return bag, entity

    def _expired(self, entity: Entity) -> bool:
        """By the server's clock, as it was when it answered."""
        return float(entity.get("gone_at", "inf")) < self._store.server_now_s()

    def _bag_of(self, entity: Entity) -> Bag:
        return bag_of(self._blobs.unpack(entity), entity.get("now"), row_of(entity))


def _changed(name: str) -> UnavailableError:
    return UnavailableError(f"the bag {name!r} was changed by others again and again while this tried to")


def _key(name: str) -> Key:
    return BAGS, keys.escaped(name)
