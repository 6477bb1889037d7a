"""From what psycopg raises to mtask's errors, with what to do about it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from mtask.errors import BackendError, StorageFullError, UnavailableError, UnusableError
from mtask_postgres.address import Address

__all__ = ["connect_error", "translated"]

_NO_STATEMENT, _PROTOCOL = "26000", "08P01"
# Five characters: a code of the manual's appendix "PostgreSQL Error Codes"; two: the first ones of a class.
_BY_CODE: dict[str, tuple[type[BackendError], str]] = {
    "08": (UnavailableError, "the connection was lost"),
    "25006": (
        UnavailableError,
        "this server takes no writes: name the primary, or add target_session_attrs=read-write",
    ),
    "25P02": (UnavailableError, "the transaction was given up because of an earlier error"),
    "25P03": (UnavailableError, "the server ended the transaction, which took too long for it"),
    _NO_STATEMENT: (
        UnusableError,
        "a pooler changes the connection under prepared statements: add prepare=no to the URL",
    ),
    "28": (UnusableError, "check the user, and the password in ~/.pgpass or PGPASSWORD"),
    "3D000": (UnusableError, "`mtask init` makes the database, or `createdb`"),
    "3F000": (UnusableError, "`mtask init` makes what is missing"),
    "40": (UnavailableError, "another transaction was in the way"),
    "42501": (UnusableError, "this user may not; its owner grants it, see docs/backends/postgresql.md"),
    "42P05": (
        UnusableError,
        "a pooler changes the connection under prepared statements: add prepare=no to the URL",
    ),
    "42P01": (UnusableError, "`mtask init` makes what is missing"),
    "53100": (StorageFullError, "the server's disk is full; free some space, and work goes on"),
    "53300": (UnavailableError, "too many connections: raise max_connections, or run fewer workers"),
    "53": (UnavailableError, "the server is short of something"),
    "55P03": (UnavailableError, "somebody else keeps it locked"),
    "57": (UnavailableError, "the server ended it"),
    "58030": (UnavailableError, "the server's disk failed"),
}

# An error at connecting has no code, only a text, which a server may have in another language.
_FINAL = [
    (
        r"password authentication failed|no password supplied|role \".*\" does not exist|authentication failed",
        "check the user, and the password in ~/.pgpass, PGPASSWORD or PGSERVICE",
    ),
    (r"database \".*\" does not exist", "`mtask init` makes it, or `createdb`; or the URL names another"),
    (
        r"no pg_hba\.conf entry|pg_hba\.conf rejects",
        "the server lets nobody in like this; it may want TLS, or another host",
    ),
    (r"server does not support SSL", "sslmode=require and more need a server with TLS"),
    (r"certificate|SSL error", "TLS did not come about: check sslmode, sslrootcert and the name of the host"),
    (r"definition of service .* not found|service file", "check PGSERVICE and ~/.pg_service.conf"),
    (r"invalid .*value|is not supported|invalid port", "correct the URL"),
    (r"permission denied for database", "its owner grants it: GRANT CONNECT ON DATABASE …"),
]


@contextmanager
def translated(address: Address) -> Iterator[None]:
    """What is raised within, as one of ours."""
    try:
        yield
    except psycopg.Error as error:
        raise _of(error, address) from error


def connect_error(error: psycopg.Error, address: Address, *, first: bool) -> BackendError:
    """Of a connection that wasn't made. `first`: none was before, so that what is wrong may be wrong for good."""
    text = _text(error)
    if first:
        for pattern, todo in _FINAL:
            if re.search(pattern, text):
                return UnusableError(f"{address.shown}: {todo} ({text})")
    return UnavailableError(f"{address.shown}: no connection ({text})")


def _of(error: psycopg.Error, address: Address) -> BackendError:
    code = error.sqlstate or ""
    if code == _PROTOCOL and "_pg3_" in _text(error):  # psycopg's names of prepared statements
        code = _NO_STATEMENT
    for known in (code, code[:2]):
        if known in _BY_CODE:
            kind, hint = _BY_CODE[known]
            return kind(f"{address.shown}: {hint} ({_text(error)})")
    if not code and isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError)):
        return UnavailableError(f"{address.shown}: the connection was lost ({_text(error)})")
    return BackendError(f"{address.shown}: {_text(error)}")


def _text(error: psycopg.Error) -> str:
    return " ".join(str(error).split()) or type(error).__name__
