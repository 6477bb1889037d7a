"""URLs of what lies in a storage account of Azure: `azureq://ACCOUNT/QUEUE`."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from mtask.errors import UsageError

__all__ = ["ACCOUNT", "Address", "parse"]

ACCOUNT = r"[a-z0-9]{3,24}"
"""The name of a storage account (Azure Resource Manager, naming rules of Microsoft.Storage)."""
_SECRETS = {"sig", "accountkey", "key", "sas", "sv", "se", "sp"}
"""What a shared access signature, or a key, would look like in a URL."""


class Address(NamedTuple):
    """Where a queue or a table is."""

    scheme: str
    account: str
    name: str

    @property
    def url(self) -> str:
        """For people."""
        return f"{self.scheme}://{self.account}/{self.name}"


def parse(url: str, scheme: str, name: str, rule: str) -> Address:
    """Raises UsageError for a URL that can't be used. `name`: what a name must match; `rule`: the same in words."""
    example = f"it should look like {scheme}://mystorage/reads"
    parts = urlsplit(url)
    account, found = parts.netloc, unquote(parts.path.removeprefix("/"))
    options = [option.lower() for option, _ in parse_qsl(parts.query, keep_blank_values=True)]
    if "@" in account or _SECRETS & set(options):
        raise UsageError(
            f"{scheme}://…: keys and signatures don't belong into a URL, where everybody sees them; "
            "use `az login`, a managed identity, or AZURE_STORAGE_CONNECTION_STRING"
        )
    if parts.scheme != scheme or parts.fragment or not account:
        raise UsageError(f"{url!r} is not the URL of {scheme}; {example}")
    if not re.fullmatch(ACCOUNT, account):
        hint = "; name the account alone, without '.queue.core.windows.net'" if "." in account else ""
        raise UsageError(
            f"{url!r}: a storage account has 3 to 24 lowercase letters and digits, not {account!r}{hint}; {example}"
        )
    if options:
        raise UsageError(f"{url!r}: unknown option {options[0]!r}; there are none")
    if not re.fullmatch(name, found):
        raise UsageError(f"{url!r}: {rule}, not {found!r}; {example}")
    return Address(scheme, account, found)
