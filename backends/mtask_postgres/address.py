"""URLs of PostgreSQL: libpq's own, with two options more.

    postgresql://user@host:5432/database?sslmode=verify-full&schema=reads&prepare=no

The forms and options are those of libpq (its manual, "Connection Strings"): several hosts, `service=`, sockets, TLS.
What a URL leaves out comes from PGHOST, PGUSER, PGPASSWORD, PGSERVICE and so on, and from ~/.pgpass.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote, urlencode

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from mtask.errors import UsageError
from mtask.registry import shown

__all__ = ["DEFAULT_SCHEMA", "Address", "address_of"]

DEFAULT_SCHEMA = "mtask"
_SECRETS = ("password", "sslpassword")
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,47}")
_EXAMPLE = "it should look like postgresql://user@host/database"
_DEFAULTS = {
    "fallback_application_name": "mtask",
    "client_encoding": "UTF8",  # whatever PGCLIENTENCODING is
    # A server that has vanished without a word is noticed after half a minute.
    "connect_timeout": "10",
    "keepalives_idle": "15",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
}


class Address(NamedTuple):
    """Where a queue or a table is."""

    conninfo: str
    """For libpq. It may hold a password."""
    schema: str
    """Of the database: it holds all that is mtask's."""
    prepare: bool
    """May statements be prepared? Not through some poolers."""
    shown: str
    """For people, without a password."""

    def __repr__(self) -> str:
        return f"Address({self.shown!r})"

    @property
    def database(self) -> str:
        """The name in the URL; empty: what libpq takes."""
        return str(conninfo_to_dict(self.conninfo).get("dbname") or "")

    def of_database(self, name: str) -> Address:
        """The same server, another database."""
        return self._replace(conninfo=make_conninfo(self.conninfo, dbname=name))


def address_of(url: str) -> Address:
    """Raises UsageError, which never shows a password."""
    base, _, query = url.partition("?")
    place = shown(base)  # without options: who mistypes one may have meant a secret
    if not url.startswith("postgresql://"):
        raise UsageError(f"{place!r} is not the URL of a PostgreSQL database; {_EXAMPLE}")
    options = dict(parse_qsl(query, keep_blank_values=True))
    for name in _SECRETS:
        if name in options:
            raise UsageError(
                f"{place!r}: {name}= doesn't belong into a URL; put it into ~/.pgpass, or a service file (PGSERVICE)"
            )
    schema, prepare = options.pop("schema", DEFAULT_SCHEMA), options.pop("prepare", "yes")
    if not _NAME.fullmatch(schema) or schema.startswith("pg_"):
        raise UsageError(
            f"{place!r}: the schema {schema!r} must be a name of at most 48 small letters, digits and '_'"
        )
    if prepare not in ("yes", "no"):
        raise UsageError(f"{place!r}: prepare is yes or no, not {prepare!r}")
    given = _parse(base, options, place)
    conninfo = make_conninfo("", **{key: str(value) for key, value in (_DEFAULTS | given).items()})
    return Address(conninfo, schema, prepare == "yes", shown(url))


def _parse(base: str, options: dict[str, str], place: str) -> dict[str, Any]:
    url = base + ("?" + urlencode(options, quote_via=quote) if options else "")
    try:
        return conninfo_to_dict(url)
    except psycopg.ProgrammingError as error:
        # libpq quotes the whole URL, with its password, behind a colon.
        unknown = re.search(r'invalid URI query parameter: "(\w+)"', str(error))
        if unknown:
            reason = f"unknown option {unknown[1]!r}; there are libpq's, and schema=NAME and prepare=no"
        else:
            reason = f"libpq can't read it ({str(error).partition(': ')[0].strip()}); {_EXAMPLE}"
        raise UsageError(f"{place!r}: {reason}") from None
