"""The DynamoDB table: the contract on moto, and with the machine on dynalite, which is stricter about batches
and tells the units that AWS would bill."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import boto3
import pytest
from hypothesis import settings

from mtask.testing.table_contract import TableContract
from mtask.testing.table_machine import SETTINGS, TableMachine
from mtask_aws import DynamoTable, open_table
from mtask_aws.setup_table import make_table
from tests.servers.dynamodb import create, new_url

BRIEFLY = settings(SETTINGS, max_examples=4, stateful_step_count=25)
"""Each step is a request or some."""


class Fixtures:
    @pytest.fixture
    def table(self, url: str) -> Iterator[DynamoTable]:
        with closing(open_table(url)) as table:
            yield table

    @pytest.fixture
    def other_table(self, table: DynamoTable, url: str) -> Iterator[DynamoTable]:
        with closing(open_table(url)) as table:
            yield table


class TestOnMoto(Fixtures, TableContract):
    @pytest.fixture
    def url(self, moto: str) -> str:
        url = new_url()
        make_table(url)
        return url


class TestOnDynalite(Fixtures, TableContract):
    @pytest.fixture
    def url(self, dynalite: str) -> str:
        return create()


class Harness:
    """A new table."""

    def __init__(self) -> None:
        self.url = create()

    def open(self) -> DynamoTable:
        return open_table(self.url)

    def close(self) -> None:
        client = boto3.client("dynamodb", region_name="us-east-1")
        client.delete_table(TableName=self.url.rpartition("/")[2])


@pytest.mark.timeout(600)
def test_the_table_is_like_its_model(dynalite: str) -> None:
    TableMachine.run(Harness, BRIEFLY)
