"""A queue at a RabbitMQ broker, version 3.10 or newer; the table is another backend's.

    amqp://me@rabbit.example.org/reads             port 5672, vhost /, queue `reads`
    amqps://me@rabbit.example.org/lab/reads        with TLS (port 5671), in the vhost `lab`
    ?consumer_timeout_s=7200                       what the broker is set to; see `mtask_rabbitmq.queue`
    ?heartbeat_s=30  ?cafile=…  ?certfile=…  ?keyfile=…

`mtask init` makes it. The password comes from `MTASK_AMQP_PASSWORD` or a netrc file, never from a URL.
"""

from __future__ import annotations

from mtask_rabbitmq.doctor import diagnose
from mtask_rabbitmq.queue import RabbitQueue
from mtask_rabbitmq.topology import make_queue

__all__ = ["WORKER_ENVIRONMENT", "RabbitQueue", "diagnose", "make_queue", "open_queue"]

WORKER_ENVIRONMENT = ("MTASK_AMQP_PASSWORD",)


def open_queue(url: str) -> RabbitQueue:
    """Raises UsageError for a URL that can't be used, UnusableError where there is no such queue or no right to it,
    UnavailableError without a broker."""
    return RabbitQueue.open(url)
