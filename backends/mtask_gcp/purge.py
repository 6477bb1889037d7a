"""Empties a queue and its lanes: `python -m mtask_gcp.purge pubsub://PROJECT/NAME`.

By seeking each subscription to the present: Pub/Sub then takes all that was published before as acknowledged, without
delivering, and billing, it (https://cloud.google.com/pubsub/docs/replay-overview). Workers drop the messages of cancelled
bags anyway; this is for many of them. What belonged to other bags is gone from the queue, too: `mtask repair BAG` sends it again.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from mtask.errors import MtaskError, UnusableError
from mtask_gcp.address import Address
from mtask_gcp.client import Client, MissingError
from mtask_gcp.names import address_of, physical, subscription_path
from mtask_gcp.setup_queue import LABEL, LANE

__all__ = ["main", "purge"]

REQUEST_S = 60.0


def purge(url: str) -> list[str]:
    """The names of the subscriptions that were emptied. Raises UsageError, UnusableError, UnavailableError."""
    address = address_of(url)
    client = Client(address)
    try:
        names = [physical(address), *_lanes(client, address)]
        for name in names:
            _seek(client, address, name)
    finally:
        client.close()
    return names


def _lanes(client: Client, address: Address) -> list[str]:
    project, begin = f"projects/{address.project}", subscription_path(address, f"{address.name}-")
    with client.errors("pubsub.subscriptions.list", project):
        listed = client.subscriber.list_subscriptions(project=project, timeout=REQUEST_S, retry=None)
        return [
            each.name.rpartition("/")[2]
            for each in listed
            if each.name.startswith(begin) and each.labels.get(LABEL) == LANE
        ]


def _seek(client: Client, address: Address, name: str) -> None:
    path, now = subscription_path(address, name), time.time()
    request = {"subscription": path, "time": {"seconds": int(now), "nanos": int(now % 1 * 1e9)}}
    try:
        with client.errors("pubsub.subscriptions.consume", path):
            client.subscriber.seek(request=request, timeout=REQUEST_S, retry=None)
    except MissingError:
        raise UnusableError(f"there is no subscription {name!r} in the project {address.project}") from None


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m mtask_gcp.purge pubsub://PROJECT/NAME", file=sys.stderr)
        return 2
    try:
        names = purge(arguments[0])
    except MtaskError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"emptied {', '.join(names)}; `mtask repair BAG` sends again what a bag still needs")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
