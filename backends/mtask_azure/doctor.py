"""`mtask doctor` at Azure: who this is, what is there, and whether each operation is allowed.

An operation is tried in a way that can change nothing: on a message or an entity that isn't there. What can't be tried
so is tried rightly: on an empty queue beside yours, NAME-doctorXXXX, which is there for some seconds (lanes are made and
removed as that one is), and with a blob of a few bytes, `doctor/…`. A role takes up to ten minutes to take effect.
"""

from __future__ import annotations

import base64
import json
import secrets
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

from azure.core import MatchConditions
from azure.core.exceptions import HttpResponseError
from azure.storage.queue import QueueClient

from mtask.doctor import Finding, clock_findings
from mtask.errors import MtaskError, UnavailableError
from mtask.meter import Meter
from mtask_azure.address import Address, queue_address, table_address
from mtask_azure.client import Account, Queues
from mtask_azure.connection import CONNECTION
from mtask_azure.faults import (
    BEING_DELETED,
    BLOB,
    DENIED,
    QUEUE,
    SIGNATURE,
    TABLE,
    NoQueueError,
    Service,
    code_of,
)
from mtask_azure.names import physical

__all__ = ["diagnose"]

SOON = timedelta(days=1)
_ONCE = ("credentials", "clock")
"""What is found of the queue and of the table alike."""
_NOBODYS = (str(uuid.UUID(int=0)), base64.b64encode(b"mtask doctor").decode())
"""A message that isn't there, and a receipt that nobody was given."""
_NOTHING = ("doctor", "nothing")
"""No entity has these keys."""
_NEVER = "W/\"datetime'2000-01-01T00%3A00%3A00.0000000Z'\""
"""An ETag that no entity has: there was no Azure then."""
_MISSING = {"ContainerNotFound", "QueueNotFound", "TableNotFound"}


def diagnose(urls: Sequence[str], roles: Collection[str]) -> Iterator[Finding]:
    """As mtask.registry says."""
    well: set[str] = set()
    for url in urls:
        for finding in _findings(url, roles):
            if finding.what in _ONCE and finding.what in well and finding.ok:
                continue
            yield finding
            if finding.what == "credentials" and finding.stops:
                return
            if finding.ok:
                well.add(finding.what)


def _findings(url: str, roles: Collection[str]) -> Iterator[Finding]:
    try:
        if url.startswith("azureq:"):
            queues = Queues(queue_address(url), Meter())
            with closing(queues):
                yield from _identity(queues.account, queues.host)
                yield from _queue(queues, roles)
        elif url.startswith("azuretable:"):
            with closing(Account(table_address(url))) as account:
                yield from _table(account)
    except MtaskError as error:
        yield Finding.problem("credentials", error, stops=True)


# -- who and where ----------------------------------------------------------------------------------


def _identity(account: Account, host: str) -> Iterator[Finding]:
    """Raises what asking for credentials raises."""
    where, connection = f"at {host}", account.connection
    if connection is None:
        yield Finding("credentials", True, f"{_who(account.token())}, {where}")
        return
    ends_at = connection.ends_at
    if ends_at is None:
        yield Finding("credentials", True, f"{account.how}, {where}")
        return
    until = f"{ends_at:%Y-%m-%d %H:%M} UTC"
    if connection.ended:
        text = f"the shared access signature in {CONNECTION} expired at {until}"
        yield Finding("credentials", False, text, "set a new one", True)
    elif ends_at - datetime.now(UTC) < SOON:
        text = f"the shared access signature ends at {until}, {where}"
        yield Finding("credentials", False, text, "set one that lasts longer than the bag takes")
    else:
        yield Finding("credentials", True, f"a shared access signature until {until}, {where}")


def _who(token: str) -> str:
    """Whose token it is, as the token itself says (Microsoft identity platform, "Access token claims reference")."""
    with suppress(ValueError, IndexError):
        part = token.split(".")[1]
        claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
        name = claims.get("upn") or claims.get("unique_name") or claims.get("appid") or claims.get("oid")
        if name:
            return f"{name} of tenant {claims.get('tid', 'unknown')}"
    return "an identity that doesn't say who it is"


class _Clock:
    """Sees when answers were given."""

    def __init__(self) -> None:
        self._asked_s = time.time()
        self._answers: list[tuple[str | None, float]] = []

    def saw(self, response: Any) -> None:
        self._answers.append((response.http_response.headers.get("Date"), time.time() - self._asked_s))

    def findings(self) -> Iterator[Finding]:
        if self._answers:
            date, took_s = self._answers[0]
            yield from clock_findings(date, self._asked_s, took_s, "Azure")


# -- trying -----------------------------------------------------------------------------------------


class _Trial:
    """Tries what needs a role."""

    def __init__(self, account: Account, service: Service) -> None:
        self._account, self._service = account, service
        self.worked = False
        """Did the last one?"""
        self.code = ""
        """Of what the last one was refused for; empty: it wasn't."""

    def __call__(
        self, what: str, action: str, shown: str, call: Callable[[], object], *, stops: bool = False
    ) -> Iterator[Finding]:
        """`stops`: nothing works without it."""
        self.worked, self.code = False, ""
        try:
            with self._account.errors(action, self._service, shown):
                try:
                    call()
                except HttpResponseError as error:
                    self.code = code_of(error) or str(error.status_code)
                    if self._matters(error):
                        raise
        except UnavailableError as error:
            yield Finding(what, None, f"can't be told: {error}")
        except MtaskError as error:
            todo = "`mtask init` makes it" if self.code in _MISSING else self._todo()
            yield Finding(what, False, str(error), todo, stops)
        else:
            self.worked = True
            yield Finding(what, True, f"allowed on {shown}")

    def _matters(self, error: HttpResponseError) -> bool:
        """Does it say more than that there is nothing, or that a condition doesn't hold?"""
        if self.code in _MISSING | DENIED | BEING_DELETED:
            return True
        # A receipt of nobody's: as it is no receipt at all, or as there is no such message.
        return error.status_code not in ((400, 404) if self._service is QUEUE else (404, 409, 412))

    def _todo(self) -> str:
        if self.code not in DENIED:
            return ""
        if self._account.connection is not None:
            return f"make a signature for {SIGNATURE}"
        return (
            f"az role assignment create --role '{self._service.role}' --assignee IDENTITY --scope "
            f"$(az storage account show --name {self._account.address.account} --query id --output tsv)"
        )


# -- the queue --------------------------------------------------------------------------------------


def _queue(queues: Queues, roles: Collection[str]) -> Iterator[Finding]:
    address, clock = queues.address, _Clock()
    queue = queues.queue(address.name)
    try:
        with queues.errors("read the settings"):
            queue.get_queue_properties(raw_response_hook=clock.saw)
    except NoQueueError:
        yield from clock.findings()
        text = f"there is no queue {address.name!r} in the storage account {address.account!r}"
        yield Finding("queue", False, text, "`mtask init` makes it", True)
        return
    except MtaskError as error:
        yield from clock.findings()
        yield Finding.problem("queue", error, stops=True)
        return
    yield from clock.findings()
    tried = _Trial(queues.account, QUEUE)
    yield from tried("peek", "peek", address.url, lambda: queue.peek_messages(max_messages=1))
    if "worker" in roles:
        update = lambda: queue.update_message(*_NOBODYS, visibility_timeout=0)  # noqa: E731
        yield from tried("update", "update", address.url, update)
        yield from tried("delete", "delete", address.url, lambda: queue.delete_message(*_NOBODYS))
    yield from _lane(queues, tried)
    yield from _poison(queues)


def _lane(queues: Queues, tried: _Trial) -> Iterator[Finding]:
    """Lanes are queues of their own; a role on just one queue doesn't reach them."""
    address = queues.address
    name = physical(address, f"doctor{secrets.token_hex(4)}")  # a name is blocked for a while after a removal
    queue = queues.queue(name)
    shown = address._replace(name=physical(address, "x").removesuffix("x") + "*").url
    yield from tried("make a queue", "make a queue", shown, queue.create_queue)
    if not tried.worked:
        return
    try:
        for action, call in _messages(queue).items():
            yield from tried(action, action, shown, call)
    finally:
        removed = list(tried("remove a queue", "remove a queue", shown, queue.delete_queue))
    for finding in removed:
        left = "" if finding.ok else f"; and remove the queue {name}, which was made to try this"
        yield finding._replace(todo=finding.todo + left)


def _messages(queue: QueueClient) -> dict[str, Callable[[], object]]:
    return {
        "send": lambda: queue.send_message("e30=", time_to_live=60),
        "receive": lambda: list(queue.receive_messages(max_messages=1, visibility_timeout=1)),
    }


def _poison(queues: Queues) -> Iterator[Finding]:
    name = physical(queues.address, poison=True)
    try:
        with queues.errors("read the settings", queues.address._replace(name=name).url):
            count = queues.queue(name).get_queue_properties().approximate_message_count or 0
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


# -- the table --------------------------------------------------------------------------------------


def _table(account: Account) -> Iterator[Finding]:
    """All roles need the same rights."""
    address, clock = account.address, _Clock()
    table = account.table(clock.saw)
    yield from _identity(account, table.url.partition("://")[2].partition("/")[0])
    tried = _Trial(account, TABLE)
    entity = dict(zip(("PartitionKey", "RowKey"), _NOTHING, strict=True))
    condition: dict[str, Any] = {"etag": _NEVER, "match_condition": MatchConditions.IfNotModified}
    first = list(tried("table", "read", address.url, lambda: table.get_entity(*_NOTHING), stops=True))
    yield from clock.findings()
    yield from first
    if not tried.worked:
        return
    calls: dict[str, Callable[[], object]] = {
        "write": lambda: table.update_entity(entity, **condition),
        "delete": lambda: table.delete_entity(*_NOTHING, **condition),
    }
    for action, call in calls.items():
        yield from tried(f"table: {action}", action, address.url, call)
    yield from _container(account, address)


def _container(account: Account, address: Address) -> Iterator[Finding]:
    """Bags of small tasks need none: so nothing of it stops anything."""
    tried = _Trial(account, BLOB)
    blob = account.container().get_blob_client(f"doctor/{secrets.token_hex(8)}")
    calls: dict[str, Callable[[], object]] = {
        "container": lambda: blob.upload_blob(b"mtask doctor", overwrite=True),
        "container: read": lambda: blob.download_blob().readall(),
        "container: delete": blob.delete_blob,
    }
    for what, call in calls.items():
        yield from tried(what, what.partition(": ")[2] or "write", address.place, call)
        if not tried.worked:
            return
