"""Where a Firestore table is and what lies there: its URL, what `mtask init` makes, Cloud Storage, what expires; and faults on
the way. Cloud Storage is gcp-storage-emulator, which isn't Google's."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing

import msgspec
import pytest

from mtask.errors import (
    BackendError,
    BagExistsError,
    BagNotFoundError,
    SchemaError,
    UnavailableError,
    UnusableError,
    UsageError,
)
from mtask.model import State
from mtask.registry import open_table as open_by_scheme
from mtask.testing.samples import a_bag, a_block, a_done, a_failed, a_portion
from mtask_gcp import FirestoreTable, make_table, open_table
from mtask_gcp.documents import integer, page_id, put, update
from mtask_gcp.objects import storage_client
from mtask_gcp.place import Place, place_of
from mtask_gcp.setup_table import bucket_name
from tests.contract.table_large import OBJECTS, read_large, write_large
from tests.servers.firestore import PROJECT, create_table, new_url
from tests.servers.wire import Wire

DAY_S = 86400.0


@pytest.fixture
def url(firestore: str) -> str:
    return create_table()


def noise(size: int) -> str:
    """Text that can't be made much smaller."""
    return random.Random(size).randbytes(size // 2).hex()


# -- its URL ------------------------------------------------------------------------------------------


def test_a_url_names_project_table_database_and_bucket() -> None:
    assert place_of("firestore://p-1/reads") == Place("p-1", "reads")
    url = "firestore://example.com:p/a_b-C?database=other-db&bucket=b-1.x"
    assert place_of(url) == Place("example.com:p", "a_b-C", "other-db", "b-1.x")
    assert place_of(url).url == "firestore://example.com:p/a_b-C?database=other-db"


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("firestore://p/", "1 to 255 letters"),
        ("firestore://p/a/b", "1 to 255 letters"),
        ("firestore://p/__a__", "both ends"),
        ("firestore:///a", "it should look like firestore://my-project/reads"),
        ("firestore://P/a", "it should look like"),
        ("firestore://key:secret@p/a", "credentials don't belong"),
        ("firestore://p/a?buket=b", "did you mean 'bucket'"),
        ("firestore://p/a?x=1", "there are bucket, database"),
        ("firestore://p/a?bucket=", "can't be the name of a bucket"),
        ("firestore://p/a?database=X", "can't be the name of a database"),
    ],
)
def test_a_wrong_url_is_refused(url: str, text: str) -> None:
    for call in (open_table, make_table, open_by_scheme):
        with pytest.raises(UsageError, match=text) as error:
            call(url)
        assert "secret" not in str(error.value)


# -- what is there --------------------------------------------------------------------------------------


def test_a_table_that_is_not_there_is_named_with_what_to_do(firestore: str) -> None:
    with pytest.raises(UnusableError, match=r"no table 't-.*`mtask init` makes it"):
        open_table(new_url())


def test_a_table_of_a_newer_mtask_is_left_alone(url: str, table: FirestoreTable) -> None:
    table._db.write([put(table._db.root, {"version": integer(99)})])
    with pytest.raises(SchemaError, match=r"version 99.*upgrade"):
        open_table(url)


def test_init_makes_a_table_and_its_bucket_once(storage: str) -> None:
    url = new_url()
    made = make_table(url)
    assert [how for _, how in made] == ["made", "was there", "made"]
    assert made[2][0] == f"bucket gs://{bucket_name(place_of(url))}"
    assert [how for _, how in make_table(url)] == ["was there"] * 3
    other = f"{url}?bucket=mtask-other-bucket"
    assert [how for _, how in make_table(other)] == ["changed", "was there", "made"]
    assert make_table(url) == [(what, "was there") for what, _ in make_table(other)]
    with closing(open_table(url)) as table:
        assert table._bucket == "mtask-other-bucket"
    with closing(storage_client(PROJECT)) as client:
        assert client.lookup_bucket("mtask-other-bucket") is not None


def test_init_adds_a_bucket_to_a_table_that_has_none(
    url: str, storage_host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [how for _, how in make_table(url)] == ["was there"] * 3
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", storage_host)
    assert [how for _, how in make_table(url)] == ["changed", "was there", "made"]
    with closing(open_table(url)) as table:
        assert table._bucket == bucket_name(place_of(url))


def test_names_of_buckets_are_allowed_and_differ() -> None:
    places = [
        Place("p", "a"),
        Place("p", "A"),
        Place("p", "a", "other"),
        Place("p", "a" * 90),
        Place("p", "a" * 91),
    ]
    places += [Place("example.com:p", "a"), Place("p", "a_b"), Place("p", "a-b")]
    found = {bucket_name(place) for place in places}
    assert len(found) == len(places)
    assert all(place_of(f"firestore://p/a?bucket={name}").bucket == name for name in found)
    assert bucket_name(Place("p", "reads")) == "p-mtask-reads"


# -- what is too big for a document ----------------------------------------------------------------------


def test_what_is_too_big_goes_to_cloud_storage_and_comes_back(storage: str) -> None:
    url = create_table()
    with closing(open_table(url)) as table:
        large = write_large(table, noise(2_400_000), noise(2_000_000))
        assert table.meter.used()["gcs class A operations"] == OBJECTS
    with closing(open_table(url)) as other:
        read_large(other, large)
        assert other.meter.used()["gcs class B operations"] > 5
    with closing(storage_client(PROJECT)) as client:
        assert len(list(client.list_blobs(bucket_name(place_of(url))))) == OBJECTS


def test_small_rows_and_large_ones_share_a_page(table: FirestoreTable) -> None:
    """Up to 1 MB, without a bucket: 32 rows just below the size that has documents of its own, and others."""
    table.create_bag(a_bag())
    rows = [a_done(index, noise(28_000)) for index in range(32)]
    rows += [a_failed(index, noise(1000 * 2 ** (index % 10))) for index in range(32, 64)]
    table.record([a_portion(rows[:32]), *rows[32:]])
    assert list(table.results("bag")) == rows
    sizes = [
        sum(each.ByteSize() for each in there.fields.values())
        for there in table._db.stream(table._db.tasks(f"n{table.bag('bag').uid}"), "mtask-pages")
    ]
    assert 450_000 < max(sizes) < 600_000
    assert table.retract("bag", range(64)) == set(range(32, 64))
    assert list(table.attempts("bag")) == rows[32:]


def test_without_a_bucket_it_says_what_to_do(table: FirestoreTable) -> None:
    table.create_bag(a_bag())
    with pytest.raises(UnusableError, match=r"bytes are too big .* \?bucket=NAME"):
        table.record([a_done(0, noise(2_000_000)), a_done(1)])
    assert list(table.results("bag")) == []


def test_a_bucket_that_is_missing_is_named(storage: str) -> None:
    with closing(open_table(f"{create_table()}?bucket=no-such-bucket")) as table:
        table.create_bag(a_bag())
        with pytest.raises(UnusableError, match=r"no bucket 'no-such-bucket'.*`mtask init`"):
            table.record([a_done(0, noise(2_000_000))])


def test_an_object_that_is_gone_is_named(storage: str) -> None:
    url = create_table()
    with closing(open_table(url)) as table:
        table.create_bag(a_bag())
        table.record([a_done(0, noise(2_000_000))])
        with closing(storage_client(PROJECT)) as client:
            for blob in client.list_blobs(bucket_name(place_of(url))):
                blob.delete()
        with pytest.raises(BackendError, match=r"gs://.* is gone, though firestore://"):
            list(table.results("bag"))


# -- what expires ---------------------------------------------------------------------------------------


def test_what_expires_says_when(storage: str) -> None:
    with closing(open_table(create_table())) as table:
        spec = msgspec.structs.replace(a_bag().spec, keep_s=30 * DAY_S)
        bag = a_bag(spec=spec, created_at=float(int(time.time())))
        table.create_bag(bag)
        table.put_blocks([a_block(0)])
        table.record([a_done(0), a_failed(1), a_done(2, noise(100_000)), a_done(3, noise(2_000_000))])
        table.keep_attempts([a_failed(1)])
        table.retract("bag", [1])
        table.record([a_failed(1)])
        parent = table._db.tasks(f"n{bag.uid}")
        found = list(table._db.stream(table._db.root, "mtask-bags"))
        for collection, count in (("pages", 1), ("blocks", 1), ("attempts", 1), ("blobs", 1)):
            there = list(table._db.stream(parent, f"mtask-{collection}"))
            assert len(there) == count, collection
            found += there
        ends = {there.fields["ttl"].timestamp_value.seconds for there in found}
        assert ends == {int(bag.created_at + 30 * DAY_S)}


def test_an_expired_bag_is_gone_and_its_name_free(table: FirestoreTable, url: str) -> None:
    spec = msgspec.structs.replace(a_bag().spec, keep_s=DAY_S)
    table.create_bag(a_bag(spec=spec, created_at=time.time() - 2 * DAY_S))
    with closing(open_table(url)) as other:
        assert other.bags() == []
        assert list(other.results("bag")) == []
        with pytest.raises(BagNotFoundError):
            other.counts("bag")
        other.create_bag(a_bag(total=7))
        assert other.bag("bag").total == 7
    with pytest.raises(BagExistsError):
        table.create_bag(a_bag(total=8))


# -- many rows ------------------------------------------------------------------------------------------


def test_20_000_rows_come_back_in_order(table: FirestoreTable) -> None:
    table.create_bag(a_bag(total=20_000))
    portions = [
        a_portion([a_done(index, index) for index in range(at, at + 500)]) for at in range(0, 20_000, 500)
    ]
    random.Random(1).shuffle(portions)
    before = table.meter.used()["firestore writes"]
    for at in range(0, len(portions), 4):
        table.record(portions[at : at + 4])
    each = (table.meter.used()["firestore writes"] - before) / 20_000
    print(f"\n{each:.3f} writes a result")
    assert each < 0.07
    assert table.counts("bag").done == 20_000
    before = table.meter.used()["firestore reads"]
    assert [(row.index, row.value) for row in table.results("bag")] == [(at, at) for at in range(20_000)]
    assert table.meter.used()["firestore reads"] - before <= 640
    assert [row.index for row in table.results("bag", after=19_970)] == list(range(19_971, 20_000))
    table.record([a_failed(index) for index in (20_000, 25_000, 30_000)])
    before = table.meter.used()["firestore reads"]
    failed = list(table.results("bag", states=[State.FAILED]))
    assert [row.index for row in failed] == [20_000, 25_000, 30_000]
    assert table.meter.used()["firestore reads"] - before <= 12, "no scan"


def test_rows_that_come_alone_cost_a_write_each(table: FirestoreTable) -> None:
    table.create_bag(a_bag())
    before = table.meter.used()
    for index in range(100):
        table.record([a_done(index)])
    used = table.meter.used()
    assert used["firestore writes"] - before["firestore writes"] == 100
    assert used["firestore reads"] - before["firestore reads"] == 4, (
        "the first of each page looks what is there"
    )


# -- faults -------------------------------------------------------------------------------------------------


def test_out_of_reach_and_back(firestore: str, monkeypatch: pytest.MonkeyPatch) -> None:
    host, _, port = firestore.partition(":")
    url, wire = create_table(), Wire(int(port))
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", f"{host}:{wire.port}")
    with closing(open_table(url)) as table:
        table.create_bag(a_bag())
        wire.close()
        began_s = time.monotonic()
        with pytest.raises(UnavailableError, match="out of reach"):
            table.record([a_done(0)])
        assert time.monotonic() - began_s < 15
        wire = Wire(int(port), at=wire.port)
        deadline_s = time.monotonic() + 30
        while True:
            try:
                table.record([a_done(0)])
                break
            except UnavailableError:
                assert time.monotonic() < deadline_s
        assert table.counts("bag").done == 1
    wire.close()


def test_close_waits_for_no_answer(firestore: str, monkeypatch: pytest.MonkeyPatch) -> None:
    host, _, port = firestore.rpartition(":")
    url, wire = create_table(), Wire(int(port))
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", f"{host}:{wire.port}")
    table = open_table(url)
    wire.deaf = True
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(list, table._db.stream(table._db.root, "none"))
        wait([running], 0.5)
        began_s = time.monotonic()
        table.close()
        assert time.monotonic() - began_s < 5
        with pytest.raises(BackendError):
            running.result(5)
    wire.close()


def test_a_closed_table_says_so(table: FirestoreTable) -> None:
    table.close()
    with pytest.raises(BackendError, match="is closed"):
        table.bags()


# -- several at once ------------------------------------------------------------------------------------


def test_a_stale_page_is_read_again(table: FirestoreTable, url: str) -> None:
    """A client that remembers a page as it left it meets what others wrote since."""
    table.create_bag(a_bag())
    table.record([a_done(0), a_failed(1, "old")])
    with closing(open_table(url)) as other:
        other.record([a_done(1), a_failed(2, "new")])
    table.record([a_failed(1, "late"), a_done(2), a_done(3)])
    assert "".join(row.state[0] for row in table.results("bag")) == "dddd"


def test_twelve_writers_of_one_page_all_get_through(table: FirestoreTable, url: str) -> None:
    table.create_bag(a_bag())
    tables = [open_table(url) for _ in range(12)]
    start = threading.Barrier(len(tables))

    def write(mine: FirestoreTable, index: int) -> None:
        with closing(mine):
            start.wait()
            mine.record([a_done(index)])

    threads = [threading.Thread(target=write, args=(mine, at)) for at, mine in enumerate(tables)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [row.index for row in table.results("bag")] == list(range(12))


def test_a_page_that_is_damaged_is_named(table: FirestoreTable) -> None:
    table.create_bag(a_bag())
    table.record([a_done(0), a_done(1)])
    name = f"{table._db.tasks('n' + table.bag('bag').uid)}/mtask-pages/{page_id(0)}"
    there = table._db.get(name)
    assert there is not None
    table._db.write([update(name, {}, ["body.r0"], at=there.changed_at)])
    with pytest.raises(BackendError, match="no row of the task 0"):
        list(table.results("bag"))
