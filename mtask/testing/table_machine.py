"""A table against a model of one, in random sequences of steps that hypothesis chooses and shrinks.

A backend's test is `TableMachine.run(MyHarness)`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import count
from typing import Protocol

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from mtask.model import Bag, BagState, Block, Counts, Result, State
from mtask.portion import Portion, expanded
from mtask.requirements import Lane
from mtask.table import Table
from mtask.testing.queue_machine import CLIENTS, SETTINGS
from mtask.testing.samples import a_bag, a_block, a_done, a_failed, a_lane, a_portion, an_expired

__all__ = ["SETTINGS", "TableHarness", "TableMachine"]

BAGS = ("one", "two/ü")
INDEX = st.integers(0, 12) | st.sampled_from([13, 1000, 2**31])
INDEXES = st.lists(INDEX, max_size=8)
BAG = st.sampled_from(BAGS)
RESULT = st.builds(
    lambda make, index, text, bag, attempt: make(index, text, bag=bag, attempt=attempt),
    st.sampled_from([a_done, a_failed, an_expired]),
    INDEX,
    st.text(max_size=5),
    BAG,
    st.integers(1, 3),
)
RESULTS = st.lists(RESULT, max_size=10)
PORTION = st.builds(
    lambda first, texts, bag: a_portion([a_done(at, text, bag=bag) for at, text in enumerate(texts, first)]),
    INDEX,
    st.lists(st.text(max_size=5), min_size=1, max_size=6),
    BAG,
)
WRITTEN = st.lists(RESULT | PORTION, max_size=10)
LANES = st.integers(1, 4).map(a_lane)
KEYS = st.sampled_from(["a", "a/b"])


class TableHarness(Protocol):
    """A new, empty table."""

    def open(self) -> Table:
        """Another client of the table."""
        ...

    def close(self) -> None: ...


class TableMachine(RuleBasedStateMachine):
    """Two clients of one table, and dictionaries that say what they should see."""

    def __init__(self, harness: TableHarness) -> None:
        super().__init__()
        self.harness = harness
        self.tables = [harness.open(), harness.open()]
        self.bags: dict[str, Bag] = {name: a_bag(name, created_at=1.0) for name in BAGS}
        self.rows: dict[str, dict[int, Result]] = {name: {} for name in BAGS}
        self.blocks: dict[str, dict[int, Block]] = {name: {} for name in BAGS}
        self.attempts: dict[str, list[Result]] = {name: [] for name in BAGS}
        self.lanes: dict[str, Lane] = {}
        self.documents: dict[str, list[tuple[bytes, int]]] = {}
        """By key; with its versions, oldest first."""
        for bag in self.bags.values():
            self.tables[0].create_bag(bag)

    @classmethod
    def run(cls, make: Callable[[], TableHarness], settings: settings = SETTINGS) -> None:
        """Run it; each sequence of steps begins with a harness of its own. Prints the failing one."""
        run_state_machine_as_test(lambda: cls(make()), settings=settings)  # type: ignore[arg-type]

    def teardown(self) -> None:
        for table in self.tables:
            table.close()
        self.harness.close()

    @rule(client=CLIENTS, results=WRITTEN)
    def record(self, client: int, results: list[Result | Portion]) -> None:
        self.tables[client].record(results)
        for result in expanded(results):
            rows = self.rows[result.bag]
            if result.index not in rows or rows[result.index].state is not State.DONE:
                rows[result.index] = result

    @rule(client=CLIENTS, bag=BAG, indexes=INDEXES)
    def retract(self, client: int, bag: str, indexes: list[int]) -> None:
        rows = self.rows[bag]
        expected = {index for index in indexes if index in rows and rows[index].state is not State.DONE}
        assert self.tables[client].retract(bag, indexes) == expected
        self.attempts[bag] += [rows.pop(index) for index in expected]

    @rule(client=CLIENTS, results=RESULTS)
    def keep_attempts(self, client: int, results: list[Result]) -> None:
        # No two are the same, as in life: a table may keep the same one once.
        times = map(float, count(sum(map(len, self.attempts.values()))))
        failed = [
            msgspec.structs.replace(result, finished_at=next(times))
            for result in results
            if result.state is State.FAILED
        ]
        self.tables[client].keep_attempts(failed)
        for result in failed:
            self.attempts[result.bag].append(result)

    @rule(client=CLIENTS, bag=BAG, indexes=INDEXES)
    def recorded(self, client: int, bag: str, indexes: list[int]) -> None:
        assert self.tables[client].recorded(bag, indexes) == set(indexes) & set(self.rows[bag])

    @rule(
        client=CLIENTS,
        bag=BAG,
        states=st.none() | st.sets(st.sampled_from(State)),
        after=st.none() | INDEX,
        indexes=st.none() | INDEXES,
    )
    def results(
        self, client: int, bag: str, states: set[State] | None, after: int | None, indexes: list[int] | None
    ) -> None:
        expected = [
            row
            for index, row in sorted(self.rows[bag].items())
            if (states is None or row.state in states)
            and (after is None or index > after)
            and (indexes is None or index in indexes)
        ]
        assert list(self.tables[client].results(bag, states=states, after=after, indexes=indexes)) == expected

    @rule(client=CLIENTS, bag=BAG, after=st.none() | INDEX)
    def read_attempts(self, client: int, bag: str, after: int | None) -> None:
        found = list(self.tables[client].attempts(bag, after=after))
        places = [(result.index, result.attempt) for result in found]
        assert places == sorted(places)
        expected = [result for result in self.attempts[bag] if after is None or result.index > after]
        # Which of two with the same number comes first is open.
        assert Counter(map(msgspec.json.encode, found)) == Counter(map(msgspec.json.encode, expected))

    @rule(
        client=CLIENTS,
        bag=BAG,
        numbers=st.lists(st.integers(0, 6), max_size=4),
        value=st.integers(),
        lane=st.sampled_from(["", "b"]),
        then=st.none() | st.integers(0, 9),
    )
    def put_blocks(
        self, client: int, bag: str, numbers: list[int], value: int, lane: str, then: int | None
    ) -> None:
        blocks = [a_block(n, bag=bag, values=[value, n], lane=lane, then=then) for n in numbers]
        self.tables[client].put_blocks(blocks)
        for block in blocks:
            self.blocks[bag].setdefault(block.number, block)

    @rule(client=CLIENTS, bag=BAG, first=st.integers(0, 7))
    def read_blocks(self, client: int, bag: str, first: int) -> None:
        expected = [block for number, block in sorted(self.blocks[bag].items()) if number >= first]
        assert list(self.tables[client].blocks(bag, first=first)) == expected
        for block in expected[:1]:
            assert self.tables[client].block(bag, block.number) == block

    @rule(
        client=CLIENTS,
        name=BAG,
        state=st.none() | st.sampled_from(BagState),
        total=st.none() | st.integers(0, 50),
        sent=st.none() | st.integers(0, 50),
    )
    def update_bag(
        self, client: int, name: str, state: BagState | None, total: int | None, sent: int | None
    ) -> None:
        self.tables[client].update_bag(name, state=state, total=total, sent=sent)
        bag = self.bags[name]
        if bag.state is BagState.CANCELLED and state is BagState.SEALED:
            state = None
        self.bags[name] = msgspec.structs.replace(
            bag, state=state or bag.state, total=max(bag.total, total or 0), sent=max(bag.sent, sent or 0)
        )

    @rule(client=CLIENTS, lanes=st.lists(LANES, max_size=3, unique=True))
    def put_lanes(self, client: int, lanes: list[Lane]) -> None:
        self.tables[client].put_lanes(lanes)
        self.lanes.update((lane.name, lane) for lane in lanes)

    @rule(client=CLIENTS, lane=LANES)
    def remove_lane(self, client: int, lane: Lane) -> None:
        self.tables[client].remove_lane(lane.name)
        self.lanes.pop(lane.name, None)

    @rule(client=CLIENTS)
    def read_lanes(self, client: int) -> None:
        found = [lane for lane, _ in self.tables[client].lanes()]
        assert sorted(found, key=lambda lane: lane.name) == sorted(
            self.lanes.values(), key=lambda lane: lane.name
        )

    @rule(client=CLIENTS, key=KEYS, value=st.binary(max_size=5), stale_by=st.sampled_from([0, 0, 1, 2]))
    def swap(self, client: int, key: str, value: bytes, stale_by: int) -> None:
        known = self.documents.setdefault(key, [(b"", 0)])
        assert self.tables[1 - client].shared(key) == known[-1]
        _, version = known[-1 - min(stale_by, len(known) - 1)]
        swapped = self.tables[client].swap(key, value, version)
        assert swapped == (version == known[-1][1])
        if swapped:
            found, new = self.tables[client].shared(key)
            assert found == value
            assert new not in (old for _, old in known)
            known.append((found, new))

    @rule(client=CLIENTS)
    def reopen(self, client: int) -> None:
        self.tables[client].close()
        self.tables[client] = self.harness.open()

    @invariant()
    def bags_and_counts_are_right(self) -> None:
        for name, bag in self.bags.items():
            states = Counter(row.state.value for row in self.rows[name].values())
            assert self.tables[0].counts(name) == Counts(total=bag.total, **states)
            assert self.tables[1].bag(name) == bag
