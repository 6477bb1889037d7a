"""The connection string in the environment: a key or a shared access signature, and perhaps endpoints of its own."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from datetime import UTC, datetime
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

from mtask.errors import UsageError
from mtask_azure.address import Address

__all__ = ["CONNECTION", "Connection", "connection_to"]

CONNECTION = "AZURE_STORAGE_CONNECTION_STRING"
"""The variable that holds a connection string, in place of a role or a login."""
_EMULATOR = "UseDevelopmentStorage=true"
"""Azurite at its usual ports, with the account and the key that it always has
(https://learn.microsoft.com/azure/storage/common/storage-connect-azurite)."""
_EMULATED = "devstoreaccount1"
_ENDPOINTS = ("queueendpoint", "tableendpoint", "blobendpoint")


class Connection(NamedTuple):
    """No text of an error has it or a part of it."""

    text: str
    by_key: bool
    """By the account's key, or by a signature?"""
    ends_at: datetime | None
    """When the signature ends (UTC); None: there is none, or it doesn't say."""

    @property
    def ended(self) -> bool:
        return self.ends_at is not None and self.ends_at <= datetime.now(UTC)


def connection_to(address: Address) -> Connection | None:
    """None: there is none. Raises UsageError for one that makes no sense, or is another account's."""
    text = os.environ.get(CONNECTION, "").strip()
    if not text:
        return None
    settings = {
        name.strip().lower(): value.strip()
        for name, _, value in (part.partition("=") for part in text.split(";") if part.strip())
    }
    if settings.get("usedevelopmentstorage", "").lower() == "true":
        account, found = _EMULATED, Connection(_EMULATOR, by_key=True, ends_at=None)
    else:
        account = settings.get("accountname") or _account_of(settings)
        signature = settings.get("sharedaccesssignature", "")
        by_key = "accountkey" in settings
        if not account or not (by_key or signature):
            raise UsageError(
                f"{CONNECTION} can't be used: it needs an AccountName with an AccountKey, or endpoints with a "
                "SharedAccessSignature; `az storage account show-connection-string` prints one"
            )
        found = Connection(text, by_key, None if by_key else _end_of(signature))
    if account != address.account:
        raise UsageError(
            f"{address.url}: {CONNECTION} is of the storage account {account!r}, not of {address.account!r}; set that "
            "account's, or unset it and use `az login`"
        )
    return found


def _account_of(settings: dict[str, str]) -> str:
    """By an endpoint: the first label of the host; for an emulator on an IP address, the first part of the path."""
    endpoint = next((settings[name] for name in _ENDPOINTS if name in settings), "")
    parts = urlsplit(endpoint)
    host = parts.hostname or ""
    if re.fullmatch(r"[\d.]+|localhost", host):
        return parts.path.strip("/").partition("/")[0]
    return host.partition(".")[0]


def _end_of(signature: str) -> datetime | None:
    for text in parse_qs(signature.lstrip("?")).get("se", []):
        with suppress(ValueError):
            ends_at = datetime.fromisoformat(text.replace("Z", "+00:00"))
            return ends_at if ends_at.tzinfo else ends_at.replace(tzinfo=UTC)
    return None
