"""A table on Google's Firestore; what is too big for it lies in Cloud Storage.

    firestore://my-project/reads    a table; ?database=NAME, ?bucket=NAME

`mtask init` makes it. Credentials are the application-default ones, never in a URL; `FIRESTORE_EMULATOR_HOST` and
`STORAGE_EMULATOR_HOST` name emulators.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from mtask.doctor import Finding
from mtask_gcp.doctor_table import table_findings
from mtask_gcp.prices_table import TABLE_PRICES as PRICES
from mtask_gcp.prices_table import table_units
from mtask_gcp.setup_table import make_table
from mtask_gcp.table import FirestoreTable

__all__ = [
    "PRICES",
    "WORKER_ENVIRONMENT",
    "FirestoreTable",
    "diagnose",
    "make_table",
    "open_table",
    "table_beside",
    "table_units",
]

WORKER_ENVIRONMENT = (
    "GOOGLE_APPLICATION_CREDENTIALS",
    "GOOGLE_CLOUD_PROJECT",
    "FIRESTORE_EMULATOR_HOST",
    "STORAGE_EMULATOR_HOST",
)


def diagnose(urls: Sequence[str], roles: Collection[str]) -> Iterator[Finding]:
    """As mtask.registry says."""
    for url in urls:
        if url.startswith("firestore:"):
            yield from table_findings(url, roles)


def open_table(url: str) -> FirestoreTable:
    """Raises UsageError for a URL that can't be used, UnusableError where there is no such table or no right to it."""
    return FirestoreTable.open(url)


def table_beside(url: str) -> str:
    """The Firestore table of the same project and name."""
    return url.replace("pubsub://", "firestore://", 1).partition("?")[0]
