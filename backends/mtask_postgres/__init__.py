"""Queue and table in a PostgreSQL database.

    postgresql://user@host/database                 a URL of libpq, in the schema `mtask`
    postgresql://user@host/database?schema=reads    in another schema, beside others
    postgresql://user@host/database?prepare=no      without prepared statements, for poolers that can't pass them on

`mtask init` makes the schema. Passwords come from ~/.pgpass, PGPASSWORD or a service file (PGSERVICE).
"""

from __future__ import annotations

from mtask_postgres.address import address_of
from mtask_postgres.database import Database
from mtask_postgres.doctor import diagnose
from mtask_postgres.queue import PostgresQueue
from mtask_postgres.setup import make_queue, make_table
from mtask_postgres.table import PostgresTable

__all__ = [
    "WORKER_ENVIRONMENT",
    "Database",
    "PostgresQueue",
    "PostgresTable",
    "diagnose",
    "make_queue",
    "make_table",
    "open_queue",
    "open_table",
]

WORKER_ENVIRONMENT = ("PGPASSWORD", "PGPASSFILE", "PGSERVICE", "PGSERVICEFILE")


def open_queue(url: str) -> PostgresQueue:
    """Raises UsageError for a URL that can't be used, UnusableError for a database that can't or isn't made yet,
    SchemaError for another mtask's, UnavailableError while the server is out of reach."""
    return PostgresQueue(Database.open(address_of(url)))


def open_table(url: str) -> PostgresTable:
    """Raises as `open_queue` does."""
    return PostgresTable(Database.open(address_of(url)))
