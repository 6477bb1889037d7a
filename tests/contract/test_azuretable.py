"""The Azure table on Azurite, Microsoft's emulator: the contract and the machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest
from hypothesis import settings

from mtask.testing.table_contract import TableContract
from mtask.testing.table_machine import SETTINGS, TableMachine
from mtask_azure import AzureTable, make_table, open_table
from tests.servers.azure import Servers, new_table_url


class TestOnAzurite(TableContract):
    @pytest.fixture
    def url(self, azurite_tables: Servers) -> str:
        url = new_table_url()
        make_table(url)
        return url

    @pytest.fixture
    def table(self, url: str) -> Iterator[AzureTable]:
        with closing(open_table(url)) as table:
            yield table

    @pytest.fixture
    def other_table(self, table: AzureTable, url: str) -> Iterator[AzureTable]:
        with closing(open_table(url)) as table:
            yield table


class Harness:
    """A new table."""

    def __init__(self) -> None:
        self.url = new_table_url()
        make_table(self.url)

    def open(self) -> AzureTable:
        return open_table(self.url)

    def close(self) -> None:
        """It goes with the server."""


@pytest.mark.timeout(600)
def test_the_table_is_like_its_model(azurite_tables: Servers) -> None:
    TableMachine.run(Harness, settings(SETTINGS, max_examples=2, stateful_step_count=20))
