"""What lies in an Azure table: order, awkward characters, sizes, transactions that fail in part, and what it all costs."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mtask.meter import Tab, since
from mtask.model import Counts, DeadMessage, Result, State
from mtask.testing.samples import a_bag, a_block, a_done, a_failed, a_portion, a_status, an_expired
from mtask_azure import AzureTable, keys, open_table, pages
from mtask_azure.blobs import NEAR_BYTES
from mtask_azure.pages import Frontier
from mtask_azure.prices import BLOB_READS, BLOB_WRITES, TRANSACTIONS
from tests.servers.azure import Servers
from tests.servers.azurehooks import create, hooked


@pytest.fixture
def url(azurite_tables: Servers) -> str:
    return create()


@pytest.fixture
def table(table: AzureTable) -> AzureTable:
    table.create_bag(a_bag())
    return table


def noise(size: int, seed: int = 1) -> str:
    """Text that can't be made much smaller than half of it."""
    return random.Random(seed).randbytes(size // 2).hex()


def used(table: AzureTable, unit: str = TRANSACTIONS) -> float:
    return table.meter.used().get(unit, 0.0)


# -- order ------------------------------------------------------------------------------------------------


@pytest.mark.timeout(300)
def test_20_000_results_come_back_in_order_and_cost_little(url: str, table: AzureTable) -> None:
    """Recorded in any order, in pieces that fit no page, by two clients."""
    count, piece = 20_000, 500
    firsts = list(range(0, count, piece))
    random.Random(3).shuffle(firsts)
    with closing(open_table(url)) as other:
        before = used(table) + used(other)
        for number, first in enumerate(firsts):
            rows = [a_done(index, index * 7919) for index in range(first, first + piece)]
            (table, other)[number % 2].record([a_portion(rows)])
        written = used(table) + used(other) - before
        assert written <= 4.5 * len(firsts)
        before = used(other)
        assert [(row.index, row.value) for row in other.results("bag")] == [
            (i, i * 7919) for i in range(count)
        ]
        assert used(other) - before < 40
        before = used(table)
        assert table.counts("bag") == Counts(done=count)
        assert used(table) - before <= 9
        print(f"\n{written / count:.4f} transactions a result written, 8 shards")


def test_failures_are_found_without_a_look_at_the_rest(table: AzureTable) -> None:
    for first in range(0, 9600, 3200):
        table.record([a_portion([a_done(index) for index in range(first, first + 3200)])])
    table.record([a_failed(7), a_failed(9_700), an_expired(9_601)])
    seen: list[str] = []
    original = table._store.query

    def query(partition: str, between: Any = None, **options: Any) -> Iterator[list[Any]]:
        seen.append(between[0][0])
        return original(partition, between, **options)

    table._store.query = query  # type: ignore[method-assign]
    assert [row.index for row in table.results("bag", states=[State.FAILED])] == [9_700]
    assert [row.index for row in table.results("bag", states=[State.EXPIRED, State.FAILED])] == [9_601, 9_700]
    assert set(seen) == {"f"}


def test_a_row_that_is_done_while_it_is_read_is_neither_missed_nor_twice(url: str, table: AzureTable) -> None:
    """The failed rows are read first: it is there as one or the other, whenever it moves."""
    for moment in range(8):
        bag = f"bag-{moment}"
        table.create_bag(a_bag(bag))
        table.record([a_failed(index, bag=bag) for index in range(0, 2000, 100)] + [a_done(1, bag=bag)])
        count = 0

        def later(_: Any, send: Callable[[], Any], bag: str = bag, moment: int = moment) -> Any:
            nonlocal count
            count += 1
            if count == moment:
                table.record([a_done(index, bag=bag) for index in range(0, 2000, 100)])
            return send()

        with hooked(url, later) as reader:
            read = [row.index for row in reader.results(bag)]
        assert read == sorted([1, *range(0, 2000, 100)]), moment


# -- awkward characters -----------------------------------------------------------------------------------

AWKWARD = st.text(
    st.sampled_from("/\\#?%'\"+!~& \x00\x01\x1f\x7f\x80\x9f\t\r\n🦠é\u2028\ufffeaA0-_."), max_size=12
)
NAME = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30) | AWKWARD.filter(bool)


@settings(
    max_examples=10,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(name=NAME, text=AWKWARD | st.text(), raw=st.binary(max_size=40))
def test_names_and_values_come_back_the_same(table: AzureTable, name: str, text: str, raw: bytes) -> None:
    bag, key = f"{next(NUMBERS)}{name}", f"{next(NUMBERS)}{name}"
    text = text.encode("utf-8", "replace").decode()
    table.create_bag(a_bag(bag, source=text))
    assert table.bag(bag).source == text
    rows = [a_done(0, {text: [text]}, bag=bag, id=text, stdout=text), a_failed(1, text, bag=bag, worker=name)]
    table.record(rows)
    assert list(table.results(bag)) == rows
    table.put_blocks([a_block(0, bag=bag, values=[text, name])])
    assert table.block(bag, 0) == a_block(0, bag=bag, values=[text, name])
    assert table.swap(key, raw, 0)
    assert table.shared(key)[0] == raw
    table.beat(a_status(bag, host=text))
    assert bag in {status.worker for status in table.workers()}
    assert bag in {each.name for each in table.bags()}


NUMBERS = iter(range(10**9))


@given(one=NAME | st.text(max_size=600), two=NAME)
def test_escaped_names_are_keys_and_differ(one: str, two: str) -> None:
    escaped = keys.escaped(one)
    assert escaped == escaped.encode("ascii").decode()
    assert not set(escaped) & set("/\\#?%'+ ")
    assert 0 < len(keys.shared_key(one)[0]) <= 512
    assert all(" " < letter < "\x7f" for letter in escaped)
    assert (escaped == keys.escaped(two)) == (one == two)
    assert not escaped.startswith(keys.GONE)


@given(one=st.integers(0, keys.MOST), two=st.integers(0, keys.MOST))
def test_keys_are_in_the_order_of_their_numbers(one: int, two: int) -> None:
    first, second = keys.page_of(one), keys.page_of(two)
    for a, b, equal in (
        (keys.row_key(one), keys.row_key(two), one == two),
        (keys.attempt_key(one, 1, "f"), keys.attempt_key(two, 1, "f"), one == two),
        (keys.page_key(first), keys.page_key(second), first == second),
        (keys.group_key(first, 0), keys.group_key(second, 0), first == second),
    ):
        assert ((a < b), (a == b)) == (one < two and not equal, equal)
    page, run = keys.page_of(one), keys.run_of(keys.page_of(one))
    low, high = keys.range_of("f", page, page)
    assert low <= keys.row_key(one) < high
    low, high = keys.range_of("r", run * keys.RUN, run * keys.RUN + keys.RUN - 1)
    assert low <= keys.group_key(page, 63) < high
    assert keys.range_of("r", page + 1)[0] > keys.group_key(page, 63)


# -- sizes ------------------------------------------------------------------------------------------------


def test_what_is_too_big_goes_to_blobs_and_comes_back(url: str, table: AzureTable) -> None:
    middle, big = noise(700_000), noise(2 * NEAR_BYTES + 500_000)
    bag = a_bag("big", spec=a_bag().spec, source=noise(300_000))
    table.create_bag(bag)
    blocks = [a_block(0, bag="big", values=[big, 1]), a_block(1, bag="big", values=[middle])]
    table.put_blocks(blocks)
    rows = [
        a_done(0, big, bag="big"),
        a_failed(1, big, bag="big"),
        a_done(2, middle, bag="big"),
        a_failed(3, middle, bag="big"),
        a_done(70, big, bag="big"),
    ]
    table.record(rows)
    table.keep_attempts([a_failed(5, big, bag="big")])
    dead = DeadMessage(body=big.encode(), reason="too long", at=1.5)
    table.set_aside([dead])
    assert used(table, BLOB_WRITES) == 6
    with closing(open_table(url)) as other:
        assert other.bag("big") == bag
        assert list(other.blocks("big")) == blocks
        assert list(other.results("big")) == rows
        assert list(other.results("big", states=[State.FAILED])) == [rows[1], rows[3]]
        assert list(other.results("big", indexes=[0, 4, 70])) == [rows[0], rows[4]]
        assert other.retract("big", [1]) == {1}
        assert list(other.attempts("big")) == [rows[1], a_failed(5, big, bag="big")]
        assert list(other.dead()) == [dead]
        assert used(other, BLOB_READS) > 5


def test_more_than_a_transaction_takes_goes_in_several(table: AzureTable) -> None:
    """By bytes, and by number: 64 failures of one page, each with 100 KB, then all of them taken out."""
    rows = [a_failed(index, noise(100_000, index)) for index in range(64)]
    table.record(rows)
    assert list(table.results("bag")) == rows
    assert table.retract("bag", range(64)) == set(range(64))
    assert list(table.attempts("bag")) == rows
    mixed = [a_done(index, noise(90_000, index)) for index in range(120)]
    table.record(mixed)
    assert list(table.results("bag")) == mixed
    assert table.counts("bag") == Counts(done=120)


def test_what_is_done_side_by_side_is_on_the_account_of_who_asked_for_it(table: AzureTable) -> None:
    before = table.meter.used()
    with Tab([table]) as tab:
        table.record([a_portion([a_done(index) for index in range(3000)])])
        table.counts("bag")
        assert len(list(table.results("bag"))) == 3000
    assert tab.used() == since(before, table.meter.used())


# -- transactions that fail in part -----------------------------------------------------------------------


def test_of_a_batch_only_what_is_there_already_is_left_out(table: AzureTable) -> None:
    there = [a_block(number, values=["old", number]) for number in (0, 57, 99, 100, 149)]
    table.put_blocks(there)
    table.put_blocks([a_block(number) for number in range(150)])
    old = {block.number: block for block in there}
    assert list(table.blocks("bag")) == [old.get(number, a_block(number)) for number in range(150)]


def test_pages_that_others_changed_meanwhile_are_read_again_and_the_rest_is_written(
    url: str, table: AzureTable
) -> None:
    """Two of six pages of a transaction are changed after they were read."""
    others = [a_done(64, "theirs"), a_failed(200, "theirs")]

    def overtake(request: Any, send: Callable[[], Any]) -> Any:
        if request.method == "POST" and others:
            table.record(others)
            others.clear()
        return send()

    with hooked(url, overtake) as slow:
        slow.record([a_done(index, "mine") for index in range(384)])
    assert others == []
    rows = {row.index: row.value for row in table.results("bag")}
    assert rows == dict.fromkeys(range(384), "mine") | {64: "theirs"}
    assert table.counts("bag") == Counts(done=384)


# -- counting ---------------------------------------------------------------------------------------------


class PageOf(dict[str, Any]):
    """A page as it is read."""

    def __init__(self, number: int, done: int) -> None:
        super().__init__(RowKey=keys.page_key(number), done=f"{done:x}")


@given(
    st.lists(st.tuples(st.integers(0, 40 * 16 - 1), st.sampled_from([1, 2**63, 2**64 - 1])), max_size=40),
    st.lists(st.integers(0, 39), max_size=60),
    st.lists(st.integers(1, 60), min_size=1, max_size=5),
)
def test_a_count_by_what_is_remembered_is_a_count_of_all(
    some: list[tuple[int, int]], whole: list[int], cuts: list[int]
) -> None:
    """However pages fill up between two counts, the same is counted as by one who reads them all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pages, "SEEN_FOR_ONE", 2)
        count_in_steps(some, whole, cuts)


def count_in_steps(some: list[tuple[int, int]], whole: list[int], cuts: list[int]) -> None:
    shard = 3
    run_of = lambda number: shard + 8 * number  # noqa: E731
    fills = [(run_of(n // 16) * 16 + n % 16, bits) for n, bits in some]
    fills += [(run_of(run) * 16 + page, 2**64 - 1) for run in whole for page in range(16)]
    there: dict[int, int] = {}
    frontier = Frontier(shard)
    while fills or cuts:
        step = cuts.pop() if cuts else len(fills)
        for number, bits in fills[: step * 8]:
            there[number] = there.get(number, 0) | bits
        fills = fills[step * 8 :]
        read = [
            PageOf(number, done)
            for number, done in sorted(there.items())
            if (number // 16) in frontier.open or number // 16 >= frontier.next
        ]
        assert frontier.count(read).done == sum(done.bit_count() for done in there.values())


def test_pages_hold_64_tasks(table: AzureTable) -> None:
    table.record([a_done(index) for index in range(0, 64, 2)])
    table.record([a_done(index) for index in range(1, 64, 2)])
    (answer,) = table._store.query(table._bags.known("bag").partition(0), keys.range_of("p", 0))
    (page,) = map(pages.read, answer)
    assert page.done == 2**64 - 1
    assert [row.index for row in table.results("bag")] == list(range(64))


def test_a_result_alone_takes_two_requests(table: AzureTable) -> None:
    table.record([a_done(0)])
    before = used(table)
    results: list[Result] = [a_done(index) for index in range(1, 21)]
    for result in results:
        table.record([result])
    assert used(table) - before == 2 * len(results)
