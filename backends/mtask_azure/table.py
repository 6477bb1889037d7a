"""A table in Azure's Table storage; what is too big for its entities is in blobs."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress

import msgspec

from mtask.errors import BackendError, BagNotFoundError
from mtask.heartbeat import WorkerStatus
from mtask.meter import Meter
from mtask.model import Bag, BagState, Block, Counts, DeadMessage, Result, State
from mtask.portion import Portion
from mtask.queue import Queue
from mtask.requirements import Lane
from mtask.table import Skipped
from mtask_azure import keys, rows
from mtask_azure.address import Address, table_address
from mtask_azure.bags import Bags
from mtask_azure.blobs import Blobs
from mtask_azure.expiry import sweep
from mtask_azure.keys import DEAD, LANES, PAGE, WORKERS
from mtask_azure.pages import bits
from mtask_azure.reading import Reader
from mtask_azure.store import ConditionError, Entity, Store, Unit, age_s, delete, insert, put

__all__ = ["AzureTable"]

_DAY_S = 86400.0

_encode = msgspec.json.Encoder().encode
_decode_lane = msgspec.json.Decoder(Lane).decode
_decode_status = msgspec.json.Decoder(WorkerStatus).decode
_decode_dead = msgspec.json.Decoder(DeadMessage).decode


class AzureTable:
    """The table at `azuretable://ACCOUNT/TABLE?container=NAME`. `mtask_azure.keys` says what lies where in it."""

    beat_s: float = 10.0
    """How often a worker should beat: each beat is a transaction."""
    poll_s: float = 1.0
    """How often who waits for a bag should ask: each time takes some transactions."""
    keeps: bool = True
    """Can bags and results expire?"""

    def __init__(self, address: Address) -> None:
        """Nothing is asked of Azure yet; see `open`."""
        self.meter = Meter()
        self._store = Store(address, self.meter)
        self._blobs = Blobs(self._store)
        self._bags = Bags(self._store, self._blobs)
        self._writer = rows.Writer(self._store, self._blobs, self._bags)
        self._reader = Reader(self._store, self._blobs)
        self._lock = threading.Lock()
        self._versions: dict[str, tuple[int, str]] = {}
        """Of shared documents, as they were read last: version and ETag."""

    @classmethod
    def open(cls, url: str) -> AzureTable:
        """Raises UsageError for a URL that can't be used, UnusableError where there is no such table or no right to it."""
        table = cls(table_address(url))
        try:
            table._store.get((LANES, "!"))  # no name is escaped to that
        except BaseException:
            table.close()
            raise
        return table

    # -- bags ---------------------------------------------------------------------------------------

    def create_bag(self, bag: Bag) -> None:
        self._bags.create(bag)
        if bag.spec.keep_s is not None:  # where nothing expires there is nothing to remove
            with suppress(BackendError):  # the next one does it
                sweep(self._store, self._blobs)

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
        by_bag: dict[str, dict[int, Unit]] = {}
        for block in blocks:
            uid, number = self._bags.known(block.bag).uid, keys.checked(block.number)
            units = by_bag.setdefault(uid, {})
            if number not in units:
                units[number] = self._block_unit(uid, block)
        for uid, units in by_bag.items():
            # Those that are refused are there already.
            self._store.commit(keys.blocks_of(uid), list(units.values()))

    def block(self, bag: str, number: int) -> Block:
        try:
            known = self._bags.known(bag)
        except BagNotFoundError:
            raise KeyError((bag, number)) from None
        entity = self._store.get(keys.block_key(known.uid, number)) if 0 <= number <= keys.MOST else None
        if entity is None:
            raise KeyError((bag, number))
        return self._block_of(bag, entity)

    def blocks(self, bag: str, *, first: int = 0) -> Iterator[Block]:
        known = self._bags.find(bag)
        if known is not None:
            for entity in self._stream(keys.blocks_of(known.uid), keys.blocks_from(first)):
                yield self._block_of(bag, entity)

    # -- results ------------------------------------------------------------------------------------

    def record(self, results: Sequence[Result | Portion]) -> None:
        self._writer.record(results)

    def recorded(self, bag: str, indexes: Collection[int]) -> set[int]:
        try:
            known = self._bags.known(bag)
        except BagNotFoundError:
            return set()
        wanted = set(indexes)
        pages = rows.pages_with(self._store, known, wanted)
        return {index for n, page in pages for o in bits(page.ended) if (index := n * PAGE + o) in wanted}

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
        return rows.counts(self._store, self._bags.known(bag), total)

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
        units = [
            Unit([put((LANES, keys.escaped(lane.name)), self._blobs.pack(_encode(lane), LANES))])
            for lane in by_name.values()
        ]
        self._store.commit(LANES, units)

    def lanes(self) -> list[tuple[Lane, float]]:
        entities = list(self._stream(LANES))
        now_s = self._store.server_now_s()
        return [(_decode_lane(self._blobs.unpack(each)), age_s(each, now_s)) for each in entities]

    def remove_lane(self, name: str, *, unused_s: float = 0.0) -> bool:
        entity = self._store.get((LANES, keys.escaped(name)))
        if entity is None or (unused_s and age_s(entity, self._store.server_now_s()) < unused_s):
            return False
        try:
            self._store.delete((LANES, keys.escaped(name)), _etag(entity))
        except ConditionError:
            return False
        return True

    def shared(self, key: str) -> tuple[bytes, int]:
        entity = self._store.get(keys.shared_key(key))
        if entity is None:
            return b"", 0
        version = int(entity["v"])
        with self._lock:
            self._versions[key] = version, _etag(entity)
        return self._blobs.unpack(entity), version

    def swap(self, key: str, value: bytes, version: int) -> bool:
        place, values = keys.shared_key(key), {**self._blobs.pack(value, "shared"), "v": version + 1}
        if version:
            with self._lock:
                known = self._versions.pop(key, None)
            if known is None or known[0] != version:
                entity = self._store.get(place)
                known = None if entity is None else (int(entity["v"]), _etag(entity))
            if known is None or known[0] != version:
                return False
        try:
            if version:
                self._store.replace(place, values, known[1])  # type: ignore[index]
            else:
                self._store.insert(place, values)
        except ConditionError:
            return False
        return True

    # -- workers and dead messages ------------------------------------------------------------------

    def beat(self, status: WorkerStatus) -> None:
        # The server notes when: see `workers`.
        values = self._blobs.pack(_encode(status), WORKERS)
        self._store.put((WORKERS, keys.escaped(status.worker)), values)

    def workers(self) -> list[WorkerStatus]:
        living, old = [], []
        for entity in self._stream(WORKERS):
            now_s = self._store.server_now_s()
            at = entity.metadata["timestamp"].timestamp()  # type: ignore[attr-defined]
            if at < now_s - 2 * _DAY_S:
                old.append(Unit([delete((WORKERS, entity["RowKey"]), _etag(entity))]))
            elif at >= now_s - _DAY_S:
                status = _decode_status(self._blobs.unpack(entity))
                living.append(msgspec.structs.replace(status, beat_at=at))
        if old:
            with suppress(BackendError):  # who may only read leaves them there
                self._store.commit(WORKERS, old)
        return sorted(living, key=lambda status: (status.started_at, status.worker))

    def set_aside(self, messages: Sequence[DeadMessage]) -> None:
        units: dict[keys.Key, Unit] = {}
        for message in messages:
            body = _encode(message)
            key = keys.dead_key(message.at, body)
            units[key] = Unit([put(key, self._blobs.pack(body, DEAD))])
        self._store.commit(DEAD, list(units.values()))

    def dead(self) -> Iterator[DeadMessage]:
        for entity in self._stream(DEAD):
            yield _decode_dead(self._blobs.unpack(entity))

    # -- both at once -------------------------------------------------------------------------------

    def transaction(self, queue: Queue) -> AbstractContextManager[None]:  # noqa: ARG002
        return nullcontext()

    def close(self) -> None:
        self._store.close()

    # -- inside -------------------------------------------------------------------------------------

    def _stream(self, partition: str, between: tuple[str, str] | None = None) -> Iterator[Entity]:
        for entities in self._store.query(partition, between):
            yield from entities

    def _block_unit(self, uid: str, block: Block) -> Unit:
        values = {"first": str(block.first), "count": str(block.count), **self._blobs.pack(block.rows, uid)}
        if block.lane:
            values["lane"] = block.lane
        if block.then is not None:
            values["then"] = str(block.then)
        return Unit([insert(keys.block_key(uid, block.number), values)])

    def _block_of(self, bag: str, entity: Entity) -> Block:
        return Block(
            bag=bag,
            number=int(entity["RowKey"], 16),
            first=int(entity["first"]),
            count=int(entity["count"]),
            rows=self._blobs.unpack(entity),
            lane=entity.get("lane", ""),
            then=int(entity["then"]) if "then" in entity else None,
        )


def _etag(entity: Entity) -> str:
    etag: str = entity.metadata["etag"]  # type: ignore[attr-defined]
    return etag
