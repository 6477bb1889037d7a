"""A queue on Google Pub/Sub.

    pubsub://my-project/reads          a topic with its subscription, both of this name

`mtask init` makes them. Credentials are application-default credentials, never in a URL; PUBSUB_EMULATOR_HOST
names an emulator.
"""

from __future__ import annotations

__all__: list[str] = []
