"""What the connections to Google's services have in common: credentials, emulators, channels of gRPC.

Credentials come as application-default credentials alone: GOOGLE_APPLICATION_CREDENTIALS, `gcloud auth
application-default login`, the machine's service account. A variable for each service names an emulator, which needs none.

gRPC's threads don't survive a fork. mtask forks only to execute another program at once (`subprocess`, which runs no
handlers of Python or gRPC in between), and the processes that run users' code never load this module.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import google.auth
import grpc
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError

from mtask.errors import UnavailableError, UnusableError

__all__ = ["FIRESTORE", "LOGIN", "PUBSUB", "STORAGE", "channel_to", "credential_errors"]

PUBSUB, FIRESTORE, STORAGE = "PUBSUB_EMULATOR_HOST", "FIRESTORE_EMULATOR_HOST", "STORAGE_EMULATOR_HOST"
"""The variables that name emulators."""
LOGIN = (
    "run `gcloud auth application-default login`, set GOOGLE_APPLICATION_CREDENTIALS to the file of a service "
    "account, or give this machine one"
)
OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 3_000),  # two minutes otherwise: longer than leases
    ("grpc.use_local_subchannel_pool", 1),  # else what is opened anew inherits the pauses of another
)
ALIVE = (("grpc.keepalive_time_ms", 30_000),)
"""So that a connection that has died is noticed. The emulators refuse such questions."""


def channel_to(emulator: str, transport: Any, host: str, scopes: Sequence[str]) -> Any:
    """A channel of gRPC. `emulator`: where it is, if there is one; `transport`: the class of Google's client that knows how
    to reach `host` else. Within `credential_errors`."""
    if emulator:
        return grpc.insecure_channel(emulator, options=OPTIONS)
    credentials, _ = google.auth.default(scopes=scopes)
    return transport.create_channel(host, credentials=credentials, scopes=scopes, options=[*OPTIONS, *ALIVE])


@contextmanager
def credential_errors(where: str) -> Iterator[None]:
    """Raise UnusableError where there are no credentials, UnavailableError where they can't be had just now."""
    try:
        yield
    except DefaultCredentialsError:
        raise UnusableError(f"{where}: Google needs credentials; {LOGIN}") from None
    except GoogleAuthError as error:
        raise UnavailableError(f"{where}: the credentials can't be had: {error}") from None
