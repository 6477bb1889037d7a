"""Clients of Azure's tables and blobs, and their errors in the words of mtask.

Credentials come from `AZURE_STORAGE_CONNECTION_STRING` or by azure-identity's own chain (environment, managed identity,
`az login`), never from a URL. Codes of errors: "Table Storage error codes", "Blob Storage error codes" and "Common REST
API error codes", https://learn.microsoft.com/rest/api/storageservices/.
"""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, NoReturn
from urllib.parse import parse_qs

import requests
from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    ServiceRequestError,
    ServiceResponseError,
)
from azure.core.pipeline.transport import RequestsTransport
from azure.data.tables import TableClient, TableServiceClient
from azure.storage.blob import ContainerClient
from requests.adapters import HTTPAdapter

from mtask.errors import BackendError, UnavailableError, UnusableError
from mtask_azure.table_address import CONNECTION, TableAddress, connection_settings

__all__ = [
    "BEING_DELETED",
    "BLOB_ROLE",
    "CONNECTIONS",
    "DENIED",
    "TABLE_ROLE",
    "Account",
    "code_of",
    "new_transport",
]

CONNECTIONS = 16
"""At most so many requests at once."""
TABLE_ROLE = "Storage Table Data Contributor"
BLOB_ROLE = "Storage Blob Data Contributor"
SUFFIX = "core.windows.net"

DENIED = {
    "AuthorizationFailure",
    "AuthorizationPermissionMismatch",
    "AuthorizationProtocolMismatch",
    "AuthorizationResourceTypeMismatch",
    "AuthorizationServiceMismatch",
    "AuthorizationSourceIPMismatch",
    "InsufficientAccountPermissions",
    "KeyBasedAuthenticationNotPermitted",
}
BUSY = {"InternalError", "OperationTimedOut", "ServerBusy", "TooManyRequests"}
BEING_DELETED = {"AccountBeingCreated", "ContainerBeingDeleted", "TableBeingDeleted"}

_NO_NAME = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}
"""What the DNS says of a name that nobody has; that it can't be asked just now is something else."""
_RETRIES: dict[str, Any] = {"retry_total": 2, "retry_backoff_factor": 0.2, "retry_backoff_max": 5}
_TIMEOUTS: dict[str, Any] = {"connection_timeout": 5, "read_timeout": 35}
"""The service itself gives up after 30 s."""


def code_of(error: HttpResponseError) -> str:
    """Azure's own; of tables it is an enumeration, of blobs text."""
    code = getattr(error, "error_code", None)
    if code is None and error.response is not None:
        headers: Any = getattr(error.response, "headers", {})
        code = headers.get("x-ms-error-code")
    return str(getattr(code, "value", code) or "")


def new_transport() -> Any:
    """With as many connections as are ever used at once."""
    session = requests.Session()
    for scheme in ("https://", "http://"):
        session.mount(scheme, HTTPAdapter(pool_connections=4, pool_maxsize=CONNECTIONS))
    return RequestsTransport(session=session)


class Account:
    """A table and a container of one storage account. Any thread may use it; nothing is asked before it is used."""

    def __init__(self, address: TableAddress) -> None:
        self.address = address
        self._lock = threading.Lock()
        self._connection = connection_settings(address)
        self._credential: Any = None
        self._open: list[Any] = []

    @property
    def how(self) -> str:
        """By what it is who it is; for people."""
        if self._connection is None:
            return "DefaultAzureCredential: environment, managed identity or `az login`"
        return f"{CONNECTION}, {'an account key' if 'AccountKey=' in self._connection else 'a SAS'}"

    def table(self, saw: Callable[[Any], None]) -> TableClient:
        """`saw` is called with each answer, also with those after which the client tries again."""
        options = {"raw_response_hook": saw, **_RETRIES, **_TIMEOUTS}
        client: TableClient = self._client(TableClient, "table", table_name=self.address.name, **options)
        return client

    def tables(self) -> TableServiceClient:
        client: TableServiceClient = self._client(TableServiceClient, "table", **_RETRIES, **_TIMEOUTS)
        return client

    def container(self) -> ContainerClient:
        client: ContainerClient = self._client(
            ContainerClient, "blob", container_name=self.address.container, retry_total=2, **_TIMEOUTS
        )
        return client

    def _client(self, kind: Any, service: str, **options: Any) -> Any:
        options["transport"] = new_transport()
        try:
            if self._connection is not None:
                client = kind.from_connection_string(self._connection, **options)
            else:
                endpoint = f"https://{self.address.account}.{service}.{SUFFIX}"
                first = {"endpoint" if service == "table" else "account_url": endpoint}
                client = kind(**first, credential=self._token(), **options)
        except ValueError as error:
            problem = str(error).partition("\n")[0]
            raise UnusableError(f"{CONNECTION} can't be used for {self.address.url}: {problem}") from None
        with self._lock:
            self._open.append(client)
        return client

    def _token(self) -> Any:
        from azure.identity import DefaultAzureCredential

        with self._lock:
            if self._credential is None:
                self._credential = DefaultAzureCredential()
                self._open.append(self._credential)
            return self._credential

    def close(self) -> None:
        with self._lock:
            clients, self._open, self._credential = self._open, [], None
        for client in clients:
            client.close()

    @contextmanager
    def errors(self, action: str, *, role: str = TABLE_ROLE, on: str | None = None) -> Iterator[None]:
        """Raise what goes wrong within as an error of mtask.

        `action`: what was to be done, for people; `role`: what allows it; `on`: on what, the table by default.
        """
        place = on or self.address.url
        try:
            yield
        except HttpResponseError as error:
            if isinstance(error, ClientAuthenticationError) and error.response is None:
                self._raise_no_credentials(error)
            self._raise(error, action, role, place)
        except (ServiceRequestError, ServiceResponseError) as error:
            self._raise_unreachable(error, place)
        except AzureError as error:
            raise BackendError(f"{action} {place}: {_short(error)}") from None
        except requests.RequestException as error:
            self._raise_unreachable(error, place)

    def _raise_unreachable(self, error: Exception, place: str) -> NoReturn:
        found = re.search(r"\[Errno (-?\d+)\] ([^'\")]+)", str(error))
        if found and int(found[1]) in _NO_NAME:
            raise UnusableError(
                f"{place}: there is no storage account {self.address.account!r}, or its name is spelled otherwise"
            ) from None
        raise UnavailableError(f"{place} is out of reach: {found[2] if found else _short(error)}") from None

    def _raise_no_credentials(self, error: Exception) -> NoReturn:
        raise UnusableError(
            f"{self.address.url}: Azure needs credentials ({_short(error)}); run `az login`, give this machine a managed "
            f"identity, or set {CONNECTION}"
        ) from None

    def _raise(self, error: HttpResponseError, action: str, role: str, place: str) -> NoReturn:
        code, status = code_of(error), error.status_code or 0
        text = _short(error)
        if code in BEING_DELETED:
            raise UnavailableError(
                f"{place} is being deleted, and Azure keeps its name for 40 seconds or more: trying again"
            ) from None
        if code in ("TableNotFound", "ContainerNotFound") or (code == "ResourceNotFound" and status == 404):
            raise UnusableError(
                f"there is no {'table' if role == TABLE_ROLE else 'container'} at {place}: `mtask init` makes it, unless the "
                "account is another one"
            ) from None
        if code in BUSY or status >= 500 or status == 429:
            raise UnavailableError(f"{place} is busy: {code or status}: {text}") from None
        if status in (401, 403) or code in DENIED:
            raise UnusableError(self._denied(action, role, place, code or str(status), text)) from None
        raise BackendError(f"{action} {place}: {code or status}: {text}") from None

    def _denied(self, action: str, role: str, place: str, code: str, text: str) -> str:
        signature = self._connection is not None and "AccountKey=" not in self._connection
        if signature and ("specified time frame" in text or self._signature_is_over()):
            return (
                f"{place}: the shared access signature in {CONNECTION} has expired, or isn't valid yet; make a new one "
                "(`az storage account generate-sas`), and start again"
            )
        denied = f"access denied: may not {action} {place} ({code})"
        if code == "KeyBasedAuthenticationNotPermitted":
            return f"{denied}; the account takes no keys: unset {CONNECTION}, `az login`, and use the role {role!r}"
        if signature and code in DENIED:
            return (
                f"{denied}; the shared access signature in {CONNECTION} must be for tables and blobs, for all resource "
                "types, and allow to read, write, delete, list, add, create and update (ss=tb, srt=sco, sp=rwdlacu)"
            )
        if self._connection is None and code in DENIED:
            return (
                f"{denied}; give this identity the role {role!r} on the storage account (a new role takes some minutes), "
                "let this machine through the account's firewall, and see what else is missing with `mtask doctor`"
            )
        return (
            f"{place}: Azure doesn't accept these credentials ({self.how}): {code}; is the key that of this account, and "
            "this machine's clock right?"
        )

    def _signature_is_over(self) -> bool:
        """By its `se`; codes of errors alone don't tell."""
        ends = parse_qs(
            (self._connection or "").partition("SharedAccessSignature=")[2].lstrip("?").partition(";")[0]
        )
        for text in ends.get("se", []):
            with suppress(ValueError):
                ends_at = datetime.fromisoformat(text.replace("Z", "+00:00"))
                return (ends_at if ends_at.tzinfo else ends_at.replace(tzinfo=UTC)) <= datetime.now(UTC)
        return False


def _short(error: Exception) -> str:
    """The first line: what follows are ids of the request and, perhaps, what was signed."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
