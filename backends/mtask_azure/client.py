"""Clients of Azure's queue service, and its errors in the words of mtask.

Who this is: the connection string in AZURE_STORAGE_CONNECTION_STRING, if it is set (a key or a shared access
signature, and perhaps an endpoint of its own, as Azurite's); else `DefaultAzureCredential`: variables, workload identity,
managed identity, `az login`. Codes of errors: REST API, "Common REST API Error Codes" and "Queue Service Error Codes".
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, NoReturn, TypeVar
from urllib.parse import parse_qs, urlsplit

from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    ServiceRequestError,
    ServiceResponseError,
)
from azure.storage.queue import LinearRetry, QueueClient, QueueServiceClient

from mtask.errors import BackendError, UnavailableError, UnusableError, UsageError
from mtask.meter import Meter
from mtask_azure.address import Address
from mtask_azure.prices_queue import OPERATIONS

__all__ = [
    "CONNECTIONS",
    "CONNECTION_STRING",
    "ROLE",
    "BeingDeletedError",
    "Client",
    "GoneError",
    "NoAccountError",
    "NoQueueError",
    "code_of",
    "signature_ends_at",
]

CONNECTION_STRING = "AZURE_STORAGE_CONNECTION_STRING"
CONNECTIONS = 8
"""At most so many requests at once by the pool: there are no batches. (requests keeps 10 connections to a host.)"""
TRIES, PAUSE_S = 3, 1
"""Of a request that failed by no fault of its own, and between them, up to twice as long; then the engine goes on trying."""
ROLE = "Storage Queue Data Contributor"
"""What everybody needs: lanes are queues, so workers make and remove some, too."""
SUFFIX = "core.windows.net"

DENIED = {"AuthorizationPermissionMismatch", "InsufficientAccountPermissions", "AuthorizationFailure"}
DENIED_SIGNATURE = {"AuthorizationServiceMismatch", "AuthorizationResourceTypeMismatch"}
DENIED_PLACE = {"AuthorizationSourceIPMismatch", "AuthorizationProtocolMismatch"}
UNKNOWN = {"AuthenticationFailed", "InvalidAuthenticationInfo", "NoAuthenticationInformation"}
GONE = {"MessageNotFound", "PopReceiptMismatch"}
"""Azure says the first of an old receipt, Azurite the second."""
BUSY = {"ServerBusy", "OperationTimedOut", "InternalError", "TooManyRequests", "AccountBeingCreated"}

# What can't be helped is said once, as an error: Python would print Azure's warnings about it, page by page, as well.
logging.getLogger("azure").addHandler(logging.NullHandler())

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class NoQueueError(UnavailableError):
    """There is no queue of this name, or there is none any more."""


class BeingDeletedError(UnavailableError):
    """Azure takes the queue away, and keeps its name for half a minute or longer."""


class GoneError(BackendError):
    """Nobody holds the message by this receipt: it is somebody else's, or deleted."""


class NoAccountError(UnusableError):
    """Nothing of this name is known to the DNS, or to the server."""


def code_of(error: Exception) -> str:
    """Azure's own, as `QueueNotFound`; empty where it gave none."""
    code = getattr(error, "error_code", None)
    if code is None and isinstance(error, HttpResponseError):
        code = getattr(error.response, "headers", {}).get("x-ms-error-code")
    return str(getattr(code, "value", code) or "")


class Client:
    """Of the queues of one storage account; any thread may use it."""

    def __init__(self, address: Address, meter: Meter) -> None:
        """`address`: of what is worked with, for errors and the account. Raises UsageError for a connection string that
        makes no sense, or is another account's."""
        self.address, self.meter = address, meter
        self._lock = threading.Lock()
        self._users = 1
        self._pool: ThreadPoolExecutor | None = None
        self._credential: Any = None
        self.service = self._open()

    def _open(self) -> QueueServiceClient:
        options: dict[str, Any] = {
            "retry_policy": LinearRetry(backoff=PAUSE_S, retry_total=TRIES - 1, random_jitter_range=PAUSE_S),
            "connection_timeout": 5,
            "read_timeout": 30,
            "user_agent": "mtask",
            "raw_response_hook": lambda _: self.meter.add(OPERATIONS, 1),
        }
        if text := os.environ.get(CONNECTION_STRING):
            try:
                service = QueueServiceClient.from_connection_string(text, **options)
            except (ValueError, TypeError) as error:
                raise UsageError(f"{CONNECTION_STRING} can't be used: {error}") from None
            account = _account_of(service, text)
            if account not in ("", self.address.account):
                service.close()
                raise UsageError(
                    f"{self.address.url}: {CONNECTION_STRING} is of the storage account {account!r}, not of "
                    f"{self.address.account!r}; set that account's, or unset it and use `az login`"
                )
            return service
        from azure.identity import DefaultAzureCredential

        self._credential = DefaultAzureCredential()
        url = f"https://{self.address.account}.queue.{SUFFIX}"
        return QueueServiceClient(url, credential=self._credential, **options)

    @property
    def by_identity(self) -> bool:
        """By a role, not by a key or a signature?"""
        return self._credential is not None

    @property
    def host(self) -> str:
        return urlsplit(self.service.url).netloc

    def token(self) -> str:
        """Of the identity that is used, for those who want to know who it is. Raises as `errors`."""
        with self.errors("sign in"):
            token: str = self._credential.get_token("https://storage.azure.com/.default").token
            return token

    def queue(self, name: str) -> QueueClient:
        """It shares the connections."""
        return self.service.get_queue_client(name)

    def each(self, items: Sequence[Item], ask: Callable[[Item], Answer]) -> list[Answer]:
        """`ask` for each, some at a time; answers in the same order. `ask` raises nothing."""
        if len(items) < 2:
            return [ask(item) for item in items]
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="azure")
            pool = self._pool
        return list(pool.map(ask, items))

    @contextmanager
    def errors(self, action: str, on: str | None = None) -> Iterator[None]:
        """Raise what goes wrong within as an error of mtask. `action`: for people; `on`: on what, the address by
        default."""
        shown = on or self.address.url
        try:
            yield
        except (ServiceRequestError, ServiceResponseError) as error:
            if _unknown_host(self.host):
                raise NoAccountError(
                    f"{shown}: there is no {self.host.partition(':')[0]}: the storage account "
                    f"{self.address.account!r} doesn't exist, or its name is spelled otherwise"
                ) from None
            raise UnavailableError(f"{shown} is out of reach: {_short(error)}") from None
        except HttpResponseError as error:
            self._raise(error, action, shown)
        except AzureError as error:
            raise BackendError(f"{action} on {shown}: {_short(error)}") from None

    def share(self) -> Client:
        """The same for one more use, with a `close` of its own."""
        with self._lock:
            self._users += 1
        return self

    def close(self) -> None:
        """Give up one use; the last one closes the connections."""
        with self._lock:
            self._users -= 1
            if self._users:
                return
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown()
        self.service.close()
        if self._credential is not None:
            self._credential.close()

    def _raise(self, error: HttpResponseError, action: str, shown: str) -> NoReturn:
        code, status = code_of(error), error.status_code or 0
        if isinstance(error, ClientAuthenticationError) and not code:  # of azure-identity, not of the storage
            raise UnusableError(
                f"{self.address.url}: Azure needs credentials ({_short(error)}); run `az login`, give this machine a "
                f"managed identity, or set {CONNECTION_STRING}"
            ) from None
        if code == "QueueNotFound":
            raise NoQueueError(f"{shown}: there is no such queue") from None
        if code in GONE:
            raise GoneError(f"{shown}: the message is somebody else's, or deleted") from None
        if code == "QueueBeingDeleted":
            raise BeingDeletedError(
                f"{shown} is being deleted, and Azure keeps its name for half a minute or longer: trying again"
            ) from None
        if code == "ResourceNotFound":
            raise NoAccountError(f"{shown}: there is no storage account {self.address.account!r}") from None
        if code in BUSY or status >= 500 or status in (408, 429):
            raise UnavailableError(f"{shown} is busy: {status} {code}: {_short(error)}") from None
        if code in UNKNOWN or status == 401:
            raise UnusableError(f"{shown}: {self._unknown(error, code)}") from None
        if status == 403:
            raise UnusableError(
                f"access denied: {action} on {shown} ({code}); {self._denied(code)}"
            ) from None
        raise BackendError(f"{action} on {shown}: {status} {code}: {_short(error)}") from None

    def _unknown(self, error: HttpResponseError, code: str) -> str:
        ended_at = signature_ends_at()
        if ended_at is not None and ended_at <= datetime.now(UTC):
            return (
                f"the shared access signature in {CONNECTION_STRING} expired at {ended_at:%Y-%m-%d %H:%M} UTC; set a new "
                "one and start again: nothing is lost meanwhile"
            )
        return (
            f"Azure doesn't accept these credentials: {code}: {_short(error)} (it says the same if this machine's clock is off "
            "by more than 15 minutes)"
        )

    def _denied(self, code: str) -> str:
        if code == "KeyBasedAuthenticationNotPermitted":
            return (
                f"the account takes no keys: unset {CONNECTION_STRING}, `az login`, and use the role {ROLE!r}"
            )
        if code in DENIED_SIGNATURE:
            return "the signature must be for the service queue (ss=q) and its resource types (srt=sco)"
        if code in DENIED_PLACE:
            return "not from this address, or not by this protocol: see the signature, or the account's networking"
        if self.by_identity:
            return (
                f"give this identity the role {ROLE!r} on the storage account (it takes effect within ten minutes), see "
                "that the account's firewall lets this machine in, and what else is missing with `mtask doctor`"
            )
        return "the signature needs sp=raup (and c, w, d for lanes), or the account's firewall is closed to this machine"


def signature_ends_at() -> datetime | None:
    """When the shared access signature of the connection string ends (UTC); None: there is none, or it doesn't say."""
    for part in os.environ.get(CONNECTION_STRING, "").split(";"):
        name, _, value = part.partition("=")
        if name.lower() == "sharedaccesssignature":
            for text in parse_qs(value.lstrip("?")).get("se", []):
                with suppress(ValueError):
                    ends_at = datetime.fromisoformat(text.replace("Z", "+00:00"))
                    return ends_at if ends_at.tzinfo else ends_at.replace(tzinfo=UTC)
    return None


def _account_of(service: QueueServiceClient, text: str) -> str:
    """Whose connection string it is; empty: it doesn't say."""
    for part in text.split(";"):
        name, _, value = part.partition("=")
        if name.lower() == "accountname":
            return value
    return service.account_name or ""


def _unknown_host(netloc: str) -> bool:
    """Does the DNS say that there is no such name? (Not: that it can't be asked just now.)"""
    host = urlsplit(f"//{netloc}").hostname or ""
    try:
        socket.getaddrinfo(host, 443)
    except socket.gaierror as error:
        return error.errno in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))
    except OSError:
        pass
    return False


def _short(error: Exception) -> str:
    """The first line, without the ids of the request."""
    text = str(getattr(error, "message", "") or error).strip()
    return text.splitlines()[0].strip() if text else type(error).__name__
