"""What is stored in the database, its versions, and how a schema is told from somebody else's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mtask.errors import SchemaError, UnusableError
from mtask_postgres.address import Address

if TYPE_CHECKING:
    from mtask_postgres.database import Connection

__all__ = ["INDEX_BITS", "MIGRATIONS", "OLDEST_SERVER", "TABLES", "make", "require", "version_of"]

OLDEST_SERVER = 13
INDEX_BITS = 40
"""The key of a block and of a result is `bag id << 40 | number`: one index, one comparison, and rows of a bag side by side."""

TABLES = ("attempt", "bag", "block", "dead", "document", "lane", "message", "result", "tally", "worker")
"""Which whoever submits and works must be allowed to read and write."""

_FIRST = f"""
CREATE TABLE {{s}}.bag (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name       text NOT NULL UNIQUE,
    created_at float8 NOT NULL,
    state      text NOT NULL,
    generation bigint NOT NULL,
    digest     text NOT NULL,
    total      bigint NOT NULL,
    sent       bigint NOT NULL,
    body       bytea NOT NULL                 -- JSON of the Bag as it was created
) WITH (fillfactor = 50);

-- How many results of each state a bag has: the sum of its rows. Each process adds to one of them, in the transaction
-- that changes results, so that few wait for each other.
CREATE TABLE {{s}}.tally (
    bag     bigint NOT NULL,
    shard   integer NOT NULL,
    done    bigint NOT NULL,
    failed  bigint NOT NULL,
    expired bigint NOT NULL,
    PRIMARY KEY (bag, shard)
) WITH (fillfactor = 20, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

CREATE TABLE {{s}}.block (
    key    bigint PRIMARY KEY,                -- bag id << {INDEX_BITS} | number
    first  bigint NOT NULL,
    count  bigint NOT NULL,
    next   bigint,
    lane   text NOT NULL,
    rows   bytea NOT NULL
);

CREATE TABLE {{s}}.result (
    key    bigint PRIMARY KEY,                -- bag id << {INDEX_BITS} | index
    state  smallint NOT NULL,                 -- 0 done, 1 failed, 2 expired
    before smallint,                          -- the state of the row that this one replaced
    body   bytea NOT NULL                     -- JSON of the Result without its first field, the bag
);
CREATE INDEX result_not_done ON {{s}}.result (key, state) WHERE state > 0;

CREATE TABLE {{s}}.attempt (
    id      bigint GENERATED ALWAYS AS IDENTITY,
    key     bigint NOT NULL,
    attempt bigint NOT NULL,
    body    bytea NOT NULL,
    PRIMARY KEY (key, attempt, id)
);

-- Rows come and go: they are cleaned up soon, and without a pause. A body that is out of line stays where it is when its
-- row is leased, and isn't worth compressing for the while.
CREATE TABLE {{s}}.message (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    visible_at float8 NOT NULL,               -- by the server's clock, seconds since the epoch
    lease      bigint,                        -- NULL: nobody received it, or its holder gave it back
    deliveries integer NOT NULL DEFAULT 0,
    lane       text NOT NULL,
    body       bytea NOT NULL
) WITH (
    fillfactor = 70,
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 5000,
    toast.autovacuum_vacuum_scale_factor = 0, toast.autovacuum_vacuum_threshold = 5000,
    toast.autovacuum_vacuum_cost_delay = 0
);
ALTER TABLE {{s}}.message ALTER COLUMN body SET STORAGE EXTERNAL;
CREATE INDEX message_in_order ON {{s}}.message (lane, visible_at, id) INCLUDE (lease);

CREATE TABLE {{s}}.lane (name text PRIMARY KEY, used_at float8 NOT NULL, body bytea NOT NULL);
CREATE TABLE {{s}}.document (key text PRIMARY KEY, version bigint NOT NULL, value bytea NOT NULL);

CREATE TABLE {{s}}.worker (
    worker     text PRIMARY KEY,
    started_at float8 NOT NULL,
    beat_at    float8 NOT NULL,
    body       bytea NOT NULL
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);
CREATE INDEX worker_by_beat ON {{s}}.worker (beat_at);

CREATE TABLE {{s}}.dead (
    id    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    about bytea NOT NULL,                     -- JSON of the DeadMessage without its body: a text column takes no \\u0000
    body  bytea NOT NULL
);

-- For people with psql; mtask itself doesn't use it.
CREATE VIEW {{s}}.results AS
    SELECT bag.name AS bag, result.key & {(1 << INDEX_BITS) - 1} AS index,
           CASE result.state WHEN 0 THEN 'done' WHEN 1 THEN 'failed' ELSE 'expired' END AS state,
           convert_from('\\x7b'::bytea || result.body, 'UTF8')::json AS json
    FROM {{s}}.result JOIN {{s}}.bag ON bag.id = result.key >> {INDEX_BITS};
"""

MIGRATIONS: tuple[str, ...] = (_FIRST,)
"""What leads from each version to the next, beginning with nothing; each is run once, in one transaction with its number."""

_LOCK = 0x6D7461736B
""""mtask": of the advisory lock that is held while a schema is made or changed."""


def make(
    connection: Connection, address: Address, migrations: Sequence[str] = MIGRATIONS
) -> tuple[int | None, int]:
    """Bring the schema to the newest version, from nothing or an older one; returns both versions (None: nothing).

    Many may do so at once. Raises SchemaError for one of a newer version, UnusableError for somebody else's.
    """
    _require_server(connection, address)
    with connection.transaction():
        connection.execute("SET LOCAL lock_timeout = 0")  # others may take long to make it, or to end
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        found = version_of(connection, address)
        if found is not None and found > len(migrations):
            raise _newer(address, found, len(migrations))
        if found is None:
            # IF NOT EXISTS would want the right to make one, of a user for whom somebody else has made it.
            there = "SELECT FROM pg_namespace WHERE nspname = %s"
            if connection.execute(there, (address.schema,)).fetchone() is None:
                connection.execute(f'CREATE SCHEMA "{address.schema}"'.encode())
            connection.execute(f'CREATE TABLE "{address.schema}".mtask_version (version integer)'.encode())
            connection.execute(f'INSERT INTO "{address.schema}".mtask_version VALUES (0)'.encode())
        for step in migrations[found or 0 :]:
            # Without parameters, several statements may come at once.
            connection.execute(step.replace("{s}", f'"{address.schema}"').encode())
        if found != len(migrations):
            connection.execute(
                f'UPDATE "{address.schema}".mtask_version SET version = %s'.encode(), (len(migrations),)
            )
    return found, len(migrations)


def require(connection: Connection, address: Address) -> None:
    """Raises SchemaError or UnusableError unless all is there, as this mtask knows it."""
    _require_server(connection, address)
    found = version_of(connection, address)
    if found is None:
        raise UnusableError(
            f"{address.shown}: there is no schema {address.schema!r} of mtask's in the database "
            f"{connection.info.dbname!r}; `mtask init` makes it"
        )
    if found > len(MIGRATIONS):
        raise _newer(address, found, len(MIGRATIONS))
    if found < len(MIGRATIONS):
        raise SchemaError(
            f"{address.shown} was made by an older mtask (schema {found}, this one needs {len(MIGRATIONS)}): stop all "
            "workers, then `mtask init` brings it up to date"
        )


def version_of(connection: Connection, address: Address) -> int | None:
    """None: there is no such schema, or an empty one. Raises UnusableError for somebody else's, or one that this user
    may not look into."""
    row = connection.execute(
        "SELECT has_schema_privilege(n.oid, 'USAGE'), c.relname = 'mtask_version' FROM pg_namespace n"
        " LEFT JOIN pg_class c ON c.relnamespace = n.oid WHERE n.nspname = %s"
        " ORDER BY c.relname = 'mtask_version' DESC NULLS LAST LIMIT 1",
        (address.schema,),
    ).fetchone()
    if row is None:
        return None
    usable, is_ours = row
    if is_ours is None:
        return None
    if not is_ours:
        raise UnusableError(
            f"{address.shown}: the schema {address.schema!r} holds somebody else's tables; name another: ?schema=NAME"
        )
    if not usable:
        raise UnusableError(
            f"{address.shown}: user {connection.info.user!r} may not use the schema {address.schema!r}; its owner "
            f"grants it: GRANT USAGE ON SCHEMA {address.schema} TO {connection.info.user}"
        )
    found = connection.execute(f'SELECT version FROM "{address.schema}".mtask_version'.encode()).fetchone()
    return int(found[0]) if found else None


def _require_server(connection: Connection, address: Address) -> None:
    info = connection.info
    if info.server_version < OLDEST_SERVER * 10000:
        raise UnusableError(
            f"{address.shown}: the server is PostgreSQL {info.server_version // 10000}; mtask needs {OLDEST_SERVER} or newer"
        )
    if (encoding := info.parameter_status("server_encoding")) != "UTF8":
        raise UnusableError(
            f"{address.shown}: the database {info.dbname!r} has the encoding {encoding}, which can't hold every name; "
            f"make another: createdb --encoding UTF8 --template template0 NAME"
        )


def _newer(address: Address, found: int, known: int) -> SchemaError:
    return SchemaError(
        f"{address.shown} was made by a newer mtask (schema {found}, this one knows up to {known}); upgrade mtask"
    )
