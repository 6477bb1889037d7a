"""Where an Azure table is and who may use it: its URL, what `mtask init` makes, what expires, what the doctor finds."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from azure.core.exceptions import ClientAuthenticationError, HttpResponseError

from mtask.errors import (
    BackendError,
    BagExistsError,
    BagNotFoundError,
    UnavailableError,
    UnusableError,
    UsageError,
)
from mtask.estimate import Load
from mtask.registry import ROLES
from mtask.testing.samples import a_bag, a_block, a_done, a_failed
from mtask_azure import PRICES, AzureTable, diagnose, make_table, open_table, setup, table_units
from mtask_azure.address import table_address
from mtask_azure.client import Account
from mtask_azure.expiry import AFTER_S, sweep
from mtask_azure.faults import BLOB, TABLE
from mtask_azure.prices import TRANSACTIONS
from tests.servers.azure import ACCOUNT, CONNECTION, KEY, Servers, new_table_url, point_at
from tests.servers.azurehooks import create
from tests.servers.azureproxy import Answer, Request, Rule, proxy_to, table_error

DAY_S = 86400.0
READS = "azuretable://mtasktests/reads"


@pytest.fixture
def url(azurite_tables: Servers) -> str:
    return create()


# -- URLs and accounts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("azuretable://mtasktests/", "3 to 63 letters and digits"),
        ("azuretable://mtasktests/my-reads", "3 to 63 letters and digits, the first one a letter"),
        ("azuretable://mtasktests/1reads", "the first one a letter"),
        ("azuretable://mtasktests/" + "a" * 64, "3 to 63"),
        ("azuretable://mtasktests/Tables", "3 to 63 letters and digits"),
        ("azuretable://My_Account/reads", "3 to 24 lowercase letters"),
        ("azuretable:///reads", "not the URL"),
        (f"{READS}?container=UPPER", "can't be the name of a container"),
        (f"{READS}?container=a--b", "can't be the name of a container"),
        (f"{READS}?contaner=abc", "did you mean 'container'"),
        ("azuretable://key:secret@account/reads", "keys and signatures don't belong"),
        (f"{READS}?sig=abc", "keys and signatures don't belong"),
    ],
)
def test_urls_that_can_not_be_used(url: str, text: str) -> None:
    with pytest.raises(UsageError, match=text) as caught:
        open_table(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("connection", "error", "text"),
    [
        (
            "AccountName=another;AccountKey=c2VjcmV0",
            UsageError,
            "is of the storage account 'another', not of",
        ),
        (
            "TableEndpoint=https://another.table.core.windows.net;SharedAccessSignature=sig=c2VjcmV0",
            UsageError,
            "is of the storage account 'another', not of",
        ),
        ("AccountKey=c2VjcmV0", UsageError, "can't be used: it needs"),
        ("c2VjcmV0", UsageError, "can't be used: it needs"),
    ],
)
def test_connection_strings_that_can_not_be_used(
    monkeypatch: pytest.MonkeyPatch, connection: str, error: type[Exception], text: str
) -> None:
    point_at(connection, monkeypatch)
    with pytest.raises(error, match=text) as caught:
        open_table(READS)
    assert "c2VjcmV0" not in str(caught.value)
    (finding,) = diagnose([READS], ROLES)
    assert (finding.ok, finding.stops) == (False, True)


def test_an_account_that_is_not_there(azurite_tables: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    point_at(f"AccountName=nobodys;AccountKey={KEY};EndpointSuffix=invalid", monkeypatch)

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(UnusableError, match="no storage account 'nobodys', or its name is spelled otherwise"):
        open_table("azuretable://nobodys/reads")


def test_a_server_that_is_not_there(azurite_tables: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    point_at(azurite_tables.connection(table="http://127.0.0.1:9"), monkeypatch)
    with pytest.raises(UnavailableError, match="out of reach: Connection refused"):
        open_table(READS)


def test_a_wrong_key(url: str, azurite_tables: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    point_at(azurite_tables.connection(key="c2VjcmV0"), monkeypatch)
    with pytest.raises(UnusableError, match="the key isn't this account's") as caught:
        open_table(url)
    assert "c2VjcmV0" not in str(caught.value)


def test_a_table_that_is_not_there(azurite_tables: Servers) -> None:
    url = new_table_url()
    with pytest.raises(UnusableError, match=rf"{url}: there is no such table: `mtask init` makes it"):
        open_table(url)


def test_a_table_that_is_removed_while_it_is_open(table: AzureTable) -> None:
    table.create_bag(a_bag())
    table._store._table().delete_table()
    for call in (lambda: table.record([a_done()]), table.bags, table.lanes):
        with pytest.raises(UnusableError, match="mtask init"):
            call()


def test_a_table_that_is_closed(table: AzureTable) -> None:
    table.create_bag(a_bag())
    table.record([a_done(index) for index in range(0, 9000, 1000)])
    table.close()
    table.close()
    with pytest.raises(BackendError, match="closed"):
        table.bags()


# -- signatures -------------------------------------------------------------------------------------------


def test_a_signature_does(url: str, azurite_tables: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    point_at(azurite_tables.signed(), monkeypatch)
    with closing(open_table(url)) as table:
        table.create_bag(a_bag())
        table.record([a_done(0), a_failed(1)])
        assert [row.index for row in table.results("bag")] == [0, 1]


def test_a_signature_that_has_expired(
    url: str, azurite_tables: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = azurite_tables.signed(ends_in=timedelta(hours=-1))
    point_at(text, monkeypatch)
    with pytest.raises(UnusableError, match=r"signature.*expired at 20.*generate-sas") as caught:
        open_table(url)
    assert "sig=" not in str(caught.value)
    findings = list(diagnose([url], ROLES))
    assert any(finding.ok is False and finding.stops and "expired" in finding.text for finding in findings)


def test_a_signature_that_may_only_read(
    url: str, azurite_tables: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    point_at(azurite_tables.signed(permission="r"), monkeypatch)
    with (
        closing(open_table(url)) as table,
        pytest.raises(UnusableError, match="access denied: write on"),
    ):
        table.create_bag(a_bag())
    findings = {finding.what: finding for finding in diagnose([url], ROLES)}
    assert findings["table"].ok is True
    assert findings["table: write"].ok is False
    assert "sp=rwdlacu" in findings["table: write"].text
    assert findings["container"].ok is False


def test_who_has_no_role_or_no_credentials_is_told_which(monkeypatch: pytest.MonkeyPatch) -> None:
    """By azure-identity, which speaks to no emulator."""
    monkeypatch.delenv(CONNECTION, raising=False)
    account = Account(table_address(READS))
    assert "DefaultAzureCredential" in account.how
    denied = HttpResponseError("This request is not authorized")
    denied.status_code, denied.error_code = 403, "AuthorizationPermissionMismatch"  # type: ignore[attr-defined]
    with (
        pytest.raises(
            UnusableError, match=r"denied: write on .*give this identity the role 'Storage Table Data C"
        ),
        account.errors("write", TABLE),
    ):
        raise denied
    with (
        pytest.raises(UnusableError, match="role 'Storage Blob Data Contributor'"),
        account.errors("write", BLOB, "the container 'reads'"),
    ):
        raise denied
    with (
        pytest.raises(UnusableError, match=r"needs credentials \(none of the chain\).*az login"),
        account.errors("read", TABLE),
    ):
        raise ClientAuthenticationError("none of the chain")


# -- a server in between, for what Azurite never says -------------------------------------------------------


@contextmanager
def between(servers: Servers, rule: Rule) -> Iterator[None]:
    """A proxy between this process and the tables."""
    with proxy_to(servers.url("table")) as proxy, proxy.rule(rule), pytest.MonkeyPatch.context() as patch:
        point_at(servers.connection(table=proxy.url), patch)
        yield


@pytest.mark.parametrize(
    ("code", "status", "error", "text"),
    [
        ("TableNotFound", 404, UnusableError, "mtask init"),
        ("TableBeingDeleted", 409, UnavailableError, "is being deleted"),
        ("KeyBasedAuthenticationNotPermitted", 403, UnusableError, "role 'Storage Table Data Contributor'"),
        ("AuthenticationFailed", 403, UnusableError, "doesn't accept these credentials"),
        ("ServerBusy", 503, UnavailableError, "busy"),
        ("OperationTimedOut", 500, UnavailableError, "busy"),
        ("InvalidInput", 400, BackendError, "InvalidInput"),
    ],
)
def test_who_is_refused_is_told_why(
    azurite_tables: Servers,
    monkeypatch: pytest.MonkeyPatch,
    code: str,
    status: int,
    error: type[BackendError],
    text: str,
) -> None:
    with between(azurite_tables, lambda _: table_error(status, code)):
        with pytest.raises(error, match=text) as caught:
            open_table(READS)
        assert isinstance(caught.value, UnavailableError | UnusableError) == (error is not BackendError)
        table, *_ = [each for each in diagnose([READS], ROLES) if each.what == "table"]
        if issubclass(error, UnavailableError):
            assert table.ok is None
        else:
            assert table.ok is False


def test_init_waits_while_the_last_table_of_the_name_is_deleted(
    azurite_tables: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "PAUSE_S", 0.01)
    refused: list[str] = []

    def deleting(request: Request) -> Answer | None:
        if "Tables" in request.path and len(refused) < 3:
            refused.append(request.path)
            return table_error(409, "TableBeingDeleted", "The specified table is being deleted.")
        return None

    with between(azurite_tables, deleting):
        url = new_table_url()
        assert [how for _, how in make_table(url)] == ["made", "made"]
        assert len(refused) == 3
        refused.clear()
        monkeypatch.setattr(setup, "PATIENCE_S", 0.0)
        with pytest.raises(UnavailableError, match="is being deleted"):
            make_table(new_table_url())


# -- mtask init, the doctor, prices -------------------------------------------------------------------------


def test_init_makes_the_table_and_its_container_once(azurite_tables: Servers) -> None:
    url = f"{new_table_url()}?container=shared-container"
    name = url.rpartition("/")[2].partition("?")[0]
    assert make_table(url) == [
        (f"table {name} in {ACCOUNT}", "made"),
        (f"container shared-container in {ACCOUNT}", "made"),
    ]
    assert [how for _, how in make_table(url)] == ["was there", "was there"]
    assert [how for _, how in make_table(f"{new_table_url()}?container=shared-container")] == [
        "made",
        "was there",
    ]


def test_a_container_that_is_missing_is_named_with_what_to_do(azurite_tables: Servers) -> None:
    import random

    url = create()
    with closing(open_table(f"{url}?container=missing-one")) as table:
        table.create_bag(a_bag())
        table.record([a_done(0, "small")])
        with pytest.raises(
            UnusableError, match=r"container 'missing-one' of .* no such container: `mtask init` makes it"
        ):
            table.record([a_done(1, random.Random(1).randbytes(2_000_000).hex())])
        assert [row.index for row in table.results("bag")] == [0]
    findings = {finding.what: finding for finding in diagnose([f"{url}?container=missing-one"], ROLES)}
    assert findings["container"].ok is False
    assert not findings["container"].stops
    assert "mtask init" in findings["container"].todo


def test_the_doctor_finds_nothing_wrong_and_leaves_nothing(url: str, table: AzureTable) -> None:
    findings = list(diagnose([url], ROLES))
    assert [finding.what for finding in findings if finding.ok is False] == []
    assert {"credentials", "table", "clock", "table: write", "container", "container: delete"} <= {
        finding.what for finding in findings
    }
    assert list(table._store.query("doctor")) in ([], [[]])
    assert list(table._blobs.container().list_blob_names()) == []


def test_the_doctor_misses_the_table(azurite_tables: Servers) -> None:
    *_, last = diagnose([new_table_url()], ROLES)
    assert (last.what, last.ok, last.stops) == ("table", False, True)
    assert "mtask init" in last.todo


def test_an_estimate_is_about_what_is_used(table: AzureTable) -> None:
    load = Load(tasks=10_000, messages=100, message_bytes=500_000, result_bytes=3_000_000)
    estimated = table_units("", load)[TRANSACTIONS]
    before = table.meter.used()[TRANSACTIONS]
    table.create_bag(a_bag())
    for first in range(0, 100, 50):
        table.put_blocks([a_block(number) for number in range(first, first + 50)])
        table.update_bag("bag", total=first, sent=first)
        table.update_bag("bag", sent=first + 50)
    for first in range(0, 10_000, 1000):
        table.record([a_done(index) for index in range(first, first + 1000)])
    used = table.meter.used()[TRANSACTIONS] - before
    assert estimated / 2.5 <= used <= 2.5 * estimated
    assert table_units("", msgspec.structs.replace(load, alone=True)) == {TRANSACTIONS: 20_000.0}
    assert PRICES.million(TRANSACTIONS) == pytest.approx(0.036)


# -- what expires -------------------------------------------------------------------------------------------


def kept(keep_s: float, **fields: Any) -> Any:
    return a_bag(spec=msgspec.structs.replace(a_bag().spec, keep_s=keep_s), **fields)


def expire(table: AzureTable, name: str, ago_s: float) -> None:
    """As if its time had ended so long ago."""
    entity = table._store.get(("bags", name))
    assert entity is not None
    table._store.put(("bags", name), dict(entity) | {"gone_at": time.time() - ago_s})
    table._bags._known.clear()


def everything(table: AzureTable) -> list[str]:
    """The partition keys of all entities."""
    return [entity["PartitionKey"] for entity in table._store._table().list_entities(select=["PartitionKey"])]


def test_a_bag_that_has_expired_is_gone_and_its_name_is_free(url: str, table: AzureTable) -> None:
    table.create_bag(kept(10.0, created_at=time.time() - 5))
    table.create_bag(kept(DAY_S, name="old", created_at=time.time() - 2 * DAY_S))
    assert [bag.name for bag in table.bags()] == ["bag"]
    for call in (table.bag, table.counts):
        with pytest.raises(BagNotFoundError):
            call("old")
    assert list(table.results("old")) == []
    with pytest.raises(BagExistsError):
        table.create_bag(kept(10.0))
    again = a_bag("old")
    table.create_bag(again)
    with closing(open_table(url)) as other:
        assert other.bag("old") == again
        assert [bag.name for bag in other.bags()] == ["bag", "old"]


def test_what_has_expired_is_removed_by_whoever_makes_the_next_bag_that_will(table: AzureTable) -> None:
    import random

    big = random.Random(1).randbytes(2_000_000).hex()
    names = ("old", "taken", "young")
    for name in names:
        table.create_bag(kept(DAY_S, name=name, uid=f"uid-{name}"))
        table.put_blocks([a_block(number, bag=name) for number in range(120)])
        table.record([a_done(index, bag=name) for index in range(0, 9000, 60)] + [a_failed(1, bag=name)])
        table.record([a_done(2, big, bag=name)])
        table.keep_attempts([a_failed(2, bag=name)])
    for name, ago_s in zip(names, (AFTER_S + 1, AFTER_S + 1, -60), strict=True):
        expire(table, name, ago_s)
    table.create_bag(a_bag("taken"))  # takes the name of one that has expired
    assert len(list(table._blobs.container().list_blob_names())) == 3
    assert sum(key.startswith(("b:uid-old", "k:uid-old", "b:uid-taken")) for key in everything(table)) > 300
    table.create_bag(kept(DAY_S, name="new"))
    left = everything(table)
    assert not [key for key in left if "uid-old" in key or "uid-taken" in key]
    assert any("uid-young" in key for key in left)
    assert len(list(table._blobs.container().list_blob_names())) == 1
    assert sorted(bag.name for bag in table.bags()) == ["new", "taken", "young"]
    assert sweep(table._store, table._blobs) == 0
    assert table.counts("young").done == 151


def test_a_blob_that_somebody_else_removes_meanwhile_ends_no_removal(
    table: AzureTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    container = table._blobs.container()
    for number in range(2):
        container.upload_blob(f"uid/{number}", b"x")
    names = ["uid/-", *container.list_blob_names()]
    with monkeypatch.context() as patch:
        patch.setattr(container, "list_blob_names", lambda **_: iter(names))
        table._blobs.remove("uid")
    assert list(container.list_blob_names()) == []


def test_a_clock_that_is_wrong_here_makes_nothing_expire(
    table: AzureTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    table.create_bag(kept(DAY_S))
    table.record([a_done(0)])
    now = time.time()
    with monkeypatch.context() as patch:
        patch.setattr("time.time", lambda: now + 30 * DAY_S)
        assert table.bag("bag").name == "bag"
        assert sweep(table._store, table._blobs) == 0
    assert table.counts("bag").done == 1


def test_a_removal_that_is_interrupted_is_gone_on_with(url: str, table: AzureTable) -> None:
    from tests.servers.azurehooks import killed_at

    for request in range(100):
        name = f"old-{request}"
        table.create_bag(kept(DAY_S, name=name, uid=name))
        table.record([a_done(0, bag=name)])
        expire(table, name, AFTER_S + 1)
        with killed_at(url, request) as mortal:
            sweep(mortal._store, mortal._blobs)
        assert name not in [bag.name for bag in table.bags()]
        assert sweep(table._store, table._blobs) <= 1
        assert everything(table) == []
        if not hasattr(mortal, "died"):
            assert request > 8
            return
    raise AssertionError("more than 100 requests")


def test_workers_of_last_week_are_forgotten(table: AzureTable, monkeypatch: pytest.MonkeyPatch) -> None:
    from mtask.testing.samples import a_status

    table.beat(a_status("w"))
    assert [status.worker for status in table.workers()] == ["w"]
    now = time.time()
    with monkeypatch.context() as patch:
        patch.setattr(table._store, "server_now_s", lambda: now + 1.5 * DAY_S)
        assert table.workers() == []
        assert everything(table) == ["workers"]
        patch.setattr(table._store, "server_now_s", lambda: now + 3 * DAY_S)
        assert table.workers() == []
    assert everything(table) == []
