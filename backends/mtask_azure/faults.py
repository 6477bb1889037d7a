"""Errors of Azure's storage in the words of mtask.

Codes: "Common REST API error codes", "Queue Service error codes", "Table Storage error codes" and "Blob Storage error
codes", https://learn.microsoft.com/rest/api/storageservices/.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import requests
from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    ServiceRequestError,
    ServiceResponseError,
)

from mtask.errors import BackendError, UnavailableError, UnusableError
from mtask_azure.address import Address
from mtask_azure.connection import CONNECTION, Connection

__all__ = [
    "BEING_DELETED",
    "BLOB",
    "DENIED",
    "QUEUE",
    "SIGNATURE",
    "TABLE",
    "BeingDeletedError",
    "GoneError",
    "NoQueueError",
    "Service",
    "code_of",
    "told",
]


class Service(NamedTuple):
    """One of those of a storage account."""

    name: str
    """In its endpoint."""
    thing: str
    """What it has; for people."""
    role: str
    """What everybody needs: lanes are queues, and blobs are made and removed with rows."""


QUEUE = Service("queue", "queue", "Storage Queue Data Contributor")
TABLE = Service("table", "table", "Storage Table Data Contributor")
BLOB = Service("blob", "container", "Storage Blob Data Contributor")
SIGNATURE = "services queue, table and blob (ss=bqt), all resource types (srt=sco), and sp=rwdlacup"
"""What a shared access signature must allow."""

BUSY = {"AccountBeingCreated", "InternalError", "OperationTimedOut", "ServerBusy", "TooManyRequests"}
BEING_DELETED = {"ContainerBeingDeleted", "QueueBeingDeleted", "TableBeingDeleted"}
GONE = {"MessageNotFound", "PopReceiptMismatch"}
"""Azure says the first of an old receipt, Azurite the second."""
UNKNOWN = {"AuthenticationFailed", "InvalidAuthenticationInfo", "NoAuthenticationInformation"}
NO_KEYS = "KeyBasedAuthenticationNotPermitted"
WRONG_PLACE = {"AuthorizationProtocolMismatch", "AuthorizationSourceIPMismatch"}
DENIED = {
    *WRONG_PLACE,
    NO_KEYS,
    "AuthorizationFailure",
    "AuthorizationPermissionMismatch",
    "AuthorizationResourceTypeMismatch",
    "AuthorizationServiceMismatch",
    "InsufficientAccountPermissions",
}
_NO_NAME = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}
"""What the DNS says of a name that nobody has; that it can't be asked just now is something else."""
_UNREACHABLE = (ServiceRequestError, ServiceResponseError, requests.RequestException)


class NoQueueError(UnavailableError):
    """There is no queue of this name, or there is none any more."""


class BeingDeletedError(UnavailableError):
    """Azure takes it away, and keeps its name for half a minute or longer."""


class GoneError(BackendError):
    """Nobody holds the message by this receipt: it is somebody else's, or deleted."""


def code_of(error: Exception) -> str:
    """Azure's own, as `QueueNotFound`; empty where it gave none. Of tables it is an enumeration, else text."""
    code = getattr(error, "error_code", None)
    if code is None and isinstance(error, HttpResponseError):
        code = getattr(error.response, "headers", {}).get("x-ms-error-code")
    return str(getattr(code, "value", code) or "")


@contextmanager
def told(
    address: Address, connection: Connection | None, action: str, service: Service, shown: str
) -> Iterator[None]:
    """Raise what goes wrong within as an error of mtask. `action` on `shown`: what was to be done; for people.

    `connection`: by which; None: by an identity.
    """
    try:
        yield
    except HttpResponseError as error:
        raise _meant(error, address, connection, action, service, shown) from None
    except _UNREACHABLE as error:
        raise _unreachable(error, address, shown) from None
    except AzureError as error:
        raise BackendError(f"{action} on {shown}: {_short(error)}") from None


def _unreachable(error: Exception, address: Address, shown: str) -> BackendError:
    found = re.search(r"\[Errno (-?\d+)\] ([^'\")]+)", str(error))
    if found and int(found[1]) in _NO_NAME:
        return UnusableError(
            f"{shown}: there is no storage account {address.account!r}, or its name is spelled otherwise"
        )
    return UnavailableError(f"{shown} is out of reach: {found[2] if found else _short(error)}")


def _meant(
    error: HttpResponseError,
    address: Address,
    connection: Connection | None,
    action: str,
    service: Service,
    shown: str,
) -> BackendError:
    code, status, text = code_of(error), error.status_code or 0, _short(error)
    if isinstance(error, ClientAuthenticationError) and not code:  # of azure-identity, not of the storage
        return UnusableError(
            f"{address.url}: Azure needs credentials ({text}); run `az login`, give this machine a managed identity, or "
            f"set {CONNECTION}"
        )
    if code in GONE:
        return GoneError(f"{shown}: the message is somebody else's, or deleted")
    if code in BEING_DELETED:
        return BeingDeletedError(
            f"{shown} is being deleted, and Azure keeps its name for half a minute or longer: trying again"
        )
    if code == "QueueNotFound":
        return NoQueueError(f"{shown}: there is no such queue")
    if code == "ResourceNotFound" and service is QUEUE:
        return UnusableError(f"{shown}: there is no storage account {address.account!r}")
    if code in ("TableNotFound", "ContainerNotFound") or (code == "ResourceNotFound" and status == 404):
        return UnusableError(
            f"{shown}: there is no such {service.thing}: `mtask init` makes it, unless the account is another one"
        )
    if code in BUSY or status >= 500 or status in (408, 429):
        return UnavailableError(f"{shown} is busy: {status} {code}: {text}")
    if status in (401, 403) or code in DENIED:
        return UnusableError(_refused(connection, action, service, shown, code or str(status), text))
    return BackendError(f"{action} on {shown}: {status} {code}: {text}")


def _refused(
    connection: Connection | None, action: str, service: Service, shown: str, code: str, text: str
) -> str:
    signed = connection is not None and not connection.by_key
    if connection is not None and (connection.ended or (signed and "specified time frame" in text)):
        ends_at = connection.ends_at
        when = (
            f"expired at {ends_at:%Y-%m-%d %H:%M} UTC"
            if connection.ended
            else "has expired, or isn't valid yet"
        )
        return (
            f"{shown}: the shared access signature in {CONNECTION} {when}; set a new one (`az storage account "
            "generate-sas`) and start again: nothing is lost meanwhile"
        )
    if code in UNKNOWN or code not in DENIED:
        return (
            f"{shown}: Azure doesn't accept these credentials: {code}: {text} (it says the same if this machine's clock is "
            "off by more than 15 minutes)"
        )
    return f"access denied: {action} on {shown} ({code}); {_todo(connection, service, code)}"


def _todo(connection: Connection | None, service: Service, code: str) -> str:
    if code == NO_KEYS:
        return f"the account takes no keys: unset {CONNECTION}, `az login`, and use the role {service.role!r}"
    if code in WRONG_PLACE:
        return (
            "not from this address, or not by this protocol: see the signature, or the account's networking"
        )
    if connection is None:
        return (
            f"give this identity the role {service.role!r} on the storage account (it takes effect within ten minutes), "
            "see that the account's firewall lets this machine in, and what else is missing with `mtask doctor`"
        )
    if connection.by_key:
        return "the account's firewall is closed to this machine, or the key isn't this account's"
    return f"the signature in {CONNECTION} needs {SIGNATURE}; or the account's firewall is closed to this machine"


def _short(error: Exception) -> str:
    """The first line, without what follows a `?`: ids of the request, what was signed, and signatures aren't for all eyes."""
    text = re.sub(r"""\?[^\s"']*""", "?…", str(getattr(error, "message", "") or error).strip())
    return text.splitlines()[0].strip()[:300] if text else type(error).__name__
