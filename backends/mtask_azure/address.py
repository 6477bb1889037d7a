"""URLs of what lies in a storage account of Azure: `azureq://ACCOUNT/QUEUE`, `azuretable://ACCOUNT/TABLE?container=NAME`.

Rules of names: "Naming Queues and Metadata", "Understanding the Table service data model" and "Naming and referencing
containers, blobs, and metadata", https://learn.microsoft.com/rest/api/storageservices/; of accounts: Azure Resource
Manager, naming rules of Microsoft.Storage.
"""

from __future__ import annotations

import difflib
import re
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from mtask.errors import UsageError

__all__ = ["LONGEST", "Address", "queue_address", "table_address"]

LONGEST = 63
"""Characters of a name of a queue, a table or a container."""
_ACCOUNT = r"[a-z0-9]{3,24}"
_HYPHENED = rf"(?=.{{3,{LONGEST}}}$)[a-z0-9]+(-[a-z0-9]+)*"
_TABLE = rf"(?!(?i:tables)$)[A-Za-z][A-Za-z0-9]{{2,{LONGEST - 1}}}"
_SECRETS = {"sig", "accountkey", "sharedaccesskey", "sharedaccesssignature", "key", "sas", "sv", "se", "sp"}
"""What a shared access signature, or a key, would look like in a URL."""


class Address(NamedTuple):
    """Where a queue or a table is."""

    scheme: str
    account: str
    name: str
    container: str = ""
    """Where what is too big for an entity of a table goes."""

    @property
    def url(self) -> str:
        """Without the options; for people."""
        return f"{self.scheme}://{self.account}/{self.name}"

    @property
    def place(self) -> str:
        """The container; for people."""
        return f"the container {self.container!r} of the account {self.account!r}"


def queue_address(url: str) -> Address:
    """Raises UsageError for a URL that can't be used."""
    rule = f"a queue's name has 3 to {LONGEST} lowercase letters, digits and single hyphens between them"
    return _parse(url, "azureq", _HYPHENED, rule)[0]


def table_address(url: str) -> Address:
    """Raises UsageError for a URL that can't be used."""
    rule = f"a table's name has 3 to {LONGEST} letters and digits, the first one a letter"
    address, options = _parse(url, "azuretable", _TABLE, rule, ("container",))
    container = options.get("container", address.name.lower())
    if not re.fullmatch(_HYPHENED, container):
        raise UsageError(
            f"{address.url!r}: {container!r} can't be the name of a container: it has 3 to {LONGEST} lowercase letters, digits and "
            "single hyphens between them"
        )
    return address._replace(container=container)


def _parse(
    url: str, scheme: str, name: str, rule: str, allowed: tuple[str, ...] = ()
) -> tuple[Address, dict[str, str]]:
    """The address, and the options. `name`: what a name must match; `rule`: the same in words."""
    example = f"it should look like {scheme}://mystorage/reads"
    parts = urlsplit(url)
    account, found = parts.netloc, unquote(parts.path.removeprefix("/"))
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    base = url.partition("#")[0].partition("?")[0]  # what follows may be a secret as well
    if "@" in account or ":" in account or _SECRETS & {option.lower() for option in options}:
        raise UsageError(
            f"{scheme}://…: keys and signatures don't belong into a URL, where everybody sees them; "
            "use `az login`, a managed identity, or AZURE_STORAGE_CONNECTION_STRING"
        )
    if parts.scheme != scheme or parts.fragment or not account:
        raise UsageError(f"{base!r} is not the URL of {scheme}; {example}")
    if not re.fullmatch(_ACCOUNT, account):
        hint = "; name the account alone, without '.core.windows.net'" if "." in account else ""
        raise UsageError(
            f"{base!r}: a storage account has 3 to 24 lowercase letters and digits, not {account!r}{hint}; {example}"
        )
    for option in options:
        if option not in allowed:
            near = difflib.get_close_matches(option, allowed, 1)
            there = f"there is {', '.join(map(repr, allowed))}" if allowed else "there are none"
            raise UsageError(
                f"{base!r}: unknown option {option!r}; {f'did you mean {near[0]!r}?' if near else there}"
            )
    if not re.fullmatch(name, found):
        raise UsageError(f"{base!r}: {rule}, not {found!r}; {example}")
    return Address(scheme, account, found), options
