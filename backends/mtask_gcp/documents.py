"""Where each thing lies in the database, and documents in the form of the wire.

    mtask/<table>                               the table itself: its version, and its bucket
    mtask/<table>/mtask-bags/<name>             a bag
    mtask/<table>/mtask-lanes/<name>            a lane
    mtask/<table>/mtask-workers/<name>          a worker's last heartbeat
    mtask/<table>/mtask-shared/<key>            a document that workers share
    mtask/<table>/mtask-dead/<time><hash>       a message that nobody can read
    mtask/<table>/mtask-tasks/<uid>/            of the bag with this uid:
        mtask-pages/<shard><page>               the rows of 32 tasks
        mtask-blocks/<shard><number>            a block
        mtask-attempts/<shard><index>…          a failed attempt
        mtask-blobs/<hash>                      what is too big for one of these, up to 1 MB

Numbers are in hexadecimal, padded, so that the order of the names is theirs. Firestore is slow where many
documents with neighbouring names are made at once ("Best practices", hotspots), so those of a bag are spread over
8 shards.

What nobody asks for is below the field `body`, which `mtask init` exempts from the indexes; `ttl`, too, by
which Firestore removes what has expired.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

from google.cloud.firestore_v1.types import Document, DocumentMask, DocumentTransform, MapValue, Precondition
from google.cloud.firestore_v1.types import Value as Value
from google.cloud.firestore_v1.types import Write as Write

from mtask.errors import BackendError
from mtask.spec import MOST

__all__ = [
    "COLLECTIONS",
    "MOST",
    "PAGE",
    "SHARDS",
    "Fields",
    "Value",
    "Write",
    "attempt_id",
    "checked",
    "create",
    "delete",
    "digest_of",
    "integer",
    "mapping",
    "micros_of",
    "number_in",
    "page_id",
    "page_of",
    "put",
    "raw",
    "shard_of",
    "short",
    "text",
    "time_at",
    "update",
]

Fields = Mapping[str, Value]

PAGE = 32
"""Tasks of a page."""
SHARDS = 8
COLLECTIONS = (
    "mtask-attempts",
    "mtask-bags",
    "mtask-blobs",
    "mtask-blocks",
    "mtask-dead",
    "mtask-lanes",
    "mtask-pages",
    "mtask-shared",
    "mtask-workers",
)
"""All of them: settings of fields belong to collections of a name, wherever they are."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LONGEST_BYTES = 1000
"""Of a document's name; Firestore takes 1,500 bytes, and 6 KiB for the whole path."""


# -- names ----------------------------------------------------------------------------------------------


def checked(index: int) -> int:
    """The index; BackendError for one that the names don't hold."""
    if not 0 <= index <= MOST:
        raise BackendError(f"the index {index} is not between 0 and {MOST}")
    return index


def page_of(index: int) -> int:
    return index // PAGE


def shard_of(number: int) -> int:
    """Of a page or a block."""
    return number % SHARDS


def page_id(number: int) -> str:
    """Of a page or a block."""
    return f"{shard_of(number)}{number:014x}"


def attempt_id(index: int, attempt: int, digest: str) -> str:
    return f"{shard_of(page_of(index))}{index:014x}{attempt:08x}{digest}"


def number_in(name: str) -> int:
    """The page's or block's number, or the attempt's index."""
    return int(name[1:15], 16)


def short(name: str) -> str:
    """Any text as the name of a document, the same for no other text."""
    # Firestore forbids '/', '.', '..' and '__…__'.
    quoted = "n" + quote(name, safe=" ")
    if len(quoted) <= _LONGEST_BYTES:
        return quoted
    return f"h{hashlib.blake2b(name.encode(), digest_size=20).hexdigest()}"


def digest_of(value: Value) -> str:
    """Of bytes or a text."""
    content = bytes(value.bytes_value) or value.string_value.encode()
    return hashlib.blake2b(content, digest_size=9).hexdigest()


# -- values ---------------------------------------------------------------------------------------------


def raw(content: bytes) -> Value:
    return Value(bytes_value=content)


def text(content: str) -> Value:
    return Value(string_value=content)


def integer(number: int) -> Value:
    return Value(integer_value=number)


def mapping(fields: Fields) -> Value:
    return Value(map_value=MapValue(fields=fields))


def time_at(seconds: float) -> Value:
    return Value(timestamp_value=datetime.fromtimestamp(int(seconds), UTC))


def micros_of(stamp: Any) -> int:
    """Of a protobuf timestamp: Firestore has microseconds."""
    return int(stamp.seconds) * 1_000_000 + int(stamp.nanos) // 1000


# -- writes ---------------------------------------------------------------------------------------------


def create(name: str, fields: Fields) -> Write:
    """Fails if it is there."""
    return Write(update=Document(name=name, fields=fields), current_document=Precondition(exists=False))


def put(name: str, fields: Fields, *, stamp: str | None = None, at: int | None = None) -> Write:
    """Replaces what is there. `stamp`: a field that gets the server's time; `at`: as for `update`."""
    write = Write(update=Document(name=name, fields=fields))
    if stamp is not None:
        transform = DocumentTransform.FieldTransform(
            field_path=stamp,
            set_to_server_value=DocumentTransform.FieldTransform.ServerValue.REQUEST_TIME,
        )
        write.update_transforms = [transform]
    if at is not None:
        write.current_document = _unchanged_since(at)
    return write


def update(name: str, fields: Fields, paths: Sequence[str], *, at: int) -> Write:
    """Sets these paths to what `fields` has there, or removes them; fails unless the document was last changed at `at`
    (microseconds)."""
    return Write(
        update=Document(name=name, fields=fields),
        update_mask=DocumentMask(field_paths=paths),
        current_document=_unchanged_since(at),
    )


def delete(name: str, *, at: int) -> Write:
    return Write(delete=name, current_document=_unchanged_since(at))


def _unchanged_since(at: int) -> Precondition:
    return Precondition(update_time=_EPOCH + timedelta(microseconds=at))
