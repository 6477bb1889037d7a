"""What must hold of open bags (`mtask.append`) in every table; a part of `TableContract`.

They need nothing of a table but what it promises of blocks, small documents and bags; so these tests are of that, all at once.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, cast

import msgspec
import pytest

from mtask import append
from mtask.append import Known, add, open_bag, seal
from mtask.errors import BagExistsError, UsageError
from mtask.model import Bag, BagState, Block, Message
from mtask.queue import QueueLimits
from mtask.reducing import COLUMNS, send_when_done
from mtask.spec import Spec
from mtask.table import Table
from mtask.testing.samples import a_done, a_failed

__all__ = ["OpenBagsContract"]

CALL = Spec(kind="call", target=("module:function",))
KEYED = msgspec.structs.replace(CALL, key="x")


class _Sent:
    """In place of a queue: keeps what is sent."""

    def __init__(self) -> None:
        self.limits = QueueLimits(message_bytes=10**6, send_batch=10, receive_batch=10)
        self.messages: list[Message] = []
        self.fails = 0

    def send(self, messages: Sequence[Message], *, delay_s: float = 0) -> None:  # noqa: ARG002
        if self.fails:
            self.fails -= 1
            raise _Dead
        self.messages += messages

    def indexes(self) -> list[int]:
        """Of all tasks sent, sorted."""
        return sorted(index for m in self.messages for index in range(m.first, m.first + m.count))


class _Dead(Exception):
    """As if the process were killed there."""


class _Hooked:
    """A table, but for what becomes of a block that is to be stored."""

    def __init__(self, table: Table, put_blocks: Callable[[Sequence[Block]], None]) -> None:
        self._table, self.put_blocks = table, put_blocks

    def __getattr__(self, name: str) -> Any:
        return getattr(self._table, name)


class OpenBagsContract:
    """Tests of a table by way of open bags."""

    @pytest.fixture
    def sent(self) -> Any:
        return _Sent()

    def _add(self, table: Table, queue: Any, values: Sequence[Any], spec: Spec = CALL, **named: Any) -> Bag:
        bag, lanes = open_bag(table, "open", spec, ("x",), [(0, spec.requires)])
        rows = [(lanes[0], msgspec.json.encode([value])) for value in values]
        digest = repr(values)
        known = Known() if spec.key else None
        add(queue, table, bag, rows, **{"submit": digest, "digest": digest, "known": known, **named})
        return bag

    def _values(self, table: Table) -> list[Any]:
        """Of all tasks, in order; there is no gap, and the bag knows their number."""
        tasks = [task for block in table.blocks("open") for task in block.tasks(("x",))]
        assert [task.index for task in tasks] == list(range(len(tasks)))
        assert table.bag("open").total == table.counts("open").total == len(tasks)
        return [task.params["x"] for task in tasks]

    def test_an_open_bag_grows_until_it_is_sealed(self, table: Table, other_table: Table, sent: Any) -> None:
        bag = self._add(table, sent, ["a", "b"])
        assert table.bag("open").endless
        self._add(other_table, sent, ["c"])
        assert self._values(table) == ["a", "b", "c"]
        assert sent.indexes() == [0, 1, 2]
        assert table.bag("open").state is BagState.OPEN
        seal(sent, other_table, bag)
        seal(sent, table, bag)
        assert table.bag("open").state is BagState.SEALED
        with pytest.raises(UsageError, match="sealed"):
            self._add(table, sent, ["d"])
        self._add(table, sent, ["c"])  # which is there already
        assert self._values(table) == ["a", "b", "c"]

    def test_the_same_submit_adds_once_and_other_names_add_again(self, table: Table, sent: Any) -> None:
        for name in ("1", "2", "1"):
            self._add(table, sent, ["a", "b"], submit=name)
        assert self._values(table) == ["a", "b", "a", "b"]
        assert sent.indexes() == [0, 1, 2, 3]

    def test_a_key_that_is_there_is_not_added(self, table: Table, other_table: Table, sent: Any) -> None:
        self._add(table, sent, ["a", 1, None], KEYED)
        self._add(other_table, sent, [1, "1", None, "b"], KEYED)
        self._add(table, sent, ["b", "a"], KEYED)
        assert self._values(table) == ["a", 1, None, "1", None, "b"]

    def test_another_spec_or_a_bag_that_is_whole_is_refused(self, table: Table, sent: Any) -> None:
        self._add(table, sent, ["a"])
        with pytest.raises(BagExistsError, match="other options: retries=3"):
            self._add(table, sent, ["b"], msgspec.structs.replace(CALL, retries=5))
        whole = Bag(name="whole", spec=CALL, columns=("x",))
        table.create_bag(whole)
        with pytest.raises(BagExistsError, match="as a whole"):
            open_bag(table, "whole", CALL, ("x",), [(0, CALL.requires)])
        with pytest.raises(UsageError, match="isn't open"):
            seal(sent, table, whole)

    @pytest.mark.parametrize("spec", [CALL, KEYED], ids=["plain", "keyed"])
    def test_many_at_once_lose_nothing_and_share_no_index(
        self, table: Table, other_table: Table, spec: Spec, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(append, "BLOCK_BYTES", 20)
        queues = [_Sent() for _ in range(4)]
        failed: list[BaseException] = []

        def submit(number: int) -> None:
            values = [f"{number}-{n}" for n in range(4)] + [f"all-{n}" for n in range(2)]
            try:
                self._add((table, other_table)[number % 2], queues[number], values, spec)
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=submit, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == []
        values = Counter(self._values(table))
        assert len(values) == 4 * 4 + 2
        assert set(values.values()) == ({1} if spec is KEYED else {1, 4})
        assert set().union(*(queue.indexes() for queue in queues)) == set(range(values.total()))

    def test_a_block_that_comes_late_is_its_owners(
        self, table: Table, other_table: Table, sent: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Somebody else has taken him for dead, and was about to store another block in its place."""
        monkeypatch.setattr(append, "PATIENCE_S", 0.1)
        late: list[Block] = []

        def die(blocks: Sequence[Block]) -> None:
            late.extend(blocks)
            raise _Dead

        def come_late(blocks: Sequence[Block]) -> None:
            if late:
                other_table.put_blocks([late.pop()])
            table.put_blocks(blocks)

        with pytest.raises(_Dead):
            self._add(cast(Table, _Hooked(table, die)), sent, ["a", "b"])
        self._add(cast(Table, _Hooked(table, come_late)), sent, ["c"])
        assert self._values(table) == ["a", "b", "c"]
        self._add(other_table, sent, ["a", "b"])
        assert self._values(table) == ["a", "b", "c"]
        rows = {m.first: msgspec.json.decode(m.rows) for m in sent.messages}
        assert (sent.indexes(), rows) == ([0, 1, 2], {0: [["a"]], 1: [["b"]], 2: [["c"]]})

    def test_what_comes_after_a_bag_is_there_once_when_all_is_done(
        self, table: Table, other_table: Table, sent: Any
    ) -> None:
        bag = self._add(table, sent, ["a", "b"], msgspec.structs.replace(CALL, then="module:last"))
        table.record([a_done(0, 1, bag="open"), a_failed(1, bag="open")])
        assert not send_when_done(sent, table, bag)
        seal(sent, table, bag)
        assert not send_when_done(sent, table, bag)
        table.record([a_done(1, 1, bag="open")])
        queues = [_Sent() for _ in range(4)]
        threads = [
            threading.Thread(target=send_when_done, args=(queue, (table, other_table)[number % 2], bag))
            for number, queue in enumerate(queues)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert send_when_done(sent, table, bag)
        (task,) = [task for block in table.blocks("open.then") for task in block.tasks(COLUMNS)]
        assert task.params == {"bag": "open", "function": "module:last"}
        assert table.bag("open.then").state is BagState.SEALED
        assert [index for queue in queues for index in queue.indexes()] == [0]

    @pytest.mark.parametrize("again", ["the same", "another", "seal"])
    def test_what_the_dead_left_is_finished_by_the_next(
        self, table: Table, other_table: Table, again: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(append, "PATIENCE_S", 0.1)
        dying, queue = _Sent(), _Sent()
        dying.fails = 1
        with pytest.raises(_Dead):
            self._add(table, dying, ["a", "b"])
        if again == "seal":
            seal(queue, other_table, table.bag("open"))  # type: ignore[arg-type]
        else:
            self._add(other_table, queue, ["a", "b"] if again == "the same" else ["c"])
            self._add(other_table, queue, ["a", "b"])
        assert sorted(self._values(table)) == (["a", "b", "c"] if again == "another" else ["a", "b"])
        assert queue.indexes() == list(range(table.counts("open").total))
