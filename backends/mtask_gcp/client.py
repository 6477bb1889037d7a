"""The clients of Pub/Sub, and its errors in the words of mtask.

Codes of errors: https://cloud.google.com/pubsub/docs/reference/error-codes.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import grpc
from google.api_core import exceptions
from google.pubsub_v1 import PublisherClient, SubscriberClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport

from mtask.errors import BackendError, UnavailableError, UnusableError
from mtask_gcp.address import Address
from mtask_gcp.connection import PUBSUB, channel_to, credential_errors

__all__ = ["Client", "ExistsError", "MissingError"]

HOST = "pubsub.googleapis.com:443"
SCOPES = ("https://www.googleapis.com/auth/pubsub",)

from_grpc_error: Any = exceptions.from_grpc_error

BUSY = (
    exceptions.Aborted,
    exceptions.Cancelled,
    exceptions.DeadlineExceeded,
    exceptions.InternalServerError,
    exceptions.ResourceExhausted,
    exceptions.ServiceUnavailable,
    exceptions.TooManyRequests,
    exceptions.Unknown,
)
ROLES = {
    "pubsub.topics.publish": "roles/pubsub.publisher",
    "pubsub.subscriptions.consume": "roles/pubsub.subscriber",
    "pubsub.topics.get": "roles/pubsub.viewer",
    "pubsub.subscriptions.get": "roles/pubsub.viewer",
}
"""The predefined role that has a permission; any other is in roles/pubsub.editor."""


class MissingError(UnavailableError):
    """There is no such topic or subscription, or there is none any more."""


class ExistsError(BackendError):
    """There is one of this name already."""


class Client:
    """Publisher and subscriber on one connection."""

    def __init__(self, address: Address) -> None:
        """`address`: of what is worked with, for errors."""
        self.address = address
        self._lock = threading.Lock()
        self._channel: Any = None
        self._made: tuple[PublisherClient, SubscriberClient] | None = None
        self._users, self._closed = 1, False

    @property
    def publisher(self) -> PublisherClient:
        """It may be used from any thread; within `errors`."""
        return self._get()[0]

    @property
    def subscriber(self) -> SubscriberClient:
        """As `publisher`."""
        return self._get()[1]

    def _get(self) -> tuple[PublisherClient, SubscriberClient]:
        """Raises BackendError after the last `close`."""
        with self._lock:
            if self._closed:
                raise BackendError(f"the connection to {self.address.url} is closed")
            if self._made is None:
                self._channel = channel_to(os.environ.get(PUBSUB, ""), SubscriberGrpcTransport, HOST, SCOPES)
                self._made = (
                    PublisherClient(transport=PublisherGrpcTransport(channel=self._channel)),
                    SubscriberClient(transport=SubscriberGrpcTransport(channel=self._channel)),
                )
            return self._made

    @contextmanager
    def errors(self, permission: str, on: str) -> Iterator[None]:
        """Raise what goes wrong within as an error of mtask.

        `permission`: the one needed, as `pubsub.topics.publish`; `on`: on which resource. Raises MissingError,
        ExistsError, UnusableError (not allowed, no credentials), UnavailableError, BackendError.
        """
        try:
            with credential_errors(self.address.url):
                yield
        except grpc.RpcError as error:
            self._raise(from_grpc_error(error), permission, on)
        except exceptions.GoogleAPICallError as error:
            self._raise(error, permission, on)

    def share(self) -> Client:
        """The same for one more use, with a `close` of its own."""
        with self._lock:
            self._users += 1
        return self

    def close(self) -> None:
        """Give up one use; the last one closes the connection."""
        with self._lock:
            self._users -= 1
            if self._users > 0:
                return
            self._closed = True
            if self._channel is not None:
                self._channel.close()
                self._channel = self._made = None

    def _raise(self, error: exceptions.GoogleAPICallError, permission: str, on: str) -> NoReturn:
        text = error.message or type(error).__name__
        if isinstance(error, exceptions.NotFound):
            raise MissingError(f"{on}: {text}") from None
        if isinstance(error, exceptions.AlreadyExists):
            raise ExistsError(f"{on}: {text}") from None
        if isinstance(error, exceptions.Unauthenticated):
            raise UnusableError(
                f"{self.address.url}: Google doesn't accept these credentials: {text}"
            ) from None
        if isinstance(error, exceptions.Forbidden):
            self._denied(error, permission, on)
        if isinstance(error, BUSY):
            raise UnavailableError(f"{self.address.url} is out of reach or busy: {text}") from None
        raise BackendError(f"{on}: {text}") from None

    def _denied(self, error: exceptions.Forbidden, permission: str, on: str) -> NoReturn:
        if error.reason == "SERVICE_DISABLED":
            raise UnusableError(
                f"{self.address.url}: Pub/Sub is switched off in this project; "
                f"`gcloud services enable pubsub.googleapis.com --project {self.address.project}`"
            ) from None
        role = ROLES.get(permission, "roles/pubsub.editor")
        raise UnusableError(
            f"permission denied: {permission} on {on} ({error.message}); {role} has it, or a role of your own as in the "
            "documentation of mtask; see what else is missing with `mtask doctor`"
        ) from None
