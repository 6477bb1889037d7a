"""Makes topics and subscriptions: `mtask init` the queue's and those of its dead letters, workers the lanes'.

With a dead-letter policy Pub/Sub says how often it has delivered a message, and takes out what was delivered `ATTEMPTS` times, as a last
net below mtask's own: tasks that kill their workers end after `max_deliveries`, and what is given back isn't counted. The number
is the largest that Pub/Sub takes.
"""

from __future__ import annotations

from typing import Any

from google.pubsub_v1 import types

from mtask.errors import BackendError, UnusableError
from mtask.registry import CHANGED, MADE, THERE
from mtask_gcp.address import Address
from mtask_gcp.client import Client, ExistsError, MissingError
from mtask_gcp.names import address_of, physical, subscription_path, topic_path

__all__ = ["ATTEMPTS", "RETENTION_S", "find_subscription", "make_lane", "make_queue"]

ATTEMPTS = 100
ACK_S = 10
"""The deadline of what was pulled until mtask sets its own, at once. So what comes with an answer that gets lost waits no longer."""
DEAD_ACK_S = 600
RETENTION_S = 7 * 86_400
"""What was in the queue for longer is found by `mtask repair`. Google bills the storage of what waits for more than a day."""
LABEL = "mtask"
QUEUE, LANE, DEAD = "queue", "lane", "dead"
REQUEST_S = 30.0
_DELETED = "_deleted-topic_"


def make_queue(url: str) -> list[tuple[str, str]]:
    """Make the topic and the subscription of the queue at `url`, and those of its dead letters, unless they are there already.

    Returns, for each, (what, MADE | THERE | CHANGED). A subscription that is there is changed only where it
    could lose messages: kept for less than 7 days, removed when nobody uses it for a while, without a dead-letter policy. Its other
    settings are its owner's. Raises UsageError, UnusableError (no right to it), UnavailableError.
    """
    address = address_of(url)
    client = Client(address)
    dead, name = physical(address, dead=True), physical(address)
    try:
        made = [
            _make_topic(client, address, dead, DEAD),
            _make_subscription(client, address, dead, _settings(address, dead, DEAD, ack_s=DEAD_ACK_S)),
            _make_topic(client, address, name, QUEUE),
            _make_subscription(
                client, address, name, _settings(address, name, QUEUE, ack_s=ACK_S) | _dead_policy(address)
            ),
        ]
    finally:
        client.close()
    return made


def find_subscription(client: Client, address: Address, name: str) -> types.Subscription | None:
    """The subscription of the main queue; None for one who may receive from it, but not look at it.

    Raises UnusableError if there is none, or it gets nothing of what is sent.
    """
    path = subscription_path(address, name)
    try:
        found = _look(client, path)
    except MissingError:
        raise UnusableError(
            f"there is no subscription {name!r} in the project {address.project}; make it with `mtask init`, or name "
            f"another project (pubsub://PROJECT/{address.name})"
        ) from None
    except UnusableError as error:
        if "pubsub.subscriptions.get" in str(error):
            return None
        raise
    if found.topic != topic_path(address, name):
        what = "a topic that was deleted" if found.topic == _DELETED else found.topic
        raise UnusableError(
            f"{path} is a subscription of {what}, and gets nothing of what is sent; delete it, make it again with "
            "`mtask init`, and send what was in it with `mtask repair BAG`"
        )
    return found


def make_lane(client: Client, address: Address, lane: str) -> None:
    """Make this lane's topic and subscription, with the settings of the main one's, unless they are there.

    Raises UnusableError without a main queue.
    """
    name, path = physical(address, lane), subscription_path(address, physical(address, lane))
    try:
        found = _look(client, path)
    except MissingError:
        pass
    else:
        if found.topic == topic_path(address, name):
            return
        raise UnusableError(
            f"{path} is a subscription of {found.topic}, and gets nothing of what is sent; delete it, and send what was in "
            "it with `mtask repair BAG`"
        )
    try:
        main = _look(client, subscription_path(address, physical(address)))
    except MissingError:
        raise UnusableError(
            f"there is no subscription {physical(address)!r} in the project {address.project}; make it with `mtask init`"
        ) from None
    alike: dict[str, Any] = {
        "ack_deadline_seconds": main.ack_deadline_seconds,
        "message_retention_duration": main.message_retention_duration,
        "retain_acked_messages": main.retain_acked_messages,
        "enable_exactly_once_delivery": main.enable_exactly_once_delivery,
    }
    if main.dead_letter_policy.dead_letter_topic:
        alike["dead_letter_policy"] = main.dead_letter_policy
    labels = {**dict(main.labels), LABEL: LANE}
    _make_topic(client, address, name, LANE)
    _make_subscription(
        client, address, name, _settings(address, name, LANE) | alike | {"labels": labels}, change=False
    )


def _settings(address: Address, name: str, kind: str, *, ack_s: int = ACK_S) -> dict[str, Any]:
    return {
        "name": subscription_path(address, name),
        "topic": topic_path(address, name),
        "ack_deadline_seconds": ack_s,
        "message_retention_duration": {"seconds": RETENTION_S},
        "expiration_policy": {},  # never: without it, after 31 days in which nobody used it
        "labels": {LABEL: kind},
    }


def _dead_policy(address: Address) -> dict[str, Any]:
    topic = topic_path(address, physical(address, dead=True))
    return {"dead_letter_policy": {"dead_letter_topic": topic, "max_delivery_attempts": ATTEMPTS}}


def _make_topic(client: Client, address: Address, name: str, kind: str) -> tuple[str, str]:
    path, what = topic_path(address, name), f"topic {name} in {address.project}"
    try:
        with client.errors("pubsub.topics.create", path):
            client.publisher.create_topic(
                request={"name": path, "labels": {LABEL: kind}}, timeout=REQUEST_S, retry=None
            )
    except ExistsError:
        return what, THERE
    return what, MADE


def _make_subscription(
    client: Client, address: Address, name: str, wanted: dict[str, Any], *, change: bool = True
) -> tuple[str, str]:
    path, what = wanted["name"], f"subscription {name} in {address.project}"
    try:
        with client.errors("pubsub.subscriptions.create", path):
            client.subscriber.create_subscription(request=wanted, timeout=REQUEST_S, retry=None)
    except ExistsError:
        return what, _change(client, path, wanted) if change else THERE
    return what, MADE


def _change(client: Client, path: str, wanted: dict[str, Any]) -> str:
    present = _look(client, path)
    if present.topic != wanted["topic"]:
        raise BackendError(
            f"{path} is a subscription of {present.topic}, not of {wanted['topic']}; delete it "
            f"(`gcloud pubsub subscriptions delete {path}`), then `mtask init` makes it again"
        )
    changes: dict[str, Any] = {}
    if present.message_retention_duration.total_seconds() < RETENTION_S:
        changes["message_retention_duration"] = wanted["message_retention_duration"]
    if present.expiration_policy.ttl:
        changes["expiration_policy"] = {}
    if "dead_letter_policy" in wanted and not present.dead_letter_policy.dead_letter_topic:
        changes["dead_letter_policy"] = wanted["dead_letter_policy"]
    if not changes:
        return THERE
    request = {"subscription": {"name": path, **changes}, "update_mask": {"paths": list(changes)}}
    with client.errors("pubsub.subscriptions.update", path):
        client.subscriber.update_subscription(request=request, timeout=REQUEST_S, retry=None)
    return CHANGED


def _look(client: Client, path: str) -> types.Subscription:
    with client.errors("pubsub.subscriptions.get", path):
        return client.subscriber.get_subscription(subscription=path, timeout=REQUEST_S, retry=None)
