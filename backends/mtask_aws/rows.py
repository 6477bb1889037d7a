"""Results and attempts in a DynamoDB table: writing.

What a row costs. DynamoDB bills 1 write unit for each started KB of an item. One item a result, with a condition
that keeps what is done, would be 1 unit a result, and BatchWriteItem takes no conditions, so it would be a
request a result as well; counting them would read every row, or need counters, which a crash between two writes
leaves wrong for ever, unless both are written in a transaction, at double price. So the rows of one `record`
lie together, up to 64 of a page in one compressed item, and the page (`mtask_aws.pages`) says in one more
write unit which of them count. A function that returns at once takes 0.05 to 0.1 units a task so, a result that is recorded
alone takes 2: one for the row and one for the page.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence

from mtask.errors import UnavailableError
from mtask.model import Counts, Result, State
from mtask.paged import Tally, gathered, groups
from mtask.portion import Portion, line_of
from mtask_aws import keys
from mtask_aws import pages as pages_
from mtask_aws.bags import Bags, Known
from mtask_aws.blobs import Blobs
from mtask_aws.dynamo import ConditionError, Dynamo, Item, item_at, key_of
from mtask_aws.keys import LAST_PAGE, PAGE, Key, checked, new_token, page_of
from mtask_aws.pages import Change, Page

__all__ = ["GROUP_BYTES", "Writer", "counts", "pages_with"]

GROUP_BYTES = 256 * 1024
"""Rows whose JSON is longer than that together go into several items; a longer one has its own."""
RETRACT_TRIES = 50
DENSE = 4
"""Pages of which one in so many is wanted are read by queries: one by one they cost 5 times as much."""


Body = tuple[Known, Key, bytes, int | None]
"""The bag, the item's key and content, and the attempt's number, where the item is that of one row."""


class Writer:
    """Writes rows and attempts."""

    def __init__(self, db: Dynamo, blobs: Blobs, bags: Bags) -> None:
        self._db, self._blobs, self._bags = db, blobs, bags

    def record(self, results: Sequence[Result | Portion]) -> None:
        """Rows first, then the pages that name them."""
        by_bag = gathered(results, PAGE, checked)
        bags = {name: self._bags.known(name) for name in by_bag}  # before anything is written
        work = [(bags[name], page, rows) for name, pages in by_bag.items() for page, rows in pages.items()]
        for known, page, _ in work:
            self._bags.widen(known, page)
        bodies: list[Body] = []
        changes: list[tuple[Known, int, Change]] = []
        for known, page, rows in work:
            done: dict[int, str] = {}
            ended: dict[int, tuple[State, str]] = {}
            for group in groups(rows, GROUP_BYTES):
                token = new_token(group)
                done.update(dict.fromkeys(group, token))
                bodies.append(
                    (known, keys.group_key(known.uid, page, token), b"\n".join(group.values()), None)
                )
            for offset, row in rows.items():
                if row.state is not State.DONE:
                    token = new_token()
                    ended[offset] = row.state, token
                    key = keys.failure_key(known.uid, page * PAGE + offset, token)
                    bodies.append((known, key, row.line, row.attempt))
            changes.append((known, page, Change(done, ended)))
        self._put(bodies)
        self._db.parallel(self._change, changes)

    def keep_attempts(self, results: Sequence[Result]) -> None:
        """The same attempt has the same key: after a fault it is kept once, however often it is told."""
        bodies: dict[Key, Body] = {}
        for result in results:
            known = self._bags.known(result.bag)
            self._bags.widen(known, page_of(checked(result.index)))
            line = line_of(result)
            digest = hashlib.blake2b(line, digest_size=9).hexdigest()
            key = keys.attempt_key(known.uid, result.index, result.attempt, digest)
            bodies[key] = known, key, line, result.attempt
        self._put(list(bodies.values()))

    def retract(self, known: Known, indexes: Collection[int]) -> set[int]:
        """Attempts first, under keys that a second try has again; then the pages. What the pages no longer name
        stays where it is: a request on its way twice may bring the page's entry back."""
        taken: set[int] = set()
        seen: set[int] = set()
        left = {index for index in indexes if 0 <= index <= keys.MOST}
        for _ in range(RETRACT_TRIES):
            found: list[tuple[Known, Page]] = []
            recorded: set[int] = set()
            for page in pages_with(self._db, known, left):
                recorded.update(page.recorded())
                ended = {offset: row for offset, row in page.ended.items() if page.task(offset) in left}
                if ended:
                    found.append((known, Page(page.number, {}, ended)))
            taken |= seen - recorded  # by us, with the answer lost, or by somebody who did the same
            if not found:
                return taken
            self._copy([(known, page) for known, page in found])
            outcomes = self._db.parallel(self._take_out, found)
            left = set()
            for (_, page), out in zip(found, outcomes, strict=True):
                if out is None:
                    left.update(map(page.task, page.ended))
                else:
                    taken |= out
            seen = left
            if not left:
                return taken
        raise UnavailableError(
            f"the bag {known.name!r} was changed by others while rows were taken out of it"
        )

    # -- inside -------------------------------------------------------------------------------------

    def _put(self, bodies: list[Body]) -> None:
        # With S3 this may take as many requests as there are bodies, so they go side by side.
        self._db.put_all(
            self._db.parallel(self._item, bodies) if _any_large(bodies) else [*map(self._item, bodies)]
        )

    def _item(self, body: Body) -> Item:
        known, key, content, attempt = body
        item = item_at(key, **self._blobs.pack(content, known.uid, keep_s=known.keep_s))
        if attempt is not None:
            item["n"] = {"N": str(attempt)}
        return item | _ttl(known)

    def _change(self, work: tuple[Known, int, Change]) -> None:
        known, page, change = work
        expression, names, values = change.expression(known.ttl)
        self._db.update(keys.page_key(known.uid, page), expression, names=names, values=values)

    def _copy(self, found: list[tuple[Known, Page]]) -> None:
        """Keep these rows as attempts."""
        places = {
            keys.failure_key(known.uid, page.task(offset), token): (known, page.task(offset), token)
            for known, page in found
            for offset, (_, token) in page.ended.items()
        }
        copies = []
        for item in self._db.get_all(places):
            known, index, token = places[key_of(item)]
            key = keys.attempt_key(known.uid, index, int(item["n"]["N"]), token)
            copies.append(item | item_at(key))
        if copies:
            self._db.put_all(copies)

    def _take_out(self, work: tuple[Known, Page]) -> set[int] | None:
        """The indexes whose rows are out now; None: somebody else changed one of them meanwhile."""
        known, page = work
        change, condition, values = pages_.without(page.ended)
        try:
            item = self._db.update(
                keys.page_key(known.uid, page.number), change, condition=condition, values=values
            )
        except ConditionError:
            return None
        done = pages_.read(item).done
        return {page.task(offset) for offset in page.ended if offset not in done}


def _any_large(bodies: list[Body]) -> bool:
    return any(len(content) > GROUP_BYTES for _, _, content, _ in bodies)


def _ttl(known: Known) -> Item:
    return {} if known.ttl is None else {"ttl": {"N": str(known.ttl)}}


# -- reading pages --------------------------------------------------------------------------------------


def pages_with(db: Dynamo, known: Known, indexes: Collection[int]) -> Iterator[Page]:
    """The pages of these tasks, as far as there are any, in no order."""
    numbers = sorted({page_of(index) for index in indexes if 0 <= index <= keys.MOST})
    if len(numbers) > PAGE and numbers[-1] - numbers[0] < DENSE * len(numbers):
        wanted = set(numbers)
        between = keys.range_of("p", numbers[0], numbers[-1])
        for shard in {keys.shard_of(number) for number in numbers}:
            for items in db.query(keys.partition(known.uid, shard), between):
                yield from (page for page in map(pages_.read, items) if page.number in wanted)
    else:
        yield from map(pages_.read, db.get_all(keys.page_key(known.uid, number) for number in numbers))


def counts(db: Dynamo, known: Known, total: int) -> Counts:
    """By reading the pages that can have changed since this client counted last."""

    def count(shard: int) -> Tally:
        frontier = known.frontiers[shard]
        opened = db.get_all(keys.page_key(known.uid, number) for number in sorted(frontier.open))
        between = keys.range_of("p", frontier.next, LAST_PAGE)
        behind = db.query(keys.partition(known.uid, shard), between, ahead=False)
        return frontier.count(opened, (item for items in behind for item in items))

    with known.counting:
        found = Tally()
        for part in db.parallel(count, known.shards):
            found = found.plus(part)
    return Counts(total=total, done=found.done, failed=found.failed, expired=found.expired)
