"""`mtask init`: makes the database, if it may, and the schema in it; brings an older schema up to date."""

from __future__ import annotations

import psycopg
from psycopg import sql

from mtask.errors import UnusableError
from mtask.registry import CHANGED, MADE, THERE
from mtask_postgres import schema
from mtask_postgres.address import Address, address_of
from mtask_postgres.database import Connection, connect
from mtask_postgres.errors import translated

__all__ = ["make_queue", "make_table"]

_MAINTENANCE = "postgres"
"""A database that every server has, to be connected to while one's own isn't there."""


def make_queue(url: str) -> list[tuple[str, str]]:
    """As mtask.registry says; raises UsageError, UnusableError, SchemaError, UnavailableError."""
    address = address_of(url)
    made = []
    try:
        connection = connect(address)
    except UnusableError as error:
        if "database" not in str(error.__cause__) or "does not exist" not in str(error.__cause__):
            raise
        made.append((f"database {_create_database(address)}", MADE))
        connection = connect(address)
    try:
        with translated(address):
            before, now = schema.make(connection, address)
            how = MADE if before is None else THERE if before == now else CHANGED
            made.append((f"schema {address.schema} in the database {connection.info.dbname}", how))
    finally:
        connection.close()
    return made


make_table = make_queue
"""One schema holds both."""


def _create_database(address: Address) -> str:
    with translated(address):
        connection: Connection = connect(address.of_database(_MAINTENANCE))
        try:
            name = address.database or connection.info.user
            statement = sql.SQL("CREATE DATABASE {} ENCODING 'UTF8' TEMPLATE template0")
            connection.execute(statement.format(sql.Identifier(name)))
        except psycopg.errors.DuplicateDatabase:
            pass  # somebody else was quicker
        except psycopg.errors.InsufficientPrivilege as error:
            raise UnusableError(
                f"{address.shown}: there is no database {name!r}, and user {connection.info.user!r} may not make one; "
                f"ask whoever runs the server: createdb --owner {connection.info.user} {name}"
            ) from error
        finally:
            connection.close()
    return name
