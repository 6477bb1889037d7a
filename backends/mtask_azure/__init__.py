"""A queue on Azure Storage Queue.

    azureq://ACCOUNT/QUEUE

`mtask init` makes it. Credentials come from `az login`, a managed identity or AZURE_STORAGE_CONNECTION_STRING, never
from a URL.
"""

from __future__ import annotations

import re

from mtask.meter import Prices
from mtask_azure.doctor import diagnose
from mtask_azure.prices_queue import DOLLARS, queue_units
from mtask_azure.queue import AzureQueue
from mtask_azure.serverless import queue_handler
from mtask_azure.setup_queue import make_queue

__all__ = [
    "PRICES",
    "WORKER_ENVIRONMENT",
    "AzureQueue",
    "diagnose",
    "make_queue",
    "open_queue",
    "queue_handler",
    "queue_units",
    "table_beside",
]

WORKER_ENVIRONMENT = (
    "AZURE_STORAGE_CONNECTION_STRING",
    "AZURE_CLIENT_ID",
    "AZURE_CLIENT_SECRET",
    "AZURE_CLIENT_CERTIFICATE_PATH",
    "AZURE_TENANT_ID",
)
PRICES = Prices(
    dollars=DOLLARS,
    region="East US",
    at="2026-11",
    source="https://azure.microsoft.com/pricing/details/storage/queues/",
)


def open_queue(url: str) -> AzureQueue:
    """Raises UsageError for a URL that can't be used, UnusableError where there is no such queue or no right to it."""
    return AzureQueue.open(url)


def table_beside(url: str) -> str:
    """The table of the same account and name; a table's name has letters and digits only, and begins with a letter."""
    account, _, name = url.removeprefix("azureq://").partition("?")[0].partition("/")
    plain = re.sub("[^A-Za-z0-9]", "", name)
    return f"azuretable://{account}/{plain if plain[:1].isalpha() else f'mtask{plain}'}"
