"""Where each thing lies in the table: partition keys and row keys.

    PartitionKey      RowKey                       what
    bags              <name>                       a bag; all in one partition, so that one query lists them
    bags              !gone<uid>                   a bag that has expired, of which something may be left
    k:<uid>           <number>                     a block
    b:<uid>:<shard>   p<page>                      which tasks of the page have ended, and how
                      r<page><offset>              rows of tasks that are done, up to 64, the first with this offset
                      f<index>                     the row of a task that failed or expired
                      a<index><attempt><token>     a failed attempt
    lanes             <name>                       a lane
    workers           <name>                       a worker's last heartbeat
    dead              <time><hash>                 a message that nobody can read
    s:<key>           s                            a document that workers share

Numbers are in hexadecimal, small letters, padded: their order is that of the keys, however letters are sorted.

A page is 64 consecutive tasks, a run 16 consecutive pages. Transactions are within one partition, so a run is in one; and
a partition takes 2,000 entities a second, so the runs of a bag are dealt out to 8 partitions (shards), one after
the other. The first run, and so a small bag, is all in the first one. The bag says by its property `wide`, which
is written before anything behind that run, whether there is anything in the other shards.

Keys may not have `/ \\ # ?` nor control characters, and not be longer than 1 KiB in UTF-16 ("Understanding the Table
service data model"); `%`, `'` and `+` have made trouble in clients. So names are escaped: each byte of their UTF-8 that is no
letter, digit, `-`, `_`, `.` or `~` becomes `!` and two hexadecimal digits.
"""

from __future__ import annotations

import hashlib
import re
import secrets

from mtask.errors import BackendError
from mtask.spec import MOST

__all__ = [
    "BAGS",
    "DEAD",
    "LANES",
    "MOST",
    "PAGE",
    "RUN",
    "RUN_TASKS",
    "SHARDS",
    "WORKERS",
    "Key",
    "attempt_key",
    "attempts_from",
    "block_key",
    "blocks_from",
    "blocks_of",
    "checked",
    "dead_key",
    "escaped",
    "gone_key",
    "group_key",
    "new_token",
    "page_key",
    "page_of",
    "partition",
    "range_of",
    "row_key",
    "run_of",
    "shard_of",
    "shared_key",
]

Key = tuple[str, str]
"""PartitionKey, RowKey."""

PAGE = 64
"""Tasks of a page."""
RUN = 16
"""Pages of a run."""
RUN_TASKS = PAGE * RUN
SHARDS = 8

BAGS, LANES, WORKERS, DEAD = "bags", "lanes", "workers", "dead"
GONE = "!gone"
"""No name is escaped to something that begins so: two hexadecimal digits follow each `!`."""

_LONGEST = 400
"""Characters of a name within a key, which has at most 512."""
_SAFE = re.compile(rb"[A-Za-z0-9_.~-]")
_AFTER = {"p": "q", "r": "s", "f": "g", "a": "b"}


def checked(index: int) -> int:
    """The index; BackendError for one that the keys don't hold."""
    if not 0 <= index <= MOST:
        raise BackendError(f"the index {index} is not between 0 and {MOST}")
    return index


def page_of(index: int) -> int:
    return index // PAGE


def run_of(page: int) -> int:
    return page // RUN


def shard_of(run: int) -> int:
    return run % SHARDS


def partition(uid: str, shard: int) -> str:
    return f"b:{escaped(uid)}:{shard}"


def page_key(page: int) -> str:
    return f"p{page:012x}"


def group_key(page: int, offset: int) -> str:
    return f"r{page:012x}{offset:02x}"


def row_key(index: int) -> str:
    """Of a task that failed or expired."""
    return f"f{index:014x}"


def attempt_key(index: int, attempt: int, token: str) -> str:
    return f"a{index:014x}{attempt:08x}{token}"


def attempts_from(index: int) -> tuple[str, str]:
    """Between these are all attempts from this index on; the second is behind them."""
    return f"a{index:014x}", _AFTER["a"]


def range_of(kind: str, first: int, last: int | None = None) -> tuple[str, str]:
    """Between these are all of this kind, `p`, `r` or `f`, of the pages from `first` to `last`, or to the end; the second
    is behind them."""
    width, factor = (14, PAGE) if kind == "f" else (12, 1)
    low = f"{kind}{first * factor:0{width}x}"
    return low, _AFTER[kind] if last is None else f"{kind}{(last + 1) * factor:0{width}x}"


def blocks_of(uid: str) -> str:
    """The partition of its blocks."""
    return f"k:{escaped(uid)}"


def block_key(uid: str, number: int) -> Key:
    return blocks_of(uid), f"{number:014x}"


def blocks_from(first: int) -> tuple[str, str]:
    return f"{max(first, 0):014x}", "g"


def dead_key(at: float, body: bytes) -> Key:
    """`body`: all of the message; the same one has the same key. `at`: seconds since the epoch, before the year 10000."""
    return DEAD, f"{max(at, 0.0):018.6f}.{hashlib.blake2b(body, digest_size=12).hexdigest()}"


def shared_key(key: str) -> Key:
    """A partition each: workers write some of them many times a second."""
    return f"s:{escaped(key)}", "s"


def gone_key(uid: str) -> Key:
    return BAGS, f"{GONE}{escaped(uid)}"


def escaped(name: str) -> str:
    """The name as a part of a key, the same for no other name."""
    text = "".join(
        chr(byte) if _SAFE.match(bytes([byte])) else f"!{byte:02x}"
        for byte in name.encode("utf-8", "surrogatepass")
    )
    if 0 < len(text) <= _LONGEST:
        return text
    return f"!~{hashlib.blake2b(name.encode('utf-8', 'surrogatepass'), digest_size=20).hexdigest()}"


def new_token() -> str:
    return secrets.token_hex(9)
