"""What is stored in the file, and how a file is told from somebody else's."""

from __future__ import annotations

import sqlite3

from mtask.errors import SchemaError, UnusableError

__all__ = ["APPLICATION_ID", "INDEX_BITS", "VERSION", "check", "create"]

APPLICATION_ID = 0x6D746173
""""mtas": marks the file as one of mtask's, also for file(1)."""

VERSION = 2
"""Raised with each change of the tables that an older mtask would stumble over."""

INDEX_BITS = 40
"""The key of a block and of a result is `bag id << 40 | number`.

One integer key, which is SQLite's own rowid, makes one tree of table and index: half the writes
and the bytes of a two-column key, and rows in order of index come from neighbouring pages.
"""

_TABLES = f"""
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

CREATE TABLE bag (
    id         INTEGER PRIMARY KEY,
    name       TEXT NOT NULL UNIQUE,
    created_at REAL NOT NULL,
    state      TEXT NOT NULL,
    generation INTEGER NOT NULL,
    digest     TEXT NOT NULL,
    total      INTEGER NOT NULL,
    sent       INTEGER NOT NULL,
    done       INTEGER NOT NULL DEFAULT 0,  -- how many results of each state there are,
    failed     INTEGER NOT NULL DEFAULT 0,  -- kept true by every transaction that
    expired    INTEGER NOT NULL DEFAULT 0,  -- changes results
    body       BLOB NOT NULL                -- JSON of the Bag as it was created
);

CREATE TABLE block (
    key   INTEGER PRIMARY KEY,              -- bag id << {INDEX_BITS} | number
    first INTEGER NOT NULL,
    count INTEGER NOT NULL,
    rows  BLOB NOT NULL,
    lane  TEXT NOT NULL,
    next  INTEGER
);

CREATE TABLE result (
    key   INTEGER PRIMARY KEY,              -- bag id << {INDEX_BITS} | index
    state INTEGER NOT NULL,                 -- 0 done, 1 failed, 2 expired
    body  BLOB NOT NULL                     -- JSON of the Result without its first field, the bag
);
CREATE INDEX result_not_done ON result (key, state) WHERE state > 0;

CREATE TABLE attempt (
    id      INTEGER PRIMARY KEY,
    key     INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    body    BLOB NOT NULL
);
CREATE INDEX attempt_by_key ON attempt (key, attempt, id);

-- The lease and the body are apart, because SQLite writes a whole row anew when one value changes.
CREATE TABLE message (
    id         INTEGER PRIMARY KEY,
    lane       TEXT NOT NULL,
    visible_at REAL NOT NULL,               -- by the lease clock, see queue.py
    token      INTEGER,                     -- NULL: nobody received it, or its holder gave it back
    deliveries INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX message_in_order ON message (lane, visible_at, id, token);
CREATE TABLE message_body (id INTEGER PRIMARY KEY, body BLOB NOT NULL);

CREATE TABLE lane (name TEXT PRIMARY KEY, used_at REAL NOT NULL, body BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE shared (key TEXT PRIMARY KEY, version INTEGER NOT NULL, value BLOB NOT NULL) WITHOUT ROWID;

CREATE TABLE worker (
    worker     TEXT PRIMARY KEY,
    started_at REAL NOT NULL,
    beat_at    REAL NOT NULL,
    body       BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX worker_by_beat ON worker (beat_at);

CREATE TABLE dead (id INTEGER PRIMARY KEY, body BLOB NOT NULL, reason TEXT NOT NULL, worker TEXT NOT NULL, at REAL NOT NULL);

-- For people with a sqlite3 shell; mtask itself doesn't use it.
CREATE VIEW results AS
    SELECT bag.name AS bag, result.key & {(1 << INDEX_BITS) - 1} AS "index",
           CASE result.state WHEN 0 THEN 'done' WHEN 1 THEN 'failed' ELSE 'expired' END AS state,
           '{{' || CAST(result.body AS TEXT) AS json
    FROM result JOIN bag ON bag.id = result.key >> {INDEX_BITS};
"""


def check(connection: sqlite3.Connection, path: str) -> bool:
    """Is the schema there? False when the file is empty. To be called within a transaction, so that
    all of it is read at one moment, while others may be creating the schema.

    Raises UnusableError when it is somebody else's database, SchemaError when a newer mtask made it.
    Changes nothing, so that a wrong path does no harm.
    """
    application_id = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if application_id == APPLICATION_ID:
        if version > VERSION:
            raise SchemaError(
                f"{path} was made by a newer mtask (schema {version}, this one knows up to {VERSION}); upgrade mtask"
            )
        if version < VERSION:
            raise SchemaError(
                f"{path} was made by an older mtask (schema {version}, this one writes {VERSION}); finish its bags "
                "with that version, or name another file"
            )
        return True
    tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    if application_id or version or tables:
        raise UnusableError(
            f"{path} is the database of another application; name a file of its own for mtask"
        )
    return False


def create(connection: sqlite3.Connection) -> None:
    """Create everything; to be called within a write transaction, after `check` said False in it."""
    statement = ""
    for line in _TABLES.splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            connection.execute(statement)  # executescript would commit first
            statement = ""
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {VERSION}")
