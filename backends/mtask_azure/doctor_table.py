"""`mtask doctor` of a table at Azure: who this is, whether table and container are there, and what is not allowed.

Each right is tried in a way that changes nothing: on an entity that isn't there, with a condition that can't hold. To
learn whether a blob can be written, one of a few bytes is written and removed.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from email.utils import parsedate_to_datetime
from typing import Any

from azure.core import MatchConditions
from azure.core.exceptions import HttpResponseError

from mtask.doctor import Finding, clock_finding
from mtask.errors import MtaskError, UnavailableError
from mtask_azure.table_address import TableAddress, address_of
from mtask_azure.table_client import BEING_DELETED, BLOB_ROLE, DENIED, TABLE_ROLE, Account, code_of

__all__ = ["diagnose_tables"]

_NOTHING = ("doctor", "nothing")
"""No entity has these keys."""
_NEVER = "W/\"datetime'2000-01-01T00%3A00%3A00.0000000Z'\""
"""An ETag that no entity has: there was no Azure then."""
_MISSING = ("ContainerNotFound", "TableNotFound")


def diagnose_tables(urls: Sequence[str], roles: Collection[str]) -> Iterator[Finding]:  # noqa: ARG001
    """Of those of the URLs that are tables; as mtask.registry says of `diagnose`. All roles need the same rights."""
    for url in urls:
        if url.startswith("azuretable:"):
            yield from _table(address_of(url))


def _table(address: TableAddress) -> Iterator[Finding]:
    try:
        account = Account(address)
    except MtaskError as error:
        yield Finding.problem("credentials", error, stops=True)
        return
    try:
        stops = False
        for finding in _rights(account, address):
            if finding.what == "table" and finding.ok:
                yield Finding("credentials", True, account.how)
            stops = stops or finding.stops
            yield finding
        if not stops:
            yield from _container(account, address)
    finally:
        account.close()


class _Trial:
    """Tries what needs a role on a place."""

    def __init__(self, account: Account, role: str, place: str) -> None:
        self._account, self._role, self._place = account, role, place
        self.code = ""
        """Of the last trial; empty: it went well."""

    def __call__(self, what: str, action: str, ask: Callable[[], Any]) -> Iterator[Finding]:
        self.code = ""
        try:
            with self._account.errors(action, role=self._role, on=self._place):
                try:
                    ask()
                except HttpResponseError as error:
                    self.code = code_of(error) or str(error.status_code)
                    if _matters(error, self.code):
                        raise
        except UnavailableError as error:
            yield Finding(what, None, f"can't be told: {error}")
        except MtaskError as error:
            missing = self.code in _MISSING
            text = f"there is no {self._place}" if missing else str(error)
            # Without the right to read it can't be opened.
            yield Finding(
                what, False, text, "`mtask init` makes it" if missing else "", stops=action == "read"
            )
        else:
            yield Finding(what, True, f"may {action} {self._place}")


def _matters(error: HttpResponseError, code: str) -> bool:
    """Does it say more than that the condition doesn't hold, or that nothing is there?"""
    status = error.status_code or 0
    if code in (*_MISSING, *DENIED, *BEING_DELETED) or status in (401, 403, 429) or status >= 500:
        return True
    return status not in (404, 409, 412)


def _rights(account: Account, address: TableAddress) -> Iterator[Finding]:
    dates: list[tuple[str, float, float]] = []
    asked_s = time.time()
    table = account.table(
        lambda response: dates.append(
            (response.http_response.headers.get("Date", ""), asked_s, time.time() - asked_s)
        )
    )
    tried = _Trial(account, TABLE_ROLE, f"table {address.name!r} in the account {address.account!r}")
    partition, row = _NOTHING
    entity = {"PartitionKey": partition, "RowKey": row}
    condition: dict[str, Any] = {"etag": _NEVER, "match_condition": MatchConditions.IfNotModified}
    trials: list[tuple[str, str, Callable[[], Any]]] = [
        ("table", "read", lambda: table.get_entity(partition, row)),
        ("table: write", "write to", lambda: table.update_entity(entity, **condition)),
        ("table: delete", "delete from", lambda: table.delete_entity(partition, row, **condition)),
    ]
    for what, action, ask in trials:
        for finding in tried(what, action, ask):
            yield finding
            if finding.stops or finding.ok is None:
                return
        if what == "table":
            yield from _clock(dates)


def _clock(dates: list[tuple[str, float, float]]) -> Iterator[Finding]:
    if not dates or not dates[0][0]:
        return
    date, asked_s, took_s = dates[0]
    # The header has whole seconds, cut off; the request may have been answered at any moment of its way.
    ahead_s = asked_s + took_s / 2 - (parsedate_to_datetime(date).timestamp() + 0.5)
    sure_s = max(0.0, abs(ahead_s) - 0.5 - took_s / 2)
    yield clock_finding(sure_s if ahead_s > 0 else -sure_s, "Azure")


def _container(account: Account, address: TableAddress) -> Iterator[Finding]:
    tried = _Trial(account, BLOB_ROLE, address.place)
    blob = account.container().get_blob_client(f"doctor/{secrets.token_hex(8)}")
    trials: list[tuple[str, str, Callable[[], Any]]] = [
        ("container", "write to", lambda: blob.upload_blob(b"mtask doctor", overwrite=True)),
        ("container: read", "read", lambda: blob.download_blob().readall()),
        ("container: delete", "delete from", lambda: blob.delete_blob()),
    ]
    for what, action, ask in trials:
        for finding in tried(what, action, ask):
            # Bags of small tasks need no container: the table can be opened without it.
            yield finding._replace(stops=False)
            if finding.ok is not True:
                return
