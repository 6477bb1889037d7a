"""A table in Google's Firestore (native mode); what is too big for its documents is in Cloud Storage."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import msgspec

from mtask.errors import BagNotFoundError, SchemaError
from mtask.heartbeat import WorkerStatus
from mtask.meter import Meter
from mtask.model import Bag, BagState, Block, Counts, DeadMessage, Result, State
from mtask.portion import Portion
from mtask.queue import Queue
from mtask.requirements import Lane
from mtask.table import Skipped
from mtask_gcp import rows
from mtask_gcp.bags import Bags, Known
from mtask_gcp.blobs import ALONE_BYTES, Blobs
from mtask_gcp.database import Database, Snapshot, no_table
from mtask_gcp.documents import (
    MOST,
    Value,
    Write,
    checked,
    create,
    delete,
    integer,
    mapping,
    micros_of,
    number_in,
    page_id,
    put,
    raw,
    short,
    text,
    time_at,
)
from mtask_gcp.objects import Objects
from mtask_gcp.place import Place, place_of
from mtask_gcp.reading import Reader, in_order

__all__ = ["VERSION", "FirestoreTable"]

VERSION = 1
"""Of what is stored; in the document of the table."""

_DAY_S = 86400.0
_CLOCKS_S = 3600.0
"""No host's clock is wrong by more, or TLS wouldn't work."""
_NEAR_BYTES = ALONE_BYTES

_encode = msgspec.json.Encoder().encode
_decode_lane = msgspec.json.Decoder(Lane).decode
_decode_status = msgspec.json.Decoder(WorkerStatus).decode
_decode_dead = msgspec.json.Decoder(DeadMessage).decode


class FirestoreTable:
    """The table at `firestore://PROJECT/NAME`. `mtask_gcp.documents` says what lies where in it."""

    beat_s: float = 10.0
    """How often a worker should beat: each beat is a write."""
    poll_s: float = 1.0
    """How often who waits for a bag should ask: each time takes a few reads."""
    keeps: bool = True
    """Can bags and results expire?"""

    def __init__(self, place: Place) -> None:
        """Nothing is asked of Google yet; see `open`."""
        self.meter = Meter()
        self._db = Database(place, self.meter)
        self._blobs = Blobs(self._db, Objects(place, self.meter, lambda: self._bucket))
        self._bags = Bags(self._db, self._blobs)
        self._writer = rows.Writer(self._db, self._blobs, self._bags)
        self._reader = Reader(self._db, self._blobs)
        self._bucket = ""

    @classmethod
    def open(cls, url: str) -> FirestoreTable:
        """Raises UsageError for a URL that can't be used, UnusableError where there is no such table, or no right
        to it."""
        table = cls(place_of(url))
        try:
            table._check()
        except BaseException:
            table.close()
            raise
        return table

    # -- bags ---------------------------------------------------------------------------------------

    def create_bag(self, bag: Bag) -> None:
        self._bags.create(bag)

    def bag(self, name: str) -> Bag:
        return self._bags.get(name)

    def bags(self, *, skipped: Skipped | None = None) -> list[Bag]:
        return self._bags.all(skipped)

    def update_bag(
        self,
        name: str,
        *,
        state: BagState | None = None,
        total: int | None = None,
        sent: int | None = None,
        digest: str | None = None,
        generation: int | None = None,
    ) -> None:
        self._bags.update(name, state=state, total=total, sent=sent, digest=digest, generation=generation)

    # -- blocks -------------------------------------------------------------------------------------

    def put_blocks(self, blocks: Sequence[Block]) -> None:
        known = {block.bag: self._bags.known(block.bag) for block in blocks}

        def made(block: Block) -> Write:
            return self._block(known[block.bag], block)

        # What is there already stays; of two in one call, the first one.
        large = any(len(block.rows) > _NEAR_BYTES for block in blocks)
        writes = self._db.parallel(made, blocks) if large else list(map(made, blocks))
        self._db.write(list({write.update.name: write for write in reversed(writes)}.values()))

    def block(self, bag: str, number: int) -> Block:
        try:
            known = self._bags.known(bag)
        except BagNotFoundError:
            raise KeyError((bag, number)) from None
        there = self._db.get(_block_name(known, number)) if 0 <= number <= MOST else None
        if there is None:
            raise KeyError((bag, number))
        return self._block_of(known, there.id, there.fields)

    def blocks(self, bag: str, *, first: int = 0) -> Iterator[Block]:
        known = self._bags.find(bag)
        if known is not None and first <= MOST:
            for there in in_order(self._db, known.parent, "mtask-blocks", first=max(first, 0)):
                yield self._block_of(known, there.id, there.fields)

    # -- results ------------------------------------------------------------------------------------

    def record(self, results: Sequence[Result | Portion]) -> None:
        self._writer.record(results)

    def recorded(self, bag: str, indexes: Collection[int]) -> set[int]:
        try:
            known = self._bags.known(bag)
        except BagNotFoundError:
            return set()
        wanted = set(indexes)
        pages = rows.pages_with(self._db, known, wanted)
        return {index for page in pages for index in page.recorded() if index in wanted}

    def results(
        self,
        bag: str,
        *,
        states: Collection[State] | None = None,
        after: int | None = None,
        indexes: Collection[int] | None = None,
    ) -> Iterator[Result]:
        known = self._bags.find(bag)
        if known is not None:
            yield from self._reader.results(known, states=states, after=after, indexes=indexes)

    def counts(self, bag: str) -> Counts:
        total = self._bags.get(bag).total
        return rows.counts(self._db, self._bags.known(bag), total)

    def retract(self, bag: str, indexes: Collection[int]) -> set[int]:
        try:
            known = self._bags.known(bag)
        except BagNotFoundError:
            return set()
        return self._writer.retract(known, indexes)

    def keep_attempts(self, results: Sequence[Result]) -> None:
        self._writer.keep_attempts(results)

    def attempts(self, bag: str, *, after: int | None = None) -> Iterator[Result]:
        known = self._bags.find(bag)
        if known is not None:
            yield from self._reader.attempts(known, after=after)

    # -- lanes, and what workers agree on -----------------------------------------------------------

    def put_lanes(self, lanes: Sequence[Lane]) -> None:
        by_name = {lane.name: lane for lane in lanes}
        self._db.write(
            [
                put(self._name("lanes", lane.name), {"body": raw(_encode(lane))}, stamp="used")
                for lane in by_name.values()
            ]
        )

    def lanes(self) -> list[tuple[Lane, float]]:
        return [
            (_decode_lane(there.fields["body"].bytes_value), _age_s(there))
            for there in self._db.stream(self._db.root, "mtask-lanes")
        ]

    def remove_lane(self, name: str, *, unused_s: float = 0.0) -> bool:
        there = self._db.get(self._name("lanes", name))
        if there is None or _age_s(there) < unused_s:
            return False
        return self._db.write([delete(there.name, at=there.changed_at)]) != [None]

    def shared(self, key: str) -> tuple[bytes, int]:
        there = self._db.get(self._name("shared", key))
        return (b"", 0) if there is None else (_part(there, "b").bytes_value, there.changed_at)

    def swap(self, key: str, value: bytes, version: int) -> bool:
        """The version is the time of the last change; the same content is another one, too."""
        name = self._name("shared", key)
        fields = {"body": mapping({"b": raw(value), "n": raw(secrets.token_bytes(8))})}
        write = put(name, fields, at=version) if version else create(name, fields)
        return self._db.write([write]) != [None]

    # -- workers and dead messages ------------------------------------------------------------------

    def beat(self, status: WorkerStatus) -> None:
        fields = {"body": raw(_encode(status)), "ttl": time_at(time.time() + 2 * _DAY_S)}
        self._db.write([put(self._name("workers", status.worker), fields, stamp="at")])

    def workers(self) -> list[WorkerStatus]:
        since = "at", time.time() - _DAY_S - _CLOCKS_S
        found = list(self._db.stream(self._db.root, "mtask-workers", since=since))
        living = [
            msgspec.structs.replace(
                _decode_status(there.fields["body"].bytes_value),
                beat_at=micros_of(there.fields["at"].timestamp_value) / 1e6,
            )
            for there in found
            if _age_s(there, "at") <= _DAY_S
        ]
        return sorted(living, key=lambda status: (status.started_at, status.worker))

    def set_aside(self, messages: Sequence[DeadMessage]) -> None:
        writes: dict[str, Write] = {}
        for message in messages:
            body = _encode(message)
            digest = hashlib.blake2b(body, digest_size=12).hexdigest()
            name = f"{self._db.root}/mtask-dead/{max(message.at, 0.0):018.6f}.{digest}"
            writes[name] = put(name, {"body": self._blobs.pack(body, self._db.root, near=_NEAR_BYTES)})
        self._db.write(list(writes.values()))

    def dead(self) -> Iterator[DeadMessage]:
        for there in self._db.stream(self._db.root, "mtask-dead"):
            yield _decode_dead(self._blobs.unpack(there.fields["body"], self._db.root))

    # -- both at once -------------------------------------------------------------------------------

    def transaction(self, queue: Queue) -> AbstractContextManager[None]:  # noqa: ARG002
        return nullcontext()

    def close(self) -> None:
        self._db.close()
        self._blobs.objects.close()

    # -- inside -------------------------------------------------------------------------------------

    def _check(self) -> None:
        """Is there such a table, and can this version use it?"""
        there = self._db.get(self._db.root)
        if there is None or "version" not in there.fields:
            raise no_table(self._db.place)
        version = there.fields["version"].integer_value
        if version > VERSION:
            raise SchemaError(
                f"{self._db.place.url} was made by a newer mtask (version {version} of the table; this one knows "
                f"{VERSION}): upgrade this one"
            )
        self._bucket = there.fields["bucket"].string_value if "bucket" in there.fields else ""

    def _name(self, kind: str, name: str) -> str:
        return f"{self._db.root}/mtask-{kind}/{short(name)}"

    def _block(self, known: Known, block: Block) -> Write:
        packed = self._blobs.pack(block.rows, known.parent, near=_NEAR_BYTES, expires_at=known.expires_at)
        body: dict[str, Value] = {
            "rows": packed,
            "first": integer(block.first),
            "count": integer(block.count),
        }
        if block.lane:
            body["lane"] = text(block.lane)
        if block.then is not None:
            body["then"] = integer(block.then)
        return create(_block_name(known, checked(block.number)), {"body": mapping(body), **known.ttl})

    def _block_of(self, known: Known, name: str, fields: Any) -> Block:
        body = fields["body"].map_value.fields
        return Block(
            bag=known.name,
            number=number_in(name),
            first=body["first"].integer_value,
            count=body["count"].integer_value,
            rows=self._blobs.unpack(body["rows"], known.parent),
            lane=body["lane"].string_value if "lane" in body else "",
            then=body["then"].integer_value if "then" in body else None,
        )


def _block_name(known: Known, number: int) -> str:
    return f"{known.parent}/mtask-blocks/{page_id(number)}"


def _part(there: Snapshot, name: str) -> Any:
    return there.fields["body"].map_value.fields[name]


def _age_s(there: Snapshot, field: str = "used") -> float:
    """Since when the field has its value; both times are the server's."""
    return max(0.0, (there.read_at - micros_of(there.fields[field].timestamp_value)) / 1e6)
