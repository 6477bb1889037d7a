"""Where each thing lies in the table: partition keys and sort keys.

    pk                    sk                             what
    bags                  name                           a bag; all in one partition, so that one Query lists them
    b:<uid>:<shard>       p<page>                        which tasks of the page have a row, and in which item
                          r<page><token>                 the rows of tasks that are done, up to 64 in an item
                          f<index><token>                the row of a task that failed or expired
                          a<index><attempt><token>       a failed attempt
                          k<number>                      a block
    lanes                 name                           a lane
    workers               name                           a worker's last heartbeat
    dead                  <time><hash>                   a message that nobody can read
    s:<key>               s                              a document that workers share

Numbers are in hexadecimal, padded, so that the order of the keys is theirs.

A page is 64 consecutive tasks. A partition takes 1,000 write units a second, and a fleet can write more than
that, so the pages of a bag are spread over 8 partitions (shards). The first 16 pages (1,024 tasks) are all in
the first one: whoever reads a small bag asks once, not eight times. The bag says by its attribute `wide`, which
is written before anything behind those pages, whether there is anything in the other shards.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable

from mtask.errors import BackendError
from mtask.spec import MOST

__all__ = [
    "BAGS",
    "DEAD",
    "LANES",
    "LAST_PAGE",
    "MOST",
    "NARROW",
    "PAGE",
    "SHARDS",
    "WORKERS",
    "Key",
    "attempt_key",
    "attempts_from",
    "block_key",
    "checked",
    "dead_key",
    "failure_key",
    "group_key",
    "new_token",
    "next_page",
    "page_key",
    "page_of",
    "partition",
    "range_of",
    "shard_of",
    "shared_key",
    "short",
]

Key = tuple[str, str]
"""Partition key, sort key."""

PAGE = 64
"""Tasks of a page."""
SHARDS = 8
NARROW = 16
"""The first so many pages, and blocks, are in the first shard."""
LAST_PAGE = MOST // PAGE

BAGS, LANES, WORKERS, DEAD = "bags", "lanes", "workers", "dead"

_LONGEST_BYTES = 1000
"""Of a name within a key. DynamoDB takes 1,024 bytes in a sort key, and 2,048 in a partition key."""
_AFTER = "~"
"""Behind every token."""
_TOKEN_BYTES = 6


def checked(index: int) -> int:
    """The index; BackendError for one that the keys don't hold."""
    if not 0 <= index <= MOST:
        raise BackendError(f"the index {index} is not between 0 and {MOST}")
    return index


def page_of(index: int) -> int:
    return index // PAGE


def shard_of(number: int) -> int:
    """Of a page or a block."""
    return 0 if number < NARROW else number % SHARDS


def next_page(shard: int, page: int) -> int:
    """The page that follows in the same shard; -1 gives the first one."""
    if shard == 0 and page < NARROW - 1:
        return page + 1
    after = max(page + 1, NARROW)
    return after + (shard - after) % SHARDS


def partition(uid: str, shard: int) -> str:
    return f"b:{uid}:{shard}"


def page_key(uid: str, page: int) -> Key:
    return partition(uid, shard_of(page)), f"p{page:012x}"


def group_key(uid: str, page: int, token: str) -> Key:
    return partition(uid, shard_of(page)), f"r{page:012x}{token}"


def failure_key(uid: str, index: int, token: str) -> Key:
    return partition(uid, shard_of(page_of(index))), f"f{index:014x}{token}"


def attempt_key(uid: str, index: int, attempt: int, token: str) -> Key:
    return partition(uid, shard_of(page_of(index))), f"a{index:014x}{attempt:08x}{token}"


def attempts_from(index: int) -> tuple[str, str]:
    """The sort keys between which all attempts from this index on are."""
    return f"a{index:014x}", f"a{_AFTER}"


def block_key(uid: str, number: int) -> Key:
    return partition(uid, shard_of(number)), f"k{number:014x}"


def range_of(kind: str, first: int, last: int) -> tuple[str, str]:
    """The sort keys between which lie all of this kind, `p`, `r` or `f`, of the pages from `first` to `last`."""
    if kind == "f":
        return f"f{first * PAGE:014x}", f"f{last * PAGE + PAGE - 1:014x}{_AFTER}"
    return f"{kind}{first:012x}", f"{kind}{last:012x}{_AFTER}"


def dead_key(at: float, body: bytes) -> Key:
    """`body`: all of the message; the same one has the same key. `at`: seconds since the epoch, before the year 10000."""
    return DEAD, f"{max(at, 0.0):018.6f}.{hashlib.blake2b(body, digest_size=12).hexdigest()}"


def shared_key(key: str) -> Key:
    """A partition each: workers write some of them many times a second."""
    return f"s:{short(key)}", "s"


def short(name: str) -> str:
    """The name as a part of a key, the same for no other name."""
    size = len(name.encode())
    if 0 < size <= _LONGEST_BYTES and not name.startswith("#"):
        return name
    return f"#{hashlib.blake2b(name.encode(), digest_size=20).hexdigest()}"


def new_token(offsets: Iterable[int] = ()) -> str:
    """Of an item that is written once and never overwritten: 8 characters by chance, and one for the first offset.

    Two items of a page need the same first task and the same 48 random bits to get the same key; only a task
    that was recorded again and again has more than one.
    """
    first = next(iter(offsets), 0)
    return f"{_DIGITS[first]}{secrets.token_urlsafe(_TOKEN_BYTES)}"


_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_"
