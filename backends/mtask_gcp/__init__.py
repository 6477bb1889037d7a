"""A queue on Google Pub/Sub, a table on Firestore; what is too big for it lies in Cloud Storage.

    pubsub://my-project/reads          a topic with its subscription, both of this name
    firestore://my-project/reads       a table; ?database=NAME, ?bucket=NAME

`mtask init` makes them. Credentials are application-default credentials, never in a URL; PUBSUB_EMULATOR_HOST,
FIRESTORE_EMULATOR_HOST and STORAGE_EMULATOR_HOST name emulators.
"""

from __future__ import annotations

from mtask_gcp.doctor import diagnose
from mtask_gcp.prices import PRICES, queue_units, table_units
from mtask_gcp.queue import PubSubQueue
from mtask_gcp.setup_queue import make_queue
from mtask_gcp.setup_table import make_table
from mtask_gcp.table import FirestoreTable

__all__ = [
    "PRICES",
    "WORKER_ENVIRONMENT",
    "FirestoreTable",
    "PubSubQueue",
    "diagnose",
    "make_queue",
    "make_table",
    "open_queue",
    "open_table",
    "queue_units",
    "table_beside",
    "table_units",
]

WORKER_ENVIRONMENT = (
    "GOOGLE_APPLICATION_CREDENTIALS",
    "GOOGLE_CLOUD_PROJECT",
    "PUBSUB_EMULATOR_HOST",
    "FIRESTORE_EMULATOR_HOST",
    "STORAGE_EMULATOR_HOST",
)


def open_queue(url: str) -> PubSubQueue:
    """Raises UsageError for a URL that can't be used, UnusableError where there is no such queue or no right to it."""
    return PubSubQueue.open(url)


def open_table(url: str) -> FirestoreTable:
    """Raises UsageError for a URL that can't be used, UnusableError where there is no such table or no right to it."""
    return FirestoreTable.open(url)


def table_beside(url: str) -> str:
    """The Firestore table of the same project and name."""
    return url.replace("pubsub://", "firestore://", 1).partition("?")[0]
