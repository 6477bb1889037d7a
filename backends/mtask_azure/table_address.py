"""URLs of tables at Azure, `azuretable://ACCOUNT/TABLE?container=NAME`, and how an account is reached.

Rules of names: "Understanding the Table service data model" and "Naming and referencing containers, blobs, and
metadata", https://learn.microsoft.com/rest/api/storageservices/.
"""

from __future__ import annotations

import difflib
import os
import re
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from mtask.errors import UsageError

__all__ = ["CONNECTION", "TableAddress", "address_of", "connection_settings"]

CONNECTION = "AZURE_STORAGE_CONNECTION_STRING"
"""The variable that holds a connection string, in place of a role or a login."""
EXAMPLE = "it should look like azuretable://myaccount/reads"
RESERVED = {"tables"}


class TableAddress(NamedTuple):
    """Where a table is."""

    account: str
    name: str
    container: str
    """Where what is too big for an entity goes."""

    @property
    def url(self) -> str:
        """Without the options; for people."""
        return f"azuretable://{self.account}/{self.name}"

    @property
    def place(self) -> str:
        """The container; for people."""
        return f"the container {self.container!r} of the account {self.account!r}"


def address_of(url: str) -> TableAddress:
    """Raises UsageError for a URL that can't be used."""
    parts = urlsplit(url)
    account, name = parts.netloc, unquote(parts.path.removeprefix("/"))
    if "@" in account or re.search(r"(?i)[?&](sig|accountkey|sharedaccess\w*)=", url):
        raise UsageError(
            "azuretable://…: credentials don't belong into a URL, where everybody sees them; use a role, `az login`, "
            f"or {CONNECTION} in the environment"
        )
    if parts.scheme != "azuretable" or parts.fragment or not re.fullmatch(r"[a-z0-9]{3,24}", account):
        raise UsageError(
            f"{url!r} is not the URL of a table: the storage account has 3 to 24 small letters and digits; {EXAMPLE}"
        )
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9]{2,62}", name) or name.lower() in RESERVED:
        raise UsageError(
            f"{url!r}: {name!r} can't be the name of a table: Azure takes 3 to 63 letters and digits, the first one a "
            f"letter; {EXAMPLE}"
        )
    given = dict(parse_qsl(parts.query, keep_blank_values=True))
    for option in given:
        if option != "container":
            near = difflib.get_close_matches(option, ["container"], 1)
            hint = "did you mean 'container'?" if near else "there is 'container'"
            raise UsageError(f"{url!r}: unknown option {option!r}; {hint}")
    container = given.get("container", name.lower())
    if not re.fullmatch(r"(?!.*--)[a-z0-9][a-z0-9-]{1,61}[a-z0-9]", container):
        raise UsageError(
            f"{url!r}: {container!r} can't be the name of a container: it has 3 to 63 small letters, digits and "
            "single '-'"
        )
    return TableAddress(account, name, container)


def connection_settings(address: TableAddress) -> str | None:
    """The connection string of the environment, which must be this account's; None: there is none.

    Raises UsageError. No text of an error has the string or a part of it.
    """
    text = os.environ.get(CONNECTION, "").strip()
    if not text:
        return None
    settings = {
        name.strip().lower(): value.strip()
        for name, _, value in (part.partition("=") for part in text.split(";") if part.strip())
    }
    account = settings.get("accountname") or _account_of(settings.get("tableendpoint", ""))
    secret = settings.get("accountkey") or settings.get("sharedaccesssignature")
    if not account or not secret:
        raise UsageError(
            f"{CONNECTION} is no connection string of a storage account: it needs an AccountName with an AccountKey, or a "
            "TableEndpoint with a SharedAccessSignature; `az storage account show-connection-string` prints one"
        )
    if account != address.account:
        raise UsageError(
            f"{address.url}: {CONNECTION} is that of another account, {account!r}: change one of the two"
        )
    return text


def _account_of(endpoint: str) -> str:
    """The first label of the host; for an emulator on an IP address, the first part of the path."""
    parts = urlsplit(endpoint)
    host = parts.hostname or ""
    if re.fullmatch(r"[\d.]+|localhost", host):
        return parts.path.strip("/").partition("/")[0]
    return host.partition(".")[0]
