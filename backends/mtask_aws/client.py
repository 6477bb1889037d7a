"""boto3's clients, and its errors in the words of mtask.

Credentials and endpoints come by boto3's own chain alone: environment (`AWS_ENDPOINT_URL` among it), profiles,
roles. The codes of errors are those of AWS's references of the services, "Common errors".
"""

from __future__ import annotations

import difflib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    TokenRetrievalError,
)
from botocore.exceptions import (
    ConnectionError as UnreachableError,
)

from mtask.errors import BackendError, UnavailableError, UnusableError, UsageError
from mtask_aws.address import Address

__all__ = ["CONNECTIONS", "Client", "code_of"]

CONNECTIONS = 16
"""At most so many requests at once."""
LONG_POLL_S = 20

EXPIRED = {"ExpiredToken", "ExpiredTokenException", "RequestExpired"}
DENIED = {
    "AccessDenied",
    "AccessDeniedException",
    "AllAccessDisabled",
    "AuthorizationError",
    "KmsAccessDenied",
    "UnauthorizedOperation",
}
UNKNOWN_KEYS = {
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "SignatureDoesNotMatch",
    "InvalidSignatureException",
    "UnrecognizedClientException",
}
BUSY = {
    "InternalServerError",
    "KMSThrottlingException",
    "KmsThrottled",
    "LimitExceededException",
    "OverLimit",
    "ProvisionedThroughputExceededException",
    "RequestLimitExceeded",
    "RequestThrottled",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TransactionInProgressException",
}


def code_of(error: ClientError) -> str:
    """AWS's own, without the prefixes that SQS's older protocol puts before it."""
    code: str = error.response.get("Error", {}).get("Code", "")
    return code.removeprefix("AWS.SimpleQueueService.").removeprefix("KMS.")


class Client:
    """A client of one service in one region, made anew when its credentials have run out."""

    def __init__(self, service: str, address: Address) -> None:
        """`address`: of what is worked with, for errors and the region. Raises UsageError for a region that isn't there."""
        self.service, self.address = service, address
        self._lock = threading.Lock()
        self._made: Any = None
        self._users = 1
        _check_region(service, address)

    def get(self) -> Any:
        """boto3's client; it may be used from any thread. Raises UsageError for a profile that isn't there."""
        with self._lock:
            if self._made is None:
                try:
                    session = boto3.session.Session()  # reads files and environment anew
                    self._made = session.client(
                        self.service, region_name=self.address.region, config=_config()
                    )
                except ProfileNotFound as error:
                    raise UsageError(f"{error}; see AWS_PROFILE and ~/.aws/config") from None
            return self._made

    @contextmanager
    def errors(self, action: str, on: str | None = None) -> Iterator[None]:
        """Raise what goes wrong within as an error of mtask.

        `action`: as in an IAM policy, for example `sqs:SendMessage`; `on`: on what, the address by default.
        """
        try:
            yield
        except ClientError as error:
            self._raise(error, action, on or self.address.url)
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise UnusableError(
                f"{self.address.url}: AWS needs credentials ({error}); run `aws configure`, set AWS_PROFILE, or "
                "give this machine a role"
            ) from None
        except (CredentialRetrievalError, TokenRetrievalError) as error:
            self.renew()
            raise UnavailableError(f"{self.address.url}: the credentials can't be had: {error}") from None
        except (UnreachableError, HTTPClientError) as error:
            raise UnavailableError(f"{self.address.url} is out of reach: {error}") from None
        except BotoCoreError as error:
            raise BackendError(f"{self.address.url}: {error}") from None

    def renew(self) -> None:
        """The next `get` looks for credentials anew."""
        with self._lock:
            self._made = None

    def share(self) -> Client:
        """The same for one more use, with a `close` of its own."""
        with self._lock:
            self._users += 1
        return self

    def close(self) -> None:
        """Give up one use; the last one closes the connections."""
        with self._lock:
            self._users -= 1
            if self._users <= 0 and self._made is not None:
                self._made.close()
                self._made = None

    def _raise(self, error: ClientError, action: str, on: str) -> NoReturn:
        code, text = code_of(error), error.response.get("Error", {}).get("Message", "")
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code in EXPIRED:
            self.renew()
            raise UnavailableError(
                f"{self.address.url}: the credentials have expired; work goes on when they are renewed "
                "(`aws sso login`, or new ones in ~/.aws/credentials)"
            ) from None
        if code in BUSY or status >= 500 or status == 429:
            raise UnavailableError(f"{self.address.url} is busy: {code}: {text}") from None
        if code in DENIED:
            raise UnusableError(
                f"access denied: {action} on {on} ({text}); add it to the policy of this role or user, and see "
                "what else is missing with `mtask doctor`"
            ) from None
        if code in UNKNOWN_KEYS:
            self.renew()
            raise UnusableError(
                f"{self.address.url}: AWS doesn't accept these credentials: {code}: {text}"
            ) from None
        raise BackendError(f"{action} on {on}: {code}: {text}") from None


def _config() -> Config:
    return Config(
        retries={"mode": "standard", "total_max_attempts": 3},
        connect_timeout=5,
        read_timeout=LONG_POLL_S + 10,
        max_pool_connections=CONNECTIONS,
        user_agent_extra="mtask",
    )


def _check_region(service: str, address: Address) -> None:
    if any(name.startswith("AWS_ENDPOINT_URL") for name in os.environ):
        return
    session = boto3.session.Session()
    known = [
        region
        for partition in session.get_available_partitions()
        for region in session.get_available_regions(service, partition_name=partition)
    ]
    if known and address.region not in known:
        near = difflib.get_close_matches(address.region, known, 1)
        hint = f"did you mean {near[0]!r}?" if near else "see `aws ec2 describe-regions`"
        raise UsageError(f"{address.url}: AWS has no region {address.region!r} with {service}; {hint}")
