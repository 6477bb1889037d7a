"""Bags that have expired: Azure's tables have no time to live, so somebody must remove what is left of them.

That is whoever makes the next bag that expires. A bag whose time is over is taken for gone at once, and its name
is free. Removing a bag of a million quick tasks takes some 500 requests: rows lie in groups, and a transaction removes
a hundred entities. The bag's own entity, or the note that it is gone, is removed last, so whoever is interrupted is followed
by the next one.
"""

from __future__ import annotations

from collections.abc import Iterator

from mtask_azure import keys
from mtask_azure.blobs import Blobs
from mtask_azure.keys import BAGS
from mtask_azure.store import ConditionError, Entity, Store, Unit, delete, row_of

__all__ = ["AFTER_S", "sweep"]

AFTER_S = 3600.0
"""After the end of a bag's time, for workers that still record something of it."""


def sweep(store: Store, blobs: Blobs) -> int:
    """Remove what is left of bags that expired more than `AFTER_S` ago; how many there were."""
    count = 0
    for entity in list(_expired(store)):
        uid = entity["uid"]
        partitions = [keys.blocks_of(uid), *(keys.partition(uid, shard) for shard in range(keys.SHARDS))]
        store.parallel(lambda partition: _empty(store, partition), partitions)
        blobs.remove(uid)
        try:
            store.delete((BAGS, row_of(entity)), entity.metadata["etag"])  # type: ignore[attr-defined]
        except ConditionError:
            continue  # another bag has just taken the name; it has noted that this one is gone
        count += 1
    return count


def _expired(store: Store) -> Iterator[Entity]:
    """Bags, and notes of bags whose name has been taken by another one."""
    for answer in store.query(BAGS):
        before = store.server_now_s() - AFTER_S  # a clock that was set wrong here removes nothing
        yield from (entity for entity in answer if float(entity.get("gone_at", "inf")) < before)


def _empty(store: Store, partition: str) -> None:
    for answer in store.query(partition, select=["RowKey"], ahead=False):
        # One that is gone already was removed by somebody who does the same.
        store.commit(partition, [Unit([delete((partition, row_of(entity)))]) for entity in answer])
