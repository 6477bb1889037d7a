"""`mtask doctor` at PostgreSQL: who this is, what is there, what is allowed, and what slows the server down.

Nothing is written. Rights are asked for, not tried.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from typing import Any

from mtask.doctor import Finding, clock_finding
from mtask.errors import MtaskError, UnavailableError
from mtask_postgres import schema
from mtask_postgres.address import Address, address_of
from mtask_postgres.database import Connection, connect
from mtask_postgres.errors import translated
from mtask_postgres.queue import CLOCK

__all__ = ["diagnose"]

_NOTICE_S = 3.0
_LONG_S = 600.0
"""A transaction that has lasted for longer keeps what was deleted from being cleaned up."""
_RIGHTS = ("SELECT", "INSERT", "UPDATE", "DELETE")


def diagnose(urls: Sequence[str], _roles: Collection[str]) -> Iterator[Finding]:
    """As mtask.registry says. Managers and workers need the same rights."""
    for address in dict.fromkeys(map(address_of, urls)):
        try:
            connection = connect(address)
        except MtaskError as error:
            yield Finding.problem("server", error, stops=not isinstance(error, UnavailableError))
            continue
        try:
            with translated(address):
                yield from _server(connection)
                stopped = False
                for finding in _schema(connection, address):
                    stopped = stopped or finding.stops
                    yield finding
                if not stopped:
                    yield from _rights(connection, address)
                    yield from _notices(connection, address)
                    yield from _load(connection, address)
        except MtaskError as error:
            yield Finding.problem("server", error)
        finally:
            connection.close()


def _server(connection: Connection) -> Iterator[Finding]:
    info = connection.info
    version = info.parameter_status("server_version")
    tls = "TLS" if connection.pgconn.ssl_in_use else "without TLS"
    place = f"{info.dbname!r} at {info.host or 'this host'}:{info.port}"
    yield Finding("server", True, f"PostgreSQL {version}, {place}, as user {info.user!r}, {tls}")
    before_s = time.time()
    there_s = float(_value(connection, f"SELECT {CLOCK}"))
    yield clock_finding((before_s + time.time()) / 2 - there_s, "the server")
    if _value(connection, "SHOW fsync") != "on":
        text = "fsync is off: a power cut may damage the database"
        yield Finding("durability", False, text, "fsync = on in postgresql.conf")
    elif _value(connection, "SHOW synchronous_commit") == "off":
        text = "synchronous_commit is off: a crash of the server loses results that were said to be stored"
        yield Finding("durability", False, text, "ALTER ROLE … SET synchronous_commit = on")
    else:
        yield Finding("durability", True, "what was stored is on the server's disk")


def _schema(connection: Connection, address: Address) -> Iterator[Finding]:
    try:
        schema.require(connection, address)
    except MtaskError as error:
        yield Finding.problem("schema", error, stops=True)
        return
    yield Finding("schema", True, f"{address.schema}, version {schema.version_of(connection, address)}")


def _rights(connection: Connection, address: Address) -> Iterator[Finding]:
    missing = []
    for table in schema.TABLES:
        denied = [
            right
            for right in _RIGHTS
            if not _value(
                connection,
                "SELECT has_table_privilege(%s, %s)",
                (f'"{address.schema}".{table}', right),
            )
        ]
        if denied:
            missing.append(f"{', '.join(denied)} on {table}")
    user = connection.info.user
    if missing:
        todo = f"as its owner: GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {address.schema} TO {user}"
        yield Finding("rights", False, f"user {user!r} lacks {'; '.join(missing)}", todo)
    else:
        yield Finding("rights", True, f"user {user!r} may submit and work")


def _notices(connection: Connection, address: Address) -> Iterator[Finding]:
    """Does one who listens hear? A pooler that gives each transaction another connection keeps notices to itself."""
    channel = f"mtask_doctor_{connection.info.backend_pid}"
    connection.execute(f'LISTEN "{channel}"'.encode())
    with closing(connect(address)) as other:
        other.execute(f'NOTIFY "{channel}"'.encode())
    heard = any(True for _ in connection.notifies(timeout=_NOTICE_S, stop_after=1))
    connection.execute(b"UNLISTEN *")
    if heard:
        yield Finding("notices", True, "idle workers are woken at once")
    else:
        yield Finding(
            "notices",
            None,
            "none arrive, so an idle worker looks for messages once a second",
            "connect to the server itself, or to a pooler in session mode, if that is too slow",
        )


def _load(connection: Connection, address: Address) -> Iterator[Finding]:
    used = int(
        _value(connection, "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'")
    )
    most = int(_value(connection, "SHOW max_connections"))
    full = used > 0.8 * most
    todo = "raise max_connections: a worker takes 2 to 5" if full else ""
    yield Finding("connections", not full, f"{used} of {most}", todo)
    longest_s = _value(
        connection,
        "SELECT extract(epoch FROM max(clock_timestamp() - xact_start))::float8 FROM pg_stat_activity"
        " WHERE backend_xmin IS NOT NULL AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
        " AND datname = current_database()",
    )
    if longest_s is not None and float(longest_s) > _LONG_S:
        text = f"one has been open for {float(longest_s):,.0f} s: the queue gets slower until it ends"
        yield Finding("transactions", False, text, "see pg_stat_activity; pg_terminate_backend ends it")
    if _value(connection, "SHOW autovacuum") != "on":
        text = "autovacuum is off: the queue gets slower and slower"
        yield Finding("autovacuum", False, text, "autovacuum = on in postgresql.conf")
    else:
        dead = _value(
            connection,
            "SELECT coalesce(sum(n_dead_tup), 0) FROM pg_stat_user_tables WHERE schemaname = %s AND relname = 'message'",
            (address.schema,),
        )
        yield Finding("autovacuum", True, f"{int(dead):,} messages that were deleted wait to be cleaned up")


def _value(connection: Connection, query: str, arguments: Sequence[Any] = ()) -> Any:
    row = connection.execute(query.encode(), arguments).fetchone()
    return row[0] if row else None
