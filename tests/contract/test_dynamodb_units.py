"""What the DynamoDB table costs, by the units that the server tells (dynalite reckons them as AWS does), and what a reader
needn't read twice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtask.errors import BackendError, UnavailableError
from mtask.meter import Tab, since
from mtask.model import Counts, Result
from mtask.paged import Tally
from mtask.testing.samples import a_bag, a_block, a_done, a_failed, a_portion, a_status
from mtask_aws import DynamoTable, dynamo, keys, open_table, pages
from mtask_aws.dynamo import Item, size_of
from tests.servers.dynamodb import create, hook

WRITES, READS = "dynamodb write units", "dynamodb read units"


@pytest.fixture
def table(dynalite: str) -> Iterator[DynamoTable]:
    with closing(open_table(create())) as table:
        table.create_bag(a_bag())
        yield table


def small(index: int) -> Result:
    """As a worker writes it: nothing in two of them is the same but names."""
    began_at = 1_790_000_000.123 + index / 1000
    return a_done(
        index,
        index * 7919 % 10007,
        worker="ip-10-0-3-17-4711-x7f3",
        host="ip-10-0-3-17.ec2.internal",
        queued_at=began_at - 1,
        started_at=began_at,
        finished_at=began_at + 0.0007,
        wall_s=0.000713 + index % 97 / 1e6,
        cpu_s=0.000698 + index % 89 / 1e6,
        peak_bytes=31_416_320 + index % 53 * 4096,
    )


def used(table: DynamoTable, unit: str) -> float:
    return table.meter.used().get(unit, 0.0)


def test_what_is_done_side_by_side_is_on_the_account_of_who_asked_for_it(table: DynamoTable) -> None:
    before = table.meter.used()
    with Tab([table]) as tab:
        table.put_blocks([a_block(number) for number in range(5)])
        table.record([a_portion([small(index) for index in range(1000)])])
        table.counts("bag")
        assert len(list(table.results("bag"))) == 1000
    assert tab.used() == since(before, table.meter.used())


@pytest.mark.parametrize("portion", [64, 50, 500])
def test_10_000_small_results_in_portions(table: DynamoTable, portion: int) -> None:
    before = used(table, WRITES)
    for first in range(0, 10_000, portion):
        table.record([a_portion([small(index) for index in range(first, min(first + portion, 10_000))])])
    each = (used(table, WRITES) - before) / 10_000
    print(f"\n{portion} in a portion: {each:.3f} write units a result")
    assert 0 < each <= 0.25
    assert table.counts("bag").done == 10_000


def test_10_000_small_results_some_at_a_time_and_1_000_one_by_one(table: DynamoTable) -> None:
    before = used(table, WRITES)
    for first in range(0, 10_000, 200):
        table.record([small(index) for index in range(first, first + 200)])
    together, before = (used(table, WRITES) - before) / 10_000, used(table, WRITES)
    for index in range(10_000, 11_000):
        table.record([small(index)])
    alone = (used(table, WRITES) - before) / 1000
    print(f"\ntogether {together:.3f}, alone {alone:.3f} write units a result")
    assert 0 < together <= 0.25
    assert alone == 2  # the row and the page, of which neither is larger than 1 KB even when it is full
    assert table.counts("bag").done == 11_000


def test_units_are_those_of_the_server_or_more(table: DynamoTable) -> None:
    """A local server may say nothing, or always the same; then the sizes of the items count."""
    told: list[float] = []

    def tell(parsed: dict[str, Any], **_: Any) -> None:
        said = parsed.pop("ConsumedCapacity")
        told.extend(each["CapacityUnits"] for each in (said if isinstance(said, list) else [said]))

    hook(table, "after-call.dynamodb", tell)
    before = used(table, WRITES)
    table.record([*(small(index) for index in range(200)), a_failed(300, "x" * 3000)])
    table.put_blocks([a_block(0, values=["".join(map(chr, range(40, 2000))), 1])])
    table.beat(a_status())
    assert used(table, WRITES) - before == sum(told) > 10


def test_counting_again_reads_only_what_can_have_changed(table: DynamoTable) -> None:
    for first in range(0, 25_600, 3200):
        table.record([a_portion([a_done(index) for index in range(first, first + 3200)])])
    table.record([a_failed(25_600)])
    costs = []
    for _ in range(3):
        before = used(table, READS)
        assert table.counts("bag") == Counts(done=25_600, failed=1)
        costs.append(used(table, READS) - before)
    print(f"\nread units of counts: {costs}")
    assert costs[0] > 40
    assert costs[1] == costs[2] <= 11  # the bag, eight partitions, the page that isn't complete


def test_a_small_bag_is_in_one_partition(table: DynamoTable) -> None:
    table.record([a_done(index) for index in range(1000)])
    queries: list[str] = []
    hook(table, "before-call.dynamodb.Query", lambda **_: queries.append("Query"))
    with closing(open_table(table._db.address.url)):
        table.counts("bag")
    assert len(queries) == 1


def test_failures_are_found_without_a_look_at_the_rest(table: DynamoTable) -> None:
    for first in range(0, 25_600, 3200):
        table.record([a_portion([a_done(index, "x" * 200) for index in range(first, first + 3200)])])
    table.record([a_failed(7), a_failed(20_000), a_failed(25_600)])
    before = used(table, READS)
    assert [row.index for row in table.results("bag", states=["failed"])] == [25_600]  # type: ignore[list-item]
    assert used(table, READS) - before < 20


# -- batches ----------------------------------------------------------------------------------------------


def leave_a_part(
    table: DynamoTable, action: str, field: str, answer: str, *, all_of_it: bool = False
) -> list[int]:
    """Have the server do only half of what a batch asks for, rounded up, as AWS does when it is busy, and say so."""
    left_sizes: list[int] = []

    def cut(params: dict[str, Any], context: dict[str, Any], **_: Any) -> None:
        ((name, asked),) = params["RequestItems"].items()
        requests = asked if isinstance(asked, list) else asked["Keys"]
        half = (len(requests) + 1) // 2
        now, later = requests[:half], requests[half:]
        wrap = (lambda part: part) if isinstance(asked, list) else (lambda part: asked | {"Keys": part})
        params["RequestItems"] = {name: wrap(now)}
        if all_of_it:
            later = now + later
        context["left"] = {name: wrap(later)} if later else {}
        left_sizes.append(len(later))

    def tell(parsed: dict[str, Any], context: dict[str, Any], **_: Any) -> None:
        parsed[answer] = context["left"]

    hook(table, f"before-parameter-build.dynamodb.{action}", cut)
    hook(table, f"after-call.dynamodb.{action}", tell)
    return left_sizes


def test_what_a_batch_left_undone_is_sent_again(table: DynamoTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dynamo, "PAUSE_S", 0.001)
    writes = leave_a_part(table, "BatchWriteItem", "PutRequest", "UnprocessedItems")
    reads = leave_a_part(table, "BatchGetItem", "Keys", "UnprocessedKeys")
    rows = [a_failed(index) if index % 2 else a_done(index) for index in range(300)]
    table.record(rows)
    assert list(table.results("bag")) == rows
    assert list(table.results("bag", indexes=range(300))) == rows
    assert max(writes) > 10
    assert max(reads) > 10


@pytest.mark.parametrize("action", ["BatchWriteItem", "BatchGetItem"])
def test_a_batch_that_is_never_done_is_a_busy_table(
    table: DynamoTable, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    monkeypatch.setattr(dynamo, "PAUSE_S", 0.0001)
    answer = "UnprocessedItems" if action == "BatchWriteItem" else "UnprocessedKeys"
    sizes = leave_a_part(table, action, "", answer, all_of_it=True)
    with pytest.raises(UnavailableError, match=f"busy.*{action}"):
        table.record([a_done(0), a_failed(1)])
        table.recorded("bag", range(1000))
    assert len(sizes) == dynamo.TRIES
    assert table.meter.used()


def test_a_busy_table_is_tried_again_by_the_engine(table: DynamoTable) -> None:
    def throttle(parsed: dict[str, Any], http_response: Any, **_: Any) -> None:
        http_response.status_code = 400
        parsed["Error"] = {
            "Code": "ThrottlingException",
            "Message": "Throughput exceeds the current capacity",
        }

    hook(table, "after-call.dynamodb.UpdateItem", throttle)
    with pytest.raises(UnavailableError, match="Throughput exceeds"):
        table.record([a_done(0)])


# -- what is pure ---------------------------------------------------------------------------------------

NUMBER = st.integers(0, keys.MOST)


@given(one=NUMBER, two=NUMBER, attempts=st.tuples(st.integers(0, 9999), st.integers(0, 9999)))
def test_keys_are_in_the_order_of_their_numbers(one: int, two: int, attempts: tuple[int, int]) -> None:
    a, b = (keys.attempt_key("u", n, m, "z")[1] for n, m in zip((one, two), attempts, strict=True))
    assert (a < b) == ((one, attempts[0]) < (two, attempts[1]))
    assert (keys.block_key("u", one)[1] < keys.block_key("u", two)[1]) == (one < two)
    low, high = sorted((keys.page_of(one), keys.page_of(two)))
    for kind in "prf":
        first, last = keys.range_of(kind, low, high)
        for index in (one, two):
            token = keys.new_token([index % keys.PAGE])
            key = {
                "p": keys.page_key("u", keys.page_of(index)),
                "r": keys.group_key("u", keys.page_of(index), token),
                "f": keys.failure_key("u", index, token),
            }[kind][1]
            assert first <= key <= last
        assert not first <= keys.failure_key("u", (high + 1) * keys.PAGE, "0")[1] <= last


@given(page=st.integers(-1, 300), shard=st.integers(0, keys.SHARDS - 1))
def test_the_next_page_of_a_shard(page: int, shard: int) -> None:
    assert keys.next_page(shard, page) == next(n for n in range(page + 1, 500) if keys.shard_of(n) == shard)


@given(one=st.text(max_size=3000), two=st.text(max_size=3000))
def test_short_names(one: str, two: str) -> None:
    assert (keys.short(one) == keys.short(two)) == (one == two)
    assert 0 < len(keys.short(one).encode()) <= 1000


def test_an_index_out_of_range_is_refused(table: DynamoTable) -> None:
    for index in (-1, keys.MOST + 1):
        with pytest.raises(BackendError, match="not between"):
            table.record([a_done(0), a_done(index)])
    table.record([a_done(keys.MOST)])
    assert [row.index for row in table.results("bag", after=keys.MOST - 1)] == [keys.MOST]
    assert list(table.results("bag", after=keys.MOST)) == []
    assert table.recorded("bag", [0, -1, keys.MOST, keys.MOST + 1]) == {keys.MOST}


CHANGES = st.lists(
    st.tuples(
        st.sampled_from([*range(-2, 40), 2**20]), st.sampled_from("dddaaccfx"), st.sampled_from([0, 1, 63])
    ),
    max_size=40,
)
"""How many pages behind the old ones; one task done, all but the first, all, one failed or expired; the offset."""


@given(
    turns=st.lists(CHANGES, max_size=8), shard=st.sampled_from([0, 5]), old=st.sampled_from([0, 16, 150, 400])
)
def test_a_frontier_counts_as_if_it_read_everything(
    turns: list[list[tuple[int, str, int]]], shard: int, old: int
) -> None:
    """The first `old` pages are complete from the beginning."""
    token, late = {"S": "0abcdefgh"}, {"f": {"S": "f0abcdefgh"}, "x": {"S": "x0abcdefgh"}}
    items: dict[int, Item] = {}

    def at(number: int) -> Item:
        return items.setdefault(number, {"pk": {"S": "p"}, "sk": {"S": f"p{number:012x}"}, "ttl": {"N": "1"}})

    for number in range(old):
        if keys.shard_of(number) == shard:
            at(number).update({f"d{offset}": token for offset in range(64)})
    frontier = pages.Frontier(shard)
    for changes in turns:
        for behind_old, kind, offset in changes:
            number = max(0, old + behind_old)
            if keys.shard_of(number) == shard:
                if kind in late:
                    at(number)[f"f{offset}"] = late[kind]
                else:
                    offsets = {"d": [offset], "a": range(1, 64), "c": range(64)}[kind]
                    at(number).update({f"d{n}": token for n in offsets})
        total = Tally()
        for item in items.values():
            page = pages.read(item)
            states = [state.value for state, _ in page.ended.values()]
            part = Tally(len(page.done), states.count("failed"), states.count("expired"))
            assert pages.tally(item) == part
            total = total.plus(part)
        opened = [items[number] for number in frontier.open if number in items]
        behind = [items[number] for number in sorted(items) if number >= frontier.next]
        assert frontier.count(opened, behind) == total
        assert len(frontier.open) <= max(0, frontier.complete // pages.OPEN_SHARE + 1)


@given(st.dictionaries(st.integers(0, 63), st.sampled_from("dfx")).filter(bool))
def test_an_update_of_a_page_fits_and_reads_as_it_was_written(kinds: dict[int, str]) -> None:
    done = {n: keys.new_token([n]) for n, kind in kinds.items() if kind == "d"}
    ended = {n: (pages._STATES[kind], keys.new_token()) for n, kind in kinds.items() if kind != "d"}
    expression, _, values = pages.Change(done, ended).expression(2**31)
    assert len(expression) < 4096
    item: Item = {
        "pk": {"S": f"b:{'0' * 12}:7"},
        "sk": {"S": f"p{keys.LAST_PAGE:012x}"},
        "ttl": {"N": str(2**31)},
    }
    item |= {f"d{n}": {"S": token} for n, token in done.items()}
    item |= {f"f{n}": {"S": pages._LETTERS[state] + token} for n, (state, token) in ended.items()}
    assert size_of(item) <= 1024
    assert pages.read(item) == pages.Page(keys.LAST_PAGE, done, ended)
    assert set(values) - {":ttl"} == {f":{n}" for n in range(len(values) - 1)}
