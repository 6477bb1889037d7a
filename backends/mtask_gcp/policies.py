"""Which permissions each part of mtask needs at Google, for the smallest roles.

The permissions of each method of Pub/Sub: https://cloud.google.com/pubsub/docs/access-control#required_permissions; of
Firestore: https://firebase.google.com/docs/firestore/security/iam; of Cloud Storage:
https://cloud.google.com/storage/docs/access-control/iam-json. To make a topic or a subscription is a permission on the
project; the others can be given on single topics and subscriptions, but lanes come later, so it is simplest to give
all of them on the project. Those of Firestore can be given on nothing smaller than a database.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["GRANTS", "METHODS"]

METHODS: Mapping[str, Sequence[str]] = {
    "Firestore/BatchGetDocuments": ("datastore.entities.get",),
    "Firestore/BatchWrite": (
        "datastore.entities.create",
        "datastore.entities.delete",
        "datastore.entities.update",
    ),
    "Firestore/RunAggregationQuery": ("datastore.entities.get", "datastore.entities.list"),
    "Firestore/RunQuery": ("datastore.entities.get", "datastore.entities.list"),
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
"""Of google.firestore.v1 and google.pubsub.v1, as far as mtask calls them. Which of its three a BatchWrite needs depends on
the writes; mtask makes all kinds."""

_WORK = (
    "datastore.entities.create",
    "datastore.entities.delete",
    "datastore.entities.get",
    "datastore.entities.list",
    "datastore.entities.update",
    "pubsub.subscriptions.consume",
    "pubsub.subscriptions.create",
    "pubsub.subscriptions.get",
    "pubsub.topics.attachSubscription",
    "pubsub.topics.create",
    "pubsub.topics.publish",
    "storage.objects.create",
    "storage.objects.delete",
    "storage.objects.get",
)
"""To send to a lane is to make it, if it isn't there; whoever submits may also look at dead letters. To write an object again is
to delete the one before."""

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
"""By role: `mtask init`, of which the table's part has predefined roles only (the names of the permissions for settings of
fields have changed, and could not be tried here); submit, status, results, dead, …; `mtask worker`. Sorted."""
