"""A queue on Amazon SQS, a table on DynamoDB; what is too big for either lies in S3.

    sqs://us-east-1/reads              a standard queue; ?fifo=1: a FIFO queue
    dynamodb://us-east-1/reads         a table; ?bucket=NAME: where what is too big for an item goes

`mtask init` makes them. Credentials come from roles, profiles and the environment, never from a URL;
`AWS_ENDPOINT_URL` names another endpoint.
"""

from __future__ import annotations

from mtask_aws.doctor import diagnose
from mtask_aws.prices import PRICES, queue_units, table_units
from mtask_aws.queue import SqsQueue
from mtask_aws.serverless import lambda_handler, submit_handler
from mtask_aws.setup_queue import make_queue
from mtask_aws.setup_table import make_table
from mtask_aws.table import DynamoTable

__all__ = [
    "PRICES",
    "WORKER_ENVIRONMENT",
    "DynamoTable",
    "SqsQueue",
    "diagnose",
    "lambda_handler",
    "make_queue",
    "make_table",
    "open_queue",
    "open_table",
    "queue_units",
    "submit_handler",
    "table_beside",
    "table_units",
]

WORKER_ENVIRONMENT = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_DEFAULT_REGION",
    "AWS_REGION",
    "AWS_ENDPOINT_URL",
)


def open_queue(url: str) -> SqsQueue:
    """Raises UsageError for a URL that can't be used, UnusableError where there is no such queue or no right to it."""
    return SqsQueue.open(url)


def open_table(url: str) -> DynamoTable:
    """Raises as `open_queue` does."""
    return DynamoTable.open(url)


def table_beside(url: str) -> str:
    """The DynamoDB table of the same region and name."""
    return url.replace("sqs://", "dynamodb://", 1).partition("?")[0]
