"""From the scheme of a URL to the backend that serves it.

A backend is a module with `open_queue(url)` or `open_table(url)`, or both, each taking the URL as
text; `table_beside(url)` says which table goes with a queue, if its URL is another one. Ours are listed here, so that opening one costs no search; anybody else's is found by its entry
point in the group `mtask.backends`, whose name is the scheme.
"""

from __future__ import annotations

import importlib
import re
from types import ModuleType
from typing import cast

from mtask.errors import UsageError
from mtask.queue import Queue
from mtask.table import Table

__all__ = ["BUILTIN", "open_queue", "open_table", "scheme_of", "shown", "table_beside"]

BUILTIN = {
    "amqp": ("mtask_rabbitmq", "rabbitmq"),
    "azureq": ("mtask_azure", "azure"),
    "azuretable": ("mtask_azure", "azure"),
    "condor": ("mtask_condor", "condor"),
    "dynamodb": ("mtask_aws", "aws"),
    "firestore": ("mtask_gcp", "gcp"),
    "postgresql": ("mtask_postgres", "postgres"),
    "pubsub": ("mtask_gcp", "gcp"),
    "sqlite": ("mtask_sqlite", ""),
    "sqs": ("mtask_aws", "aws"),
}
"""Scheme → (module, pip extra), in alphabetical order."""


def open_queue(url: str) -> Queue:
    """Open the queue at `url`.

    Raises UsageError for a URL that can't be used, BackendError when the backend can't be reached.
    """
    return cast(Queue, _factory(url, "open_queue", "queue")(url))


def open_table(url: str) -> Table:
    """Open the table at `url`; raises as `open_queue` does."""
    return cast(Table, _factory(url, "open_table", "table")(url))


def table_beside(url: str) -> str | None:
    """The URL of the table that goes with the queue at `url` when none is named; None: its backend has none."""
    backend = _backend(url)
    if not hasattr(backend, "open_table"):
        return None
    return cast(str, backend.table_beside(url)) if hasattr(backend, "table_beside") else url


def shown(url: str) -> str:
    """The URL without its password, for people and logs."""
    return re.sub(r"(://[^/@:]*):[^/]*@", r"\1:…@", url)


def scheme_of(url: str) -> str:
    """The part of a URL before `:`; raises UsageError when there is none."""
    scheme, colon, _ = url.partition(":")
    if not colon or not scheme:
        raise UsageError(
            f"{url!r} is not the URL of a queue or table; it should look like sqlite:///tasks.db or sqs://us-east-1/tasks"
        )
    return scheme


def _factory(url: str, function: str, what: str):  # type: ignore[no-untyped-def]
    backend = _backend(url)
    factory = getattr(backend, function, None)
    if factory is None:
        raise UsageError(f"{shown(url)!r}: the backend of {scheme_of(url)}:// has no {what}")
    return factory


def _backend(url: str) -> ModuleType:
    scheme = scheme_of(url)
    if scheme in BUILTIN:
        module, extra = BUILTIN[scheme]
        try:
            return importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise UsageError(
                f"the backend of {scheme}:// is not installed (no module {error.name!r}): pip install 'mtask[{extra}]'"
            ) from None
    from importlib.metadata import entry_points

    found = entry_points(group="mtask.backends", name=scheme)
    if not found:
        known = sorted({*BUILTIN, *(entry.name for entry in entry_points(group="mtask.backends"))})
        raise UsageError(f"{shown(url)!r}: unknown scheme {scheme!r}; there are {', '.join(known)}")
    return cast(ModuleType, next(iter(found)).load())
