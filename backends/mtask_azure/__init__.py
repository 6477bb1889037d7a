"""A queue on Azure Storage Queue, a table in Azure's Table storage; what is too big for its entities lies in blobs.

    azureq://ACCOUNT/QUEUE
    azuretable://ACCOUNT/TABLE         a table; ?container=NAME: where what is too big for an entity goes

`mtask init` makes them. Credentials come from `az login`, a managed identity or AZURE_STORAGE_CONNECTION_STRING, never
from a URL.
"""

from __future__ import annotations

import re

from mtask_azure.doctor import diagnose
from mtask_azure.prices import PRICES, queue_units, table_units
from mtask_azure.queue import AzureQueue
from mtask_azure.serverless import queue_handler
from mtask_azure.setup import make_queue, make_table
from mtask_azure.table import AzureTable

__all__ = [
    "PRICES",
    "WORKER_ENVIRONMENT",
    "AzureQueue",
    "AzureTable",
    "diagnose",
    "make_queue",
    "make_table",
    "open_queue",
    "open_table",
    "queue_handler",
    "queue_units",
    "table_beside",
    "table_units",
]

WORKER_ENVIRONMENT = (
    "AZURE_STORAGE_CONNECTION_STRING",
    "AZURE_CLIENT_ID",
    "AZURE_CLIENT_SECRET",
    "AZURE_CLIENT_CERTIFICATE_PATH",
    "AZURE_TENANT_ID",
)


def open_queue(url: str) -> AzureQueue:
    """Raises UsageError for a URL that can't be used, UnusableError where there is no such queue or no right to it."""
    return AzureQueue.open(url)


def open_table(url: str) -> AzureTable:
    """Raises as `open_queue` does."""
    return AzureTable.open(url)


def table_beside(url: str) -> str:
    """The table of the same account and name; a table's name has letters and digits only, and begins with a letter."""
    account, _, name = url.removeprefix("azureq://").partition("?")[0].partition("/")
    plain = re.sub("[^A-Za-z0-9]", "", name)
    return f"azuretable://{account}/{plain if plain[:1].isalpha() else f'mtask{plain}'}"
