"""A table in Azure's Table storage; what is too big for its entities lies in blobs.

    azuretable://ACCOUNT/TABLE         a table; ?container=NAME: where what is too big for an entity goes

`mtask init` makes them. Credentials come from roles, `az login` or AZURE_STORAGE_CONNECTION_STRING, never from a URL.
"""

from __future__ import annotations

from mtask.meter import Prices
from mtask_azure.doctor_table import diagnose_tables as diagnose
from mtask_azure.prices_table import TABLE_DOLLARS, table_units
from mtask_azure.setup_table import make_table
from mtask_azure.table import AzureTable

__all__ = ["PRICES", "AzureTable", "diagnose", "make_table", "open_table", "table_units"]

PRICES = Prices(
    dollars=TABLE_DOLLARS,
    region="East US",
    at="2026-11",
    source="https://azure.microsoft.com/pricing/details/storage/",
)


def open_table(url: str) -> AzureTable:
    """Raises UsageError for a URL that can't be used, UnusableError where there is no such table or no right to it."""
    return AzureTable.open(url)
