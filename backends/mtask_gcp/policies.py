"""Which permissions each part of mtask needs at Pub/Sub, for the smallest roles.

The permissions of each method: https://cloud.google.com/pubsub/docs/access-control#required_permissions. To make a
topic or a subscription is a permission on the project; the others can be given on single topics and subscriptions,
but lanes come later, so it is simplest to give all of them on the project.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["GRANTS", "METHODS"]

METHODS: Mapping[str, Sequence[str]] = {
    "Publisher/CreateTopic": ("pubsub.topics.create",),
    "Publisher/Publish": ("pubsub.topics.publish",),
    "Subscriber/Acknowledge": ("pubsub.subscriptions.consume",),
    "Subscriber/CreateSubscription": ("pubsub.subscriptions.create", "pubsub.topics.attachSubscription"),
    "Subscriber/GetSubscription": ("pubsub.subscriptions.get",),
    "Subscriber/ListSubscriptions": ("pubsub.subscriptions.list",),
    "Subscriber/ModifyAckDeadline": ("pubsub.subscriptions.consume",),
    "Subscriber/Pull": ("pubsub.subscriptions.consume",),
    "Subscriber/Seek": ("pubsub.subscriptions.consume",),
    "Subscriber/UpdateSubscription": ("pubsub.subscriptions.update",),
}
"""Of google.pubsub.v1, as far as mtask calls them."""

_WORK = (
    "pubsub.subscriptions.consume",
    "pubsub.subscriptions.create",
    "pubsub.subscriptions.get",
    "pubsub.topics.attachSubscription",
    "pubsub.topics.create",
    "pubsub.topics.publish",
)
"""To send to a lane is to make it, if it isn't there; whoever submits may also look at dead letters."""

GRANTS: Mapping[str, Sequence[str]] = {
    "setup": (
        "pubsub.subscriptions.create",
        "pubsub.subscriptions.get",
        "pubsub.subscriptions.update",
        "pubsub.topics.attachSubscription",
        "pubsub.topics.create",
    ),
    "manager": _WORK,
    "worker": _WORK,
}
"""By role: `mtask init`; submit, status, results, dead, …; `mtask worker`. Sorted."""
