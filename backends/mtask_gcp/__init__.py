"""A queue on Google Pub/Sub.

    pubsub://my-project/reads          a topic with its subscription, both of this name

`mtask init` makes them. Credentials are application-default credentials, never in a URL; PUBSUB_EMULATOR_HOST
names an emulator.
"""

from __future__ import annotations

from mtask_gcp.doctor import diagnose
from mtask_gcp.prices import PRICES, queue_units
from mtask_gcp.queue import PubSubQueue
from mtask_gcp.setup_queue import make_queue

__all__ = [
    "PRICES",
    "WORKER_ENVIRONMENT",
    "PubSubQueue",
    "diagnose",
    "make_queue",
    "open_queue",
    "queue_units",
]

WORKER_ENVIRONMENT = ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CLOUD_PROJECT", "PUBSUB_EMULATOR_HOST")


def open_queue(url: str) -> PubSubQueue:
    """Raises UsageError for a URL that can't be used, UnusableError where there is no such queue or no right to it."""
    return PubSubQueue.open(url)
