"""The Firestore table on Google's emulator: the contract and the machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest
from hypothesis import settings

from mtask.testing.table_contract import TableContract
from mtask.testing.table_machine import SETTINGS, TableMachine
from mtask_gcp import FirestoreTable, open_table
from tests.servers.firestore import create_table


class TestOnTheEmulator(TableContract):
    @pytest.fixture
    def url(self, firestore: str) -> str:
        return create_table()

    @pytest.fixture
    def table(self, url: str) -> Iterator[FirestoreTable]:
        with closing(open_table(url)) as table:
            yield table

    @pytest.fixture
    def other_table(self, table: FirestoreTable, url: str) -> Iterator[FirestoreTable]:
        with closing(open_table(url)) as table:
            yield table


class Harness:
    """A new table."""

    def __init__(self) -> None:
        self.url = create_table()

    def open(self) -> FirestoreTable:
        return open_table(self.url)

    def close(self) -> None:
        """It stays, as long as the emulator does."""


@pytest.mark.timeout(600)
def test_the_table_is_like_its_model(firestore: str) -> None:
    TableMachine.run(Harness, settings(SETTINGS, max_examples=2))
