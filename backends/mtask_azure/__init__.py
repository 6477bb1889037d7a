"""A queue on Azure Storage Queue.

    azureq://ACCOUNT/QUEUE

`mtask init` makes it. Credentials come from `az login`, a managed identity or AZURE_STORAGE_CONNECTION_STRING, never
from a URL.
"""

from __future__ import annotations

__all__: list[str] = []
