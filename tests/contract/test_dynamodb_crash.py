"""The DynamoDB table when writers are killed, answers are lost, and many record the same tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from mtask_aws import DynamoTable, open_table
from tests.contract.table_crashes import Crashes, FaultyWriters, KilledWriters, races
from tests.servers.dynamodb import create, hook, killed_at, lose_first_answers


@pytest.fixture
def url(dynalite: str) -> str:
    return create()


class Dynamo(Crashes):
    open = staticmethod(open_table)

    def killed_at(self, url: str, request: int) -> AbstractContextManager[DynamoTable]:
        return killed_at(url, request)

    @contextmanager
    def losing(self, url: str, lost: list[str]) -> Iterator[DynamoTable]:
        with pytest.MonkeyPatch.context() as patch, closing(open_table(url)) as table:
            patch.setattr("botocore.endpoint.time", SimpleNamespace(sleep=lambda _: None))
            answers = lose_first_answers(table)
            yield table
            lost += answers

    @contextmanager
    def overtaken(self, url: str, overtake: Callable[[], None]) -> Iterator[DynamoTable]:
        with closing(open_table(url)) as slow:
            hook(slow, "before-call.dynamodb.UpdateItem", lambda **_: overtake())
            yield slow


class TestKilled(Dynamo, KilledWriters):
    least = 4, 3


class TestFaulty(Dynamo, FaultyWriters):
    methods = frozenset({"PutItem", "UpdateItem", "BatchWriteItem", "GetItem", "Query", "BatchGetItem"})

    @races(12)
    def test_many_record_the_same_tasks(self, url: str, table: DynamoTable, **drawn: Any) -> None:
        self.race(url, table, **drawn)
