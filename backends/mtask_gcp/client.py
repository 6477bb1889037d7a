"""The clients of Pub/Sub, and Google's errors in the words of mtask.

Credentials come as application-default credentials alone: GOOGLE_APPLICATION_CREDENTIALS, `gcloud auth
application-default login`, the machine's service account. PUBSUB_EMULATOR_HOST names an emulator, which needs none. Codes of
errors: https://cloud.google.com/pubsub/docs/reference/error-codes.

gRPC's threads don't survive a fork. mtask forks only to execute another program at once (`subprocess`, which runs no
handlers of Python or gRPC in between), and the processes that run users' code never load this module.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import grpc
from google.api_core import exceptions
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError
from google.pubsub_v1 import PublisherClient, SubscriberClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport

from mtask.errors import BackendError, UnavailableError, UnusableError
from mtask_gcp.address import Address

__all__ = ["EMULATOR", "Client", "ExistsError", "MissingError"]

EMULATOR = "PUBSUB_EMULATOR_HOST"
HOST = "pubsub.googleapis.com:443"
OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 5_000),  # two minutes otherwise: longer than leases
    ("grpc.use_local_subchannel_pool", 1),  # else a queue that is opened anew inherits the pauses of another
)
ALIVE = (("grpc.keepalive_time_ms", 30_000),)
"""So that a connection that has died is noticed. The emulator refuses such questions."""

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
        self._users = 1

    @property
    def publisher(self) -> PublisherClient:
        """It may be used from any thread; within `errors`."""
        return self._get()[0]

    @property
    def subscriber(self) -> SubscriberClient:
        """As `publisher`."""
        return self._get()[1]

    def _get(self) -> tuple[PublisherClient, SubscriberClient]:
        with self._lock:
            if self._made is None:
                self._channel = _channel()
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
            yield
        except grpc.RpcError as error:
            self._raise(from_grpc_error(error), permission, on)
        except exceptions.GoogleAPICallError as error:
            self._raise(error, permission, on)
        except DefaultCredentialsError:
            raise UnusableError(
                f"{self.address.url}: Google needs credentials; run `gcloud auth application-default login`, set "
                "GOOGLE_APPLICATION_CREDENTIALS to the file of a service account, or give this machine one"
            ) from None
        except GoogleAuthError as error:
            raise UnavailableError(f"{self.address.url}: the credentials can't be had: {error}") from None

    def share(self) -> Client:
        """The same for one more use, with a `close` of its own."""
        with self._lock:
            self._users += 1
        return self

    def close(self) -> None:
        """Give up one use; the last one closes the connection."""
        with self._lock:
            self._users -= 1
            if self._users <= 0 and self._channel is not None:
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


def _channel() -> Any:
    """Raises GoogleAuthError."""
    host = os.environ.get(EMULATOR)
    if host:
        return grpc.insecure_channel(host, options=OPTIONS)
    return SubscriberGrpcTransport.create_channel(HOST, options=[*OPTIONS, *ALIVE])
