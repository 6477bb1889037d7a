"""`mtask doctor` at Azure: who this is, what is there, and whether each operation is allowed.

An operation is tried in a way that can change nothing: on a message that isn't there. What can't be tried so is tried
rightly, on an empty queue beside yours, NAME-doctorXXXX, which is there for some seconds: lanes are made and removed as
that one is. A role takes up to ten minutes to take effect.
"""

from __future__ import annotations

import base64
import contextlib
import json
import secrets
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

from azure.storage.queue import QueueClient

from mtask.doctor import Finding, clock_finding
from mtask.errors import BackendError, MtaskError, UnavailableError, UnusableError
from mtask.meter import Meter
from mtask_azure.address import Address
from mtask_azure.client import CONNECTION_STRING, ROLE, Client, NoQueueError, signature_ends_at
from mtask_azure.names import address_of, physical

__all__ = ["diagnose"]

_NOBODYS = (str(uuid.UUID(int=0)), base64.b64encode(b"mtask doctor").decode())
"""A message that isn't there, and a receipt that nobody was given."""
SOON = timedelta(days=1)


def diagnose(urls: Sequence[str], roles: Collection[str]) -> Iterator[Finding]:
    """As mtask.registry says."""
    for url in urls:
        if url.startswith("azureq:"):
            yield from _queue(address_of(url), roles)


def _queue(address: Address, roles: Collection[str]) -> Iterator[Finding]:
    try:
        client = Client(address, Meter())
    except MtaskError as error:
        yield Finding.problem("credentials", error, stops=True)
        return
    try:
        yield from _identity(client)
        yield from _there(client, address, roles)
    except MtaskError as error:
        yield Finding.problem("credentials", error, stops=True)
    finally:
        client.close()


# -- who and where ----------------------------------------------------------------------------------


def _identity(client: Client) -> Iterator[Finding]:
    """Raises what asking for credentials raises."""
    where = f"at {client.host}"
    if client.by_identity:
        yield Finding("credentials", True, f"{_who(client.token())}, {where}")
        return
    ends_at = signature_ends_at()
    if ends_at is None:
        yield Finding("credentials", True, f"by {CONNECTION_STRING}, {where}")
        return
    left = ends_at - datetime.now(UTC)
    if left <= timedelta(0):
        text = f"the shared access signature in {CONNECTION_STRING} expired at {ends_at:%Y-%m-%d %H:%M} UTC"
        yield Finding("credentials", False, text, "set a new one", True)
    elif left < SOON:
        text = f"the shared access signature ends at {ends_at:%Y-%m-%d %H:%M} UTC, {where}"
        yield Finding("credentials", False, text, "set one that lasts longer than the bag takes")
    else:
        yield Finding(
            "credentials", True, f"a shared access signature until {ends_at:%Y-%m-%d %H:%M} UTC, {where}"
        )


def _who(token: str) -> str:
    """Whose token it is, as the token itself says (Microsoft identity platform, "Access token claims reference")."""
    with contextlib.suppress(ValueError, IndexError):
        part = token.split(".")[1]
        claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
        name = claims.get("upn") or claims.get("unique_name") or claims.get("appid") or claims.get("oid")
        if name:
            return f"{name} of tenant {claims.get('tid', 'unknown')}"
    return "an identity that doesn't say who it is"


def _clock(headers: dict[str, str], asked_s: float, took_s: float) -> Iterator[Finding]:
    date = next((value for name, value in headers.items() if name.lower() == "date"), None)
    if date is None:
        return
    # The header has whole seconds, cut off; the request may have been answered at any moment of its way.
    ahead_s = asked_s + took_s / 2 - (parsedate_to_datetime(date).timestamp() + 0.5)
    sure_s = max(0.0, abs(ahead_s) - 0.5 - took_s / 2)
    yield clock_finding(sure_s if ahead_s > 0 else -sure_s, "Azure")


# -- trying -----------------------------------------------------------------------------------------


def _there(client: Client, address: Address, roles: Collection[str]) -> Iterator[Finding]:
    queue, headers = client.queue(address.name), dict[str, str]()
    asked_s = time.time()
    try:
        with client.errors("read the settings"):
            queue.get_queue_properties(
                raw_response_hook=lambda answer: headers.update(answer.http_response.headers)
            )
    except NoQueueError:
        yield from _clock(headers, asked_s, time.time() - asked_s)
        text = f"there is no queue {address.name!r} in the storage account {address.account!r}"
        yield Finding("queue", False, text, "`mtask init` makes it", True)
        return
    except UnusableError as error:
        yield from _clock(headers, asked_s, time.time() - asked_s)
        yield Finding.problem("queue", error, stops=True)
        return
    yield from _clock(headers, asked_s, time.time() - asked_s)
    tried = _Trial(client)
    yield from tried("peek", address.name, lambda: queue.peek_messages(max_messages=1))
    if "worker" in roles:
        yield from tried(
            "update", address.name, lambda: queue.update_message(*_NOBODYS, visibility_timeout=0)
        )
        yield from tried("delete", address.name, lambda: queue.delete_message(*_NOBODYS))
    yield from _lane(client, tried, address)
    yield from _poison(client, address)


class _Trial:
    """Tries operations; what isn't allowed makes a finding each."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.worked = False
        """Did the last one?"""

    def __call__(self, action: str, name: str, call: Callable[[], object]) -> Iterator[Finding]:
        shown = f"azureq://{self._client.address.account}/{name}"
        self.worked = False
        try:
            with self._client.errors(action, shown):
                call()
        except UnusableError as error:
            yield Finding(action, False, str(error), self._todo())
            return
        except UnavailableError as error:
            yield Finding(action, None, f"can't be told: {error}")
            return
        except BackendError:
            pass  # it was looked at, and refused for another reason
        self.worked = True
        yield Finding(action, True, f"allowed on {name}")

    def _todo(self) -> str:
        if not self._client.by_identity:
            return "make a signature for the services queue and table, all resource types, and sp=rwdlacup"
        return (
            f"az role assignment create --role '{ROLE}' --assignee IDENTITY --scope "
            f"$(az storage account show --name {self._client.address.account} --query id --output tsv)"
        )


def _lane(client: Client, tried: _Trial, address: Address) -> Iterator[Finding]:
    """Lanes are queues of their own; a role on just one queue doesn't reach them."""
    name = physical(address, f"doctor{secrets.token_hex(4)}")  # a name is blocked for a while after a removal
    queue, shown = client.queue(name), physical(address, "x").removesuffix("x") + "*"
    made = list(tried("make a queue", shown, queue.create_queue))
    yield from made
    if not tried.worked:
        return
    try:
        for action, call in _messages(queue).items():
            yield from tried(action, shown, call)
    finally:
        removed = list(tried("remove a queue", shown, queue.delete_queue))
    for finding in removed:
        left = "" if finding.ok else f"; and remove the queue {name}, which was made to try this"
        yield finding._replace(todo=finding.todo + left)


def _messages(queue: QueueClient) -> dict[str, Callable[[], object]]:
    return {
        "send": lambda: queue.send_message("e30=", time_to_live=60),
        "receive": lambda: list(queue.receive_messages(max_messages=1, visibility_timeout=1)),
    }


def _poison(client: Client, address: Address) -> Iterator[Finding]:
    name = physical(address, poison=True)
    try:
        with client.errors("read the settings", f"azureq://{address.account}/{name}"):
            count = client.queue(name).get_queue_properties().approximate_message_count or 0
    except NoQueueError:
        yield Finding("poison queue", False, f"there is no queue {name!r}", "`mtask init` makes it")
        return
    except MtaskError as error:
        yield Finding.problem("poison queue", error)
        return
    if count:
        text = f"{count:,} messages in {name} that were received too often"
        todo = "`mtask dead` shows them; `mtask repair BAG` sends their tasks again"
        yield Finding("poison queue", False, text, todo)
    else:
        yield Finding("poison queue", True, f"{name}, with nothing in it")
