"""One execution: this process runs the one message that it is handed, and ends. Started by platform.py.

Standard input has the delivery, as JSON. The exit status says whether the platform may delete it.
"""

from __future__ import annotations

import json
import os
import sys

import mtask
from mtask.model import Delivery
from mtask.oneshot import OneShotQueue
from mtask.serverless import options_within
from mtask.worker.supervisor import Worker


def main() -> int:
    given = json.load(sys.stdin)
    with mtask.connect() as manager:
        delivery = Delivery(body=given["body"].encode(), token=given["token"], deliveries=given["deliveries"])
        queue = OneShotQueue([delivery], manager.queue.main)
        options = options_within(given["time_s"], "time_s of the platform")
        Worker(queue, manager.table, options, name=f"function-{os.getpid()}").run(until=queue.settled)
        queue.give_back_rest()
        return 1 if queue.undone() else 0


if __name__ == "__main__":
    sys.exit(main())
