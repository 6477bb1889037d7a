"""`mtask doctor` at Pub/Sub: is the queue there, and is each permission given?

Pub/Sub says itself which permissions of a topic or a subscription its caller has (`TestIamPermissions`). To make one is a
permission on the project, which Pub/Sub doesn't tell: so the topic and the subscription that are there are made once more. That changes
nothing, and is answered with "already exists" to those who may. Where it can't be seen that they are there, it isn't tried.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from google.api_core import exceptions
from google.auth.exceptions import GoogleAuthError
from google.pubsub_v1 import types

from mtask.doctor import Finding
from mtask.errors import BackendError, MtaskError, UnusableError
from mtask.registry import ROLES
from mtask_gcp.address import Address
from mtask_gcp.client import Client, ExistsError, MissingError
from mtask_gcp.names import physical, subscription_path, topic_path
from mtask_gcp.setup_queue import ATTEMPTS, RETENTION_S

__all__ = ["queue_findings"]

REQUEST_S = 15.0
_DAY_S = 86_400
_DELETED = "_deleted-topic_"
_SERVICE = re.compile(r"serviceAccount:service-\d+@gcp-sa-pubsub\.iam\.gserviceaccount\.com")
"""Google's own, which moves dead letters."""
_PUBLISHERS = {"roles/pubsub.publisher", "roles/pubsub.editor", "roles/pubsub.admin", "roles/editor"}


def queue_findings(address: Address, roles: Collection[str]) -> Iterator[Finding]:
    """About the queue: its subscription, what somebody in these roles must be allowed, its dead letters."""
    client = Client(address)
    try:
        found = None
        for finding, seen in _subscription(client, address):
            found = seen or found
            yield finding
            if finding.stops:
                return
        yield from _permissions(client, address, roles)
        yield from _making(client, address, there=found is not None)
        if found is not None:
            yield from _dead(client, address, found, roles)
    finally:
        client.close()


# -- the subscription -------------------------------------------------------------------------------


def _subscription(client: Client, address: Address) -> Iterator[tuple[Finding, types.Subscription | None]]:
    name = physical(address)
    path = subscription_path(address, name)
    try:
        with client.errors("pubsub.subscriptions.get", path):
            found = client.subscriber.get_subscription(subscription=path, timeout=REQUEST_S, retry=None)
    except MissingError:
        text = f"there is no subscription {name!r} in the project {address.project}"
        yield Finding("queue", False, text, "`mtask init` makes it", True), None
        return
    except UnusableError as error:
        yield Finding.problem("pubsub.subscriptions.get", error), None
        return
    except BackendError as error:
        yield Finding.problem("queue", error, stops=True), None
        return
    for finding in _settings(address, found):
        yield finding, found


def _settings(address: Address, found: types.Subscription) -> Iterator[Finding]:
    topic = topic_path(address, physical(address))
    if found.topic != topic:
        what = "its topic was deleted" if found.topic == _DELETED else f"it is one of {found.topic}"
        todo = (
            f"delete it (`gcloud pubsub subscriptions delete {found.name}`), then `mtask init`, and `mtask repair BAG` for what "
            "was in it"
        )
        yield Finding("subscription", False, f"it gets nothing of what is sent: {what}", todo, True)
        return
    if endpoint := found.push_config.push_endpoint:
        text = f"pushes to {endpoint}: `mtask worker` gets nothing of the queue itself, only of lanes"
        yield Finding("subscription", None, text)
    else:
        yield Finding("subscription", True, f"{found.name}, deadline {found.ack_deadline_seconds} s")
    if found.filter:
        text, todo = f"it leaves out what doesn't match {found.filter!r}", "make one without a filter"
        yield Finding("filter", False, text, todo)
    kept_s = found.message_retention_duration.total_seconds()
    short = kept_s < RETENTION_S
    todo = "`mtask init` has them kept for 7; `mtask repair BAG` sends what is lost" if short else ""
    yield Finding("retention", not short, f"messages are kept for {kept_s / _DAY_S:g} days", todo)
    if ttl := found.expiration_policy.ttl:
        text = (
            f"the subscription is removed when nobody has used it for {ttl.total_seconds() / _DAY_S:g} days"
        )
        yield Finding("expiration", False, text, "`mtask init` switches that off")


# -- permissions ------------------------------------------------------------------------------------


def _permissions(client: Client, address: Address, roles: Collection[str]) -> Iterator[Finding]:
    name = physical(address)
    topic, subscription = topic_path(address, name), subscription_path(address, name)
    of_topic = ["pubsub.topics.publish", "pubsub.topics.attachSubscription"]
    of_subscription = ["pubsub.subscriptions.get"]
    if "worker" in roles:
        of_subscription.insert(0, "pubsub.subscriptions.consume")
    by = " and ".join(f"{role}s" for role in ROLES if role in roles)
    yield from _tested(client.publisher, topic, of_topic, by)
    yield from _tested(client.subscriber, subscription, of_subscription, by)


def _making(client: Client, address: Address, *, there: bool) -> Iterator[Finding]:
    if not there:
        for permission in ("pubsub.topics.create", "pubsub.subscriptions.create"):
            text = "can't be told: without pubsub.subscriptions.get it isn't known whether the queue is there, and trying might make it"
            yield Finding(permission, None, text)
        return
    name = physical(address)
    topic, subscription = topic_path(address, name), subscription_path(address, name)
    again = {"name": subscription, "topic": topic}
    yield from _made_again(
        client,
        "pubsub.topics.create",
        address,
        lambda: client.publisher.create_topic(name=topic, timeout=REQUEST_S, retry=None),
    )
    yield from _made_again(
        client,
        "pubsub.subscriptions.create",
        address,
        lambda: client.subscriber.create_subscription(request=again, timeout=REQUEST_S, retry=None),
    )


def _tested(asked: Any, path: str, permissions: Sequence[str], by: str) -> Iterator[Finding]:
    request = {"resource": path, "permissions": list(permissions)}
    try:
        given = set(asked.test_iam_permissions(request=request, timeout=REQUEST_S).permissions)
    except exceptions.MethodNotImplemented:
        yield Finding("permissions", None, "can't be told: the emulator has none")
        return
    except (exceptions.GoogleAPICallError, GoogleAuthError) as error:
        yield Finding("permissions", None, f"can't be told on {path}: {error}")
        return
    for permission in permissions:
        if permission in given:
            yield Finding(permission, True, f"given on {path}")
        else:
            yield Finding(permission, False, f"not given on {path}", _todo(permission, by))


def _made_again(
    client: Client, permission: str, address: Address, make: Callable[[], Any]
) -> Iterator[Finding]:
    on = f"the project {address.project}"
    try:
        with client.errors(permission, on):
            make()
    except ExistsError:
        yield Finding(permission, True, f"given on {on}")
    except UnusableError as error:
        yield Finding(permission, False, str(error), "lanes are made by those who need them")
    except MtaskError as error:
        yield Finding(permission, None, f"can't be told: {error}")
    else:
        yield Finding(permission, True, f"given on {on}")


def _todo(permission: str, by: str) -> str:
    role = {
        "pubsub.topics.publish": "roles/pubsub.publisher",
        "pubsub.subscriptions.consume": "roles/pubsub.subscriber",
        "pubsub.subscriptions.get": "roles/pubsub.viewer",
    }.get(permission, "roles/pubsub.editor")
    return f"{by} need it: give them {role}, or a role of your own as in docs/backends/gcp.md"


# -- dead letters -----------------------------------------------------------------------------------


def _dead(
    client: Client, address: Address, found: types.Subscription, roles: Collection[str]
) -> Iterator[Finding]:
    policy = found.dead_letter_policy
    if not policy.dead_letter_topic:
        text = "none are kept, and nothing says how often a message was delivered"
        yield Finding("dead letters", False, text, "`mtask init` sees to that")
        return
    name = physical(address, dead=True)
    path = subscription_path(address, name)
    try:
        with client.errors("pubsub.subscriptions.get", path):
            client.subscriber.get_subscription(subscription=path, timeout=REQUEST_S, retry=None)
    except MissingError:
        text = f"they go to {policy.dead_letter_topic}, which has no subscription {name!r}: they are lost"
        yield Finding("dead letters", False, text, "`mtask init` makes it")
        return
    except BackendError as error:
        yield Finding("dead letters", None, f"can't be told: {error}")
        return
    few = policy.max_delivery_attempts < ATTEMPTS
    text = f"to {policy.dead_letter_topic}, after {policy.max_delivery_attempts} deliveries"
    todo = f"`--max-delivery-attempts={ATTEMPTS}`: looks at what is delayed are counted, too" if few else ""
    yield Finding("dead letters", not few, text, todo)
    if "manager" in roles:
        yield from _tested(client.subscriber, path, ["pubsub.subscriptions.consume"], "managers")
    yield from _mover(client, policy.dead_letter_topic)


def _mover(client: Client, topic: str) -> Iterator[Finding]:
    """May Google's own account publish there?"""
    what = "who moves them"
    try:
        policy = client.publisher.get_iam_policy(request={"resource": topic}, timeout=REQUEST_S)
    except (exceptions.GoogleAPICallError, GoogleAuthError) as error:
        text = f"whether Pub/Sub's own account may publish to {topic} can't be told: {type(error).__name__}"
        yield Finding(what, None, text)
        return
    members = [each for binding in policy.bindings if binding.role in _PUBLISHERS for each in binding.members]
    if any(map(_SERVICE.match, members)):
        yield Finding(what, True, f"Pub/Sub's own account may publish to {topic}")
    else:
        text = f"the policy of {topic} doesn't name Pub/Sub's own account; that of the project may"
        yield Finding(what, None, text, "see docs/backends/gcp.md, Dead letters")
