"""A table in Amazon DynamoDB; what is too big for its items is in S3."""

from __future__ import annotations

import heapq
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress

import msgspec
from botocore.exceptions import ClientError

from mtask.errors import BagNotFoundError, UnavailableError, UnusableError, UsageError
from mtask.heartbeat import WorkerStatus
from mtask.meter import Meter
from mtask.model import Bag, BagState, Block, Counts, DeadMessage, Result, State
from mtask.portion import Portion
from mtask.queue import Queue
from mtask.requirements import Lane
from mtask.table import Skipped
from mtask_aws import keys, rows
from mtask_aws.address import Address, parse
from mtask_aws.bags import Bags
from mtask_aws.blobs import Blobs
from mtask_aws.bucket import Bucket
from mtask_aws.client import code_of
from mtask_aws.dynamo import ConditionError, Dynamo, Item, item_at, no_table
from mtask_aws.keys import DEAD, LANES, WORKERS
from mtask_aws.reading import Reader

__all__ = ["ATTRIBUTES", "KEY_SCHEMA", "DynamoTable", "address_of"]

KEY_SCHEMA = [{"AttributeName": "pk", "KeyType": "HASH"}, {"AttributeName": "sk", "KeyType": "RANGE"}]
ATTRIBUTES = [{"AttributeName": name, "AttributeType": "S"} for name in ("pk", "sk")]

_DAY_S = 86400.0
_LONGEST_NAME = 255
_SHORTEST_NAME = 3
_BLOCKS_AFTER = "k~"

_encode = msgspec.json.Encoder().encode
_decode_lane = msgspec.json.Decoder(Lane).decode
_decode_status = msgspec.json.Decoder(WorkerStatus).decode
_decode_dead = msgspec.json.Decoder(DeadMessage).decode


def address_of(url: str) -> Address:
    """Raises UsageError for a URL that can't be used."""
    address = parse(url, "dynamodb", ["bucket"], longest=_LONGEST_NAME)
    if len(address.name) < _SHORTEST_NAME:
        raise UsageError(f"{url!r}: the name of a table has at least {_SHORTEST_NAME} characters")
    bucket = address.options.get("bucket")
    if bucket is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", bucket):
        raise UsageError(
            f"{url!r}: {bucket!r} can't be the name of a bucket: it has 3 to 63 small letters, digits, '-' and '.'"
        )
    return address


class DynamoTable:
    """The table at `dynamodb://REGION/NAME?bucket=BUCKET`. `mtask_aws.keys` says what lies where in it."""

    beat_s: float = 10.0
    """How often a worker should beat: each beat takes a write unit, or some."""
    poll_s: float = 1.0
    """How often who waits for a bag should ask: each time takes a read unit, or some."""
    keeps: bool = True
    """Can bags and results expire?"""

    def __init__(self, address: Address) -> None:
        """Nothing is asked of AWS yet; see `open`."""
        self.meter = Meter()
        self._db = Dynamo(address, self.meter)
        self._blobs = Blobs(Bucket(address, self.meter))
        self._bags = Bags(self._db, self._blobs)
        self._writer = rows.Writer(self._db, self._blobs, self._bags)
        self._reader = Reader(self._db, self._blobs)

    @classmethod
    def open(cls, url: str) -> DynamoTable:
        """Raises UsageError for a URL that can't be used, UnusableError where there is no such table, no right
        to it, or one with other keys."""
        table = cls(address_of(url))
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
        # A request each: BatchWriteItem would replace a block that is there.
        self._db.parallel(self._put_block, blocks)

    def block(self, bag: str, number: int) -> Block:
        try:
            known = self._bags.known(bag)
        except BagNotFoundError:
            raise KeyError((bag, number)) from None
        item = self._db.get(keys.block_key(known.uid, number)) if 0 <= number <= keys.MOST else None
        if item is None:
            raise KeyError((bag, number))
        return self._block_of(bag, item)

    def blocks(self, bag: str, *, first: int = 0) -> Iterator[Block]:
        known = self._bags.find(bag)
        if known is None:
            return
        between = keys.block_key(known.uid, first)[1], _BLOCKS_AFTER
        streams = (self._stream(keys.partition(known.uid, shard), between) for shard in known.shards)
        for item in heapq.merge(*streams, key=lambda item: str(item["sk"]["S"])):
            yield self._block_of(bag, item)

    # -- results ------------------------------------------------------------------------------------

    def record(self, results: Sequence[Result | Portion]) -> None:
        self._writer.record(results)

    def recorded(self, bag: str, indexes: Collection[int]) -> set[int]:
        try:
            known = self._bags.known(bag)
        except BagNotFoundError:
            return set()
        wanted = set(indexes)
        return {
            index
            for page in rows.pages_with(self._db, known, wanted)
            for index in page.recorded()
            if index in wanted
        }

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
        at = self._number(self._db.clock.now())
        by_name = {lane.name: lane for lane in lanes}
        items = [
            item_at((LANES, keys.short(lane.name)), b={"B": _encode(lane)}, used=at)
            for lane in by_name.values()
        ]
        self._db.put_all(items)

    def lanes(self) -> list[tuple[Lane, float]]:
        items = list(self._stream(LANES))
        now = self._db.clock.now()
        return [(_decode_lane(item["b"]["B"]), max(0.0, now - float(item["used"]["N"]))) for item in items]

    def remove_lane(self, name: str, *, unused_s: float = 0.0) -> bool:
        before = self._number(self._db.clock.now() - unused_s)
        try:
            self._db.delete(
                (LANES, keys.short(name)), condition="used <= :before", values={":before": before}
            )
        except ConditionError:
            return False
        return True

    def shared(self, key: str) -> tuple[bytes, int]:
        item = self._db.get(keys.shared_key(key))
        if item is None:
            return b"", 0
        return (bytes(item["b"]["B"]) if "b" in item else b""), int(item["v"]["N"])

    def swap(self, key: str, value: bytes, version: int) -> bool:
        item = item_at(keys.shared_key(key), v={"N": str(version + 1)})
        if value:  # not every server takes empty bytes
            item["b"] = {"B": value}
        try:
            if version:
                self._db.put(item, condition="v = :v", values={":v": {"N": str(version)}})
            else:
                self._db.put(item, condition="attribute_not_exists(pk)")
        except ConditionError:
            return False
        return True

    # -- workers and dead messages ------------------------------------------------------------------

    def beat(self, status: WorkerStatus) -> None:
        now = self._db.clock.now()
        body = _encode(msgspec.structs.replace(status, beat_at=now))
        ttl = {"N": str(int(now + 2 * _DAY_S))}
        self._db.put(item_at((WORKERS, keys.short(status.worker)), b={"B": body}, ttl=ttl))

    def workers(self) -> list[WorkerStatus]:
        statuses = [_decode_status(item["b"]["B"]) for item in self._stream(WORKERS)]
        oldest = self._db.clock.now() - _DAY_S
        living = [status for status in statuses if status.beat_at >= oldest]
        return sorted(living, key=lambda status: (status.started_at, status.worker))

    def set_aside(self, messages: Sequence[DeadMessage]) -> None:
        items: dict[keys.Key, Item] = {}
        for message in messages:
            body = _encode(message)
            key = keys.dead_key(message.at, body)
            items[key] = item_at(key, **self._blobs.pack(body, DEAD))
        self._db.put_all(list(items.values()))

    def dead(self) -> Iterator[DeadMessage]:
        for item in self._stream(DEAD):
            yield _decode_dead(self._blobs.unpack(item))

    # -- both at once -------------------------------------------------------------------------------

    def transaction(self, queue: Queue) -> AbstractContextManager[None]:  # noqa: ARG002
        return nullcontext()

    def close(self) -> None:
        self._db.close()
        self._blobs.bucket.close()

    # -- inside -------------------------------------------------------------------------------------

    def _check(self) -> None:
        """Is there such a table, and is it one of ours?"""
        address, asked_at = self._db.address, self._db.clock.local()
        with self._db.client.errors("dynamodb:DescribeTable"):
            try:
                answer = self._db.client.get().describe_table(TableName=address.name)
            except ClientError as error:
                if code_of(error) == "ResourceNotFoundException":
                    raise no_table(address) from None
                raise
        self._db.saw(answer, asked_at)
        found = answer["Table"]
        if found["TableStatus"] == "CREATING":
            raise UnavailableError(f"the table {address.url} is still being made")
        types = {each["AttributeName"]: each["AttributeType"] for each in found["AttributeDefinitions"]}
        if found["KeySchema"] != KEY_SCHEMA or any(types[name] != "S" for name in ("pk", "sk")):
            raise UnusableError(
                f"the table {address.url} has other keys than mtask's (pk and sk, both strings), so it is somebody "
                "else's: choose another name"
            )

    def _stream(self, partition: str, between: tuple[str, str] | None = None) -> Iterator[Item]:
        for items in self._db.query(partition, between):
            yield from items

    def _put_block(self, block: Block) -> None:
        known = self._bags.known(block.bag)
        number = keys.checked(block.number)
        self._bags.widen(known, number)
        item = item_at(
            keys.block_key(known.uid, number),
            first={"N": str(block.first)},
            count={"N": str(block.count)},
            **self._blobs.pack(block.rows, known.uid, keep_s=known.keep_s),
            **_optional(lane=block.lane or None),
            **_optional(then=block.then),
            **_optional(ttl=known.ttl),
        )
        with suppress(ConditionError):  # it is there already
            self._db.put(item, condition="attribute_not_exists(pk)")

    def _block_of(self, bag: str, item: Item) -> Block:
        return Block(
            bag=bag,
            number=int(item["sk"]["S"][1:], 16),
            first=int(item["first"]["N"]),
            count=int(item["count"]["N"]),
            rows=self._blobs.unpack(item),
            lane=item["lane"]["S"] if "lane" in item else "",
            then=int(item["then"]["N"]) if "then" in item else None,
        )

    def _number(self, seconds: float) -> dict[str, str]:
        return {"N": f"{seconds:.6f}"}


def _optional(**given: str | int | None) -> Item:
    return {
        name: {"S": value} if isinstance(value, str) else {"N": str(value)}
        for name, value in given.items()
        if value is not None
    }
