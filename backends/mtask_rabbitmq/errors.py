"""What pika and the broker say, in the words of mtask.

The codes are AMQP's: https://www.rabbitmq.com/amqp-0-9-1-reference#constants.
"""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Iterator

from pika import exceptions

from mtask.errors import BackendError, UnavailableError, UnusableError, UsageError
from mtask_rabbitmq.address import Address, Credentials

__all__ = ["ChannelClosedError", "MissingError", "channel_error", "connection_error", "timeout_of"]

ACCESS_REFUSED, NOT_FOUND, LOCKED, PRECONDITION_FAILED = 403, 404, 405, 406
NOT_ALLOWED = 530
PASSING = {311, 313, 320, 506, 541}
"""Content too large, no consumers, connection forced (a shutdown), resource error, internal error."""
_TIMED_OUT = re.compile(r"acknowledge?ment on channel \d+ timed out.*?(\d+) ms", re.DOTALL)


class ChannelClosedError(UnavailableError):
    """The channel was closed while something was asked for; on another one it may go well."""


class MissingError(BackendError):
    """There is no such queue or exchange."""


def connection_error(
    address: Address, credentials: Credentials, error: BaseException
) -> BackendError | UsageError:
    """Of a connection that couldn't be opened."""
    causes = list(_causes(error))
    where = f"the RabbitMQ broker at {address.server}"
    for cause in causes:
        if isinstance(cause, (exceptions.ProbableAuthenticationError, exceptions.AuthenticationError)) or (
            _code(cause) == ACCESS_REFUSED
        ):
            return UnusableError(
                f"{where} doesn't accept the user {credentials.user!r} with this password (from {credentials.source}); "
                "RabbitMQ lets the user guest in only from its own machine"
            )
        if isinstance(cause, exceptions.ProbableAccessDeniedError) or _code(cause) == NOT_ALLOWED:
            return UnusableError(
                f"{where} has no vhost {address.vhost!r}, or the user {credentials.user!r} has no rights in it; see "
                f"`rabbitmqctl list_vhosts` and `rabbitmqctl set_permissions -p {address.vhost} {credentials.user} …`"
            )
        if isinstance(cause, ssl.SSLCertVerificationError):
            return UnusableError(
                f"{where} shows a certificate that can't be trusted: {cause.verify_message}; name the authority that "
                "signed it with ?cafile=PATH"
            )
        if isinstance(cause, exceptions.IncompatibleProtocolError):
            return UnusableError(f"what answers at {address.server} is no RabbitMQ broker: {_text(cause)}")
        if isinstance(cause, socket.gaierror):
            return UnavailableError(f"there is no host {address.host!r}: {cause.strerror}")
    tls = next((cause for cause in causes if isinstance(cause, ssl.SSLError)), None)
    if tls is not None:
        return UnavailableError(f"{where} doesn't speak TLS as this side does: {tls.reason or tls}")
    told = next((_text(cause) for cause in causes if _text(cause)), type(error).__name__)
    return UnavailableError(f"{where} is out of reach: {told}")


def channel_error(address: Address, action: str, error: BaseException) -> BackendError:
    """Of a channel that was closed, or of a connection that was; `action`: what was asked for."""
    code, text = _code(error), _text(error)
    if code == NOT_FOUND:
        return MissingError(f"{address.server}: {text}")
    if code == ACCESS_REFUSED:
        return UnusableError(
            f"access denied: {action} ({text}); `mtask doctor` says which rights are missing"
        )
    if code == PRECONDITION_FAILED and timeout_of(error) is None:
        return UnusableError(
            f"{action}: what is there has other settings than mtask's ({text}); take another name, or remove it if "
            "nobody needs it, and call `mtask init` again"
        )
    if code is None or code in PASSING or code in (LOCKED, PRECONDITION_FAILED):
        return ChannelClosedError(f"the RabbitMQ broker at {address.server} broke off: {text}")
    return BackendError(f"{action}: RabbitMQ refuses: {text}")


def timeout_of(error: BaseException | None) -> float | None:
    """The broker's consumer_timeout in seconds, if this is what it closed a channel for."""
    if error is None or _code(error) != PRECONDITION_FAILED:
        return None
    found = _TIMED_OUT.search(_text(error))
    return int(found[1]) / 1000 if found else None


def _code(error: BaseException) -> int | None:
    code = getattr(error, "reply_code", None)
    return code if isinstance(code, int) else None


def _text(error: BaseException) -> str:
    reply = getattr(error, "reply_text", None)
    if isinstance(reply, str):
        return f"{_code(error)} {reply}"
    if isinstance(error, OSError) and error.strerror:
        return str(error.strerror)
    return str(error)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and those that led to it, the last ones first: pika wraps them, one attempt after another."""
    inner = [
        *getattr(error, "exceptions", ()),
        getattr(error, "exception", None),
        *error.args,
        error.__cause__,
    ]
    for each in inner:
        if isinstance(each, BaseException):
            yield from _causes(each)
    yield error
