"""The Firestore table when writers are killed, answers are lost, and many record the same tasks."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from typing import Any

import pytest
from google.cloud.firestore_v1 import types
from google.rpc.code_pb2 import Code

from mtask.errors import BackendError, UnavailableError
from mtask.testing.samples import a_bag, a_done, a_failed, a_lane
from mtask_gcp import FirestoreTable, open_table
from mtask_gcp.documents import put
from tests.contract.table_crashes import FAR, Crashes, FaultyWriters, KilledWriters, races
from tests.servers.firestore import create_table, killed_at, lose_first_answers

LONG = random.Random(1).randbytes(20_000).hex()
"""Too long for a page, however it is compressed."""


@pytest.fixture
def url(firestore: str) -> str:
    return create_table()


class Firestore(Crashes):
    half = False
    more = (a_done(FAR + 3, LONG), a_failed(FAR + 2, LONG))
    open = staticmethod(open_table)

    def killed_at(self, url: str, request: int) -> AbstractContextManager[FirestoreTable]:
        return killed_at(url, request, half=self.half)

    @contextmanager
    def losing(self, url: str, lost: list[str]) -> Iterator[FirestoreTable]:
        with pytest.MonkeyPatch.context() as patch, closing(open_table(url)) as table:
            patch.setattr("mtask_gcp.database.PAUSE_S", 0.005)
            answers = lose_first_answers(table)
            yield table
            lost += answers

    @contextmanager
    def overtaken(self, url: str, overtake: Callable[[], None]) -> Iterator[FirestoreTable]:
        with closing(open_table(url)) as slow:
            once = slow._db._once

            def overtaken(method: str, message: Any) -> Any:
                if method == "batch_write":
                    overtake()
                return once(method, message)

            slow._db._once = overtaken  # type: ignore[method-assign]
            yield slow


class TestKilled(Firestore, KilledWriters):
    least = 2, 1


class TestKilledInTheMiddleOfARequest(Firestore, KilledWriters):
    """Firestore's BatchWrite writes some, perhaps."""

    half, least = True, (2, 1)


class TestFaulty(Firestore, FaultyWriters):
    methods = frozenset({"batch_write", "batch_get_documents", "run_query", "run_aggregation_query"})

    def lose_more(self, table: FirestoreTable) -> None:
        table.put_lanes([a_lane(1)])
        assert table.remove_lane(a_lane(1).name) in (True, False)
        assert table.lanes() == []

    @races(5)
    def test_many_record_the_same_tasks(self, url: str, table: FirestoreTable, **drawn: Any) -> None:
        self.race(url, table, **drawn)

    def test_what_had_no_row_is_not_retracted_when_others_change_its_page(
        self, url: str, table: FirestoreTable
    ) -> None:
        table.create_bag(a_bag())
        table.record([a_failed(1)])
        with self.overtaken(url, lambda: table.record([a_done(5)])) as slow:
            assert slow.retract("bag", [1, 2, 3]) == {1}
        assert list(self.whole(url, table)) == [5]

    def test_what_a_batch_left_undone_is_sent_again(self, url: str, table: FirestoreTable) -> None:
        """Firestore answers for each write by itself; here every other one was aborted at first."""
        table.create_bag(a_bag())
        once, aborted = table._db._once, list[str]()

        def busy(method: str, message: Any) -> Any:
            if method != "batch_write" or aborted:
                return once(method, message)
            aborted.extend(each.update.name for each in message.writes[1::2])
            whole = list(message.writes)
            message.writes = whole[::2]
            answer = once(method, message)
            statuses, results = list(answer.status), list(answer.write_results)
            for at in range(1, len(whole), 2):
                statuses.insert(at, {"code": Code.ABORTED, "message": "contention"})
                results.insert(at, {})
            return types.BatchWriteResponse(status=statuses, write_results=results)

        table._db._once = busy  # type: ignore[method-assign]
        rows = [a_done(index) for index in range(0, 320, 4)]
        table.record(rows)
        assert len(aborted) == 5
        assert list(self.whole(url, table).values()) == rows


def test_what_is_refused_for_good_is_not_tried_again(table: FirestoreTable) -> None:
    calls: list[str] = []
    once = table._db._once

    def counted(method: str, message: Any) -> Any:
        calls.append(method)
        return once(method, message)

    table._db._once = counted  # type: ignore[method-assign]
    with pytest.raises(BackendError, match="INVALID_ARGUMENT") as error:
        table._db.write([put(f"{table._db.root}/mtask-shared/__no__", {})])
    assert not isinstance(error.value, UnavailableError)
    assert calls == ["batch_write"]


def test_counts_are_those_of_one_moment(url: str, table: FirestoreTable) -> None:
    """Each sum is a request of its own; what is written between two of them is in none."""
    table.create_bag(a_bag())
    table.record([a_failed(0), a_failed(1), a_done(2)])
    once, sums = table._db._once, []

    def write_between(method: str, message: Any) -> Any:
        answer = once(method, message)
        if method == "run_aggregation_query":
            sums.append(message)
            with closing(open_table(url)) as other:
                other.record([a_done(len(sums) - 1)])
        return answer

    table._db._once = write_between  # type: ignore[method-assign]
    counts = table.counts("bag")
    assert len(sums) > 1
    assert (counts.done, counts.failed) == (1, 2)
    table._db._once = once  # type: ignore[method-assign]
    assert (table.counts("bag").done, table.counts("bag").failed) == (3, 0)
