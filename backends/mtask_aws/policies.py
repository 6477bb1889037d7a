"""Which actions each part of mtask calls at AWS, and the smallest IAM policies made of them.

The names of actions and of what they are allowed on: AWS Service Authorization Reference. Of the batches of SQS the
permission is that of the single request: `sqs:SendMessage` allows SendMessageBatch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["GRANTS", "ROLES", "policy", "resources"]

ROLES = ("setup", "manager", "worker")
"""`mtask init`; submit, status, results, retry, …; `mtask worker`. `mtask run` is manager and worker, the function
for Lambda that submits a manager, the one that runs tasks a worker."""

_LANES = (
    "sqs:CreateQueue",
    "sqs:GetQueueAttributes",
    "sqs:GetQueueUrl",
    "sqs:ListQueueTags",
    "sqs:SendMessage",
)
"""To send to a lane is to make it, if it isn't there."""
_TABLE = (
    "dynamodb:BatchGetItem",
    "dynamodb:BatchWriteItem",
    "dynamodb:DescribeTable",
    "dynamodb:GetItem",
    "dynamodb:PutItem",
    "dynamodb:Query",
    "dynamodb:UpdateItem",
)
_OBJECTS = ("s3:GetObject", "s3:PutObject")

GRANTS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "setup": {
        "queues": ("sqs:CreateQueue", "sqs:GetQueueAttributes", "sqs:GetQueueUrl", "sqs:SetQueueAttributes"),
        "table": (
            "dynamodb:CreateTable",
            "dynamodb:DescribeTable",
            "dynamodb:DescribeTimeToLive",
            "dynamodb:UpdateTimeToLive",
        ),
        "bucket": (
            "s3:CreateBucket",
            "s3:GetBucketPublicAccessBlock",
            "s3:GetEncryptionConfiguration",
            "s3:GetLifecycleConfiguration",
            "s3:ListBucket",
            "s3:PutBucketPublicAccessBlock",
            "s3:PutEncryptionConfiguration",
            "s3:PutLifecycleConfiguration",
        ),
    },
    "manager": {
        "queues": _LANES,
        "dead": ("sqs:ChangeMessageVisibility", "sqs:ReceiveMessage"),
        "table": _TABLE,
        "objects": _OBJECTS,
    },
    "worker": {
        "queues": sorted(
            (
                *_LANES,
                "sqs:ChangeMessageVisibility",
                "sqs:DeleteMessage",
                "sqs:DeleteQueue",
                "sqs:ReceiveMessage",
            )
        ),
        "table": sorted((*_TABLE, "dynamodb:DeleteItem")),
        "objects": _OBJECTS,
    },
}
"""By role: kind of resource → actions, sorted."""


def resources(
    kind: str, *, partition: str, region: str, account: str, queue: str, table: str, bucket: str
) -> list[str]:
    """The ARNs of a kind. The parts may be placeholders, as `${AWS::Region}`."""
    sqs = f"arn:{partition}:sqs:{region}:{account}:{queue}"
    return {
        "queues": [sqs, f"{sqs}.fifo", f"{sqs}-*"],
        "dead": [f"{sqs}-dead", f"{sqs}-dead.fifo"],
        "table": [f"arn:{partition}:dynamodb:{region}:{account}:table/{table}"],
        "bucket": [f"arn:{partition}:s3:::{bucket}"],
        "objects": [f"arn:{partition}:s3:::{bucket}/*"],
    }[kind]


def policy(role: str, **place: str) -> dict[str, Any]:
    """The document; `place`: as for `resources`."""
    return {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Sid": kind.capitalize(),
                "Effect": "Allow",
                "Action": list(actions),
                "Resource": resources(kind, **place),
            }
            for kind, actions in GRANTS[role].items()
        ],
    }
