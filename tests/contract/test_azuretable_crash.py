"""The Azure table when writers are killed, answers are lost, and many record the same tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest

from mtask.portion import results_of
from mtask_azure import AzureTable, open_table
from mtask_azure.pages import bits, page_number, read
from mtask_azure.store import row_of
from tests.contract.table_crashes import Crashes, FaultyWriters, KilledWriters, races
from tests.servers.azure import Servers
from tests.servers.azurehooks import create, hooked, killed_at, lose_first_answers


@pytest.fixture
def url(azurite_tables: Servers) -> str:
    return create()


class Azure(Crashes):
    open = staticmethod(open_table)

    def killed_at(self, url: str, request: int) -> AbstractContextManager[AzureTable]:
        return killed_at(url, request)

    def losing(self, url: str, lost: list[str]) -> AbstractContextManager[AzureTable]:
        return hooked(url, lose_first_answers(lost))

    def overtaken(self, url: str, overtake: Callable[[], None]) -> AbstractContextManager[AzureTable]:
        def hook(request: Any, send: Callable[[], Any]) -> Any:
            if request.method == "POST":
                overtake()
            return send()

        return hooked(url, hook)

    def look(self, table: AzureTable, bag: str) -> None:
        assert left_over(table, bag) == [], "each row that is there counts"


class TestKilled(Azure, KilledWriters):
    least = 4, 3


class TestFaulty(Azure, FaultyWriters):
    methods = frozenset({"GET", "PATCH", "POST"})
    kept = ((0, "new"), (2, "old"))

    @races(6)
    def test_many_record_the_same_tasks(self, url: str, table: AzureTable, **drawn: Any) -> None:
        self.race(url, table, **drawn)


def left_over(table: AzureTable, bag: str) -> list[str]:
    """Entities of rows that no page knows, and tasks that a page knows and no entity has."""
    known = table._bags.known(bag)
    held: list[int] = []
    said: list[int] = []
    for shard in known.shards:
        for entity in (e for answer in table._store.query(known.partition(shard)) for e in answer):
            if row_of(entity)[0] in "rf":
                held += [row.index for row in results_of(bag, table._blobs.unpack(entity))]
            elif row_of(entity)[0] == "p":
                page = read(entity)
                said += [page_number(entity) * 64 + offset for offset in bits(page.ended)]
                assert page.done & page.failed == page.done & page.expired == page.failed & page.expired == 0
    wrong = (Counter(held) - Counter(said)) + (Counter(said) - Counter(held))
    return [f"{index}: {held.count(index)} rows" for index in wrong]
