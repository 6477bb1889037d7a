"""What `mtask init` makes for a table: the table itself, and the container for what is too big for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from azure.core.exceptions import HttpResponseError, ResourceExistsError

from mtask.registry import MADE, THERE
from mtask_azure.table_address import address_of
from mtask_azure.table_client import BLOB_ROLE, Account, code_of

__all__ = ["WAIT_S", "make_table"]

WAIT_S = 120.0
"""For the end of a deletion, while which the name can't be used; Azure says 40 seconds or more."""
PAUSE_S = 2.0


def make_table(url: str) -> list[tuple[str, str]]:
    """Make what isn't there; what, and "made" or "was there".

    Raises UsageError for a URL that can't be used, UnusableError for what may not be made.
    """
    return list(_make(url))


def _make(url: str) -> Iterator[tuple[str, str]]:
    address = address_of(url)
    account = Account(address)
    try:
        with account.errors("make"):
            tables = account.tables()
            made = _made(lambda: tables.create_table(address.name), "TableBeingDeleted")
            yield f"Azure table {address.name}", made
        with account.errors("make", role=BLOB_ROLE, on=address.place):
            container = account.container()
            # It is private: nobody reads it without credentials.
            made = _made(lambda: container.create_container(), "ContainerBeingDeleted")
            yield f"Azure container {address.container}", made
    finally:
        account.close()


def _made(make: Callable[[], object], being_deleted: str) -> str:
    """While the last one of this name is being deleted, wait."""
    deadline_s = time.monotonic() + WAIT_S
    while True:
        try:
            make()
        except ResourceExistsError as error:
            if code_of(error) != being_deleted:
                return THERE
            waits: HttpResponseError = error
        except HttpResponseError as error:
            if code_of(error) != being_deleted:
                raise
            waits = error
        else:
            return MADE
        if time.monotonic() > deadline_s:
            raise waits
        time.sleep(PAUSE_S)
