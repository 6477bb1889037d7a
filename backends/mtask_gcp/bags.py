"""Bags in a Firestore database.

A bag is one document: `body.bag` its JSON as it was made, `body.now` what has changed since, `ttl` when it expires.
Changes are made on the condition that nobody else has made one meanwhile.
"""

from __future__ import annotations

from typing import Any

from mtask.errors import BagExistsError, BagNotFoundError, UnavailableError
from mtask.model import Bag, BagState
from mtask.stored_bag import bag_of, changed, listed, made, now_of, tries, unreadable
from mtask.table import Skipped
from mtask_gcp.blobs import ALONE_BYTES, Blobs
from mtask_gcp.database import Database, Snapshot
from mtask_gcp.documents import Fields, create, mapping, put, raw, short, time_at, update

__all__ = ["Bags", "Known", "expired"]

_NEAR_BYTES = ALONE_BYTES // 2


class Known:
    """What one client remembers of a bag: what never changes."""

    def __init__(self, bag: Bag, db: Database) -> None:
        self.name, self.uid = bag.name, bag.uid
        self.parent = db.tasks(short(bag.uid))
        self.expires_at = None if bag.spec.keep_s is None else bag.created_at + bag.spec.keep_s
        """When the bag and all that is its expire (UTC)."""

    @property
    def ttl(self) -> Fields:
        """The field of each document that is the bag's."""
        return {} if self.expires_at is None else {"ttl": time_at(self.expires_at)}


class Bags:
    """The bags of one table."""

    def __init__(self, db: Database, blobs: Blobs) -> None:
        self._db, self._blobs = db, blobs
        self._known: dict[str, Known] = {}

    def create(self, bag: Bag) -> None:
        """Raises BagExistsError."""
        body, known = made(bag), Known(bag, self._db)
        packed = self._blobs.pack(body, known.parent, near=_NEAR_BYTES, expires_at=known.expires_at)
        fields = {"body": mapping({"bag": packed, "now": raw(now_of(bag)), "uid": raw(bag.uid.encode())})}
        fields |= known.ttl
        name = self._name(bag.name)
        for _ in tries():
            if self._db.write([create(name, fields)]) != [None]:
                break
            there = self._db.get(name)
            if there is None:
                continue  # it has expired just now
            if not expired(there):
                # Ours, if the answer to the first of several tries was lost.
                if self._unpacked(there) == body:
                    break
                raise BagExistsError(f"there is a bag {bag.name!r} already")
            if self._db.write([put(name, fields, at=there.changed_at)]) != [None]:
                break
        else:
            raise UnavailableError(f"the bag {bag.name!r} was made and removed by others again and again")
        self._known[bag.name] = known

    def get(self, name: str) -> Bag:
        """As it is now. Raises BagNotFoundError."""
        return self._read(name)[0]

    def all(self, skipped: Skipped | None) -> list[Bag]:
        """Oldest first. See `Table.bags`."""
        found = self._db.stream(self._db.root, "mtask-bags")
        living = (each for each in found if not expired(each))
        return sorted(listed(living, self._bag_of, skipped), key=lambda bag: (bag.created_at, bag.name))

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
            bag, there = self._read(name)
            now = changed(bag, state=state, total=total, sent=sent, digest=digest, generation=generation)
            if now is None:
                return
            fields = {"body": mapping({"now": raw(now)})}
            if self._db.write([update(there.name, fields, ["body.now"], at=there.changed_at)]) != [None]:
                return
        raise UnavailableError(f"the bag {name!r} was changed by others again and again while this tried to")

    def find(self, name: str) -> Known | None:
        """None: there is no such bag now."""
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

    def _name(self, bag: str) -> str:
        return f"{self._db.root}/mtask-bags/{short(bag)}"

    def _read(self, name: str) -> tuple[Bag, Snapshot]:
        there = self._db.get(self._name(name))
        if there is None or expired(there):
            self._known.pop(name, None)
            raise BagNotFoundError(f"there is no bag {name!r}")
        bag = self._bag_of(there)
        known = self._known.get(name)
        if known is None or known.uid != bag.uid:
            self._known[name] = Known(bag, self._db)
        return bag, there

    def _bag_of(self, there: Snapshot) -> Bag:
        try:
            body, now = self._unpacked(there), _body(there)["now"].bytes_value
        except KeyError as error:
            raise unreadable(there.id, error) from None
        return bag_of(body, now, there.id)

    def _unpacked(self, there: Snapshot) -> bytes:
        body = _body(there)
        parent = self._db.tasks(short(bytes(body["uid"].bytes_value).decode()))
        return self._blobs.unpack(body["bag"], parent)


def expired(there: Snapshot) -> bool:
    """It is removed by Firestore some day, but is taken for gone now."""
    if "ttl" not in there.fields:
        return False
    return int(there.fields["ttl"].timestamp_value.seconds) * 1_000_000 < there.read_at


def _body(there: Snapshot) -> Any:
    return there.fields["body"].map_value.fields
