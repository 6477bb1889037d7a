"""`mtask init` and `mtask doctor` at Azure: what is missing, wrong or not allowed, against Azurite."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from mtask.doctor import Finding
from mtask.registry import ROLES
from mtask_azure import diagnose
from tests.servers.azure import ACCOUNT, Azurite, Servers, point_at
from tests.servers.azureproxy import Answer, Proxy, Request, error, proxy_to


@pytest.fixture
def url(azurite: Azurite) -> str:
    return azurite.new()


@pytest.fixture
def proxy(azurite: Azurite, url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    monkeypatch.setattr("mtask_azure.client.PAUSE_S", 0)
    with proxy_to(azurite.url) as proxy:
        point_at(azurite.connection(queue=proxy.url), monkeypatch)
        yield proxy


def findings(url: str, roles: Any = ROLES) -> dict[str, Finding]:
    found = list(diagnose([url], roles))
    assert len({finding.what for finding in found}) == len(found)
    return {finding.what: finding for finding in found}


def test_init_and_doctor_from_the_command_line(command, azurite: Azurite, azurite_tables: Servers):
    queue = f"azureq://{ACCOUNT}/{azurite.name()}"
    name = queue.rpartition("/")[2]
    table = name.replace("-", "")
    code, out, err = command("init", queue)
    assert (code, err) == (0, "")
    things = (f"queue {name}", f"poison queue {name}-poison", f"table {table}", f"container {table}")
    assert out.splitlines()[:4] == [f"{'made':<10} {each} in {ACCOUNT}" for each in things]
    again = command("init").out.splitlines()[:4]
    assert again == [f"{'was there':<10} {each} in {ACCOUNT}" for each in things]
    code, out, _ = command("doctor")
    assert (code, out.splitlines()[-1]) == (0, "no problem found")
    found = [line.split()[1].rstrip(":") for line in out.splitlines() if line.startswith("ok ")]
    assert (found.count("credentials"), found.count("clock")) == (1, 1)
    by = r"by AZURE_STORAGE_CONNECTION_STRING, an account key, at 127\.0\.0\.1"
    assert re.search(f"^ok       credentials: {by}", out, re.MULTILINE)
    assert f"ok       make a queue: allowed on {queue}-*\n" in out
    assert f"ok       table: write: allowed on azuretable://{ACCOUNT}/{table}\n" in out
    assert f"ok       container: delete: allowed on the container '{table}'" in out
    assert re.search(rf"^ok       queue: {queue} answers in \d+ ms: 0 ready, 0 leased", out, re.MULTILINE)
    names = {each.name for each in azurite.service().list_queues(name_starts_with=name)}
    assert names == {name, f"{name}-poison"}, "nothing is left of what was tried"


def test_what_each_role_needs(azurite: Azurite, url: str) -> None:
    worker = findings(url, ["worker"])
    assert all(finding.ok for finding in worker.values()), worker
    expected = {"peek", "update", "delete", "make a queue", "send", "receive", "remove a queue"}
    assert expected <= worker.keys()
    assert expected - findings(url, ["manager"]).keys() == {"update", "delete"}


def test_no_queue(azurite: Azurite, url: str) -> None:
    found = findings(f"azureq://{ACCOUNT}/nothing")["queue"]
    assert (found.ok, found.todo, found.stops) == (False, "`mtask init` makes it", True)


def test_a_poison_queue_with_something_in_it_or_none(azurite: Azurite, url: str) -> None:
    azurite.client(url, "-poison").send_message("x")
    found = findings(url)["poison queue"]
    assert (found.ok, found.todo.startswith("`mtask dead` shows them")) == (False, True)
    azurite.client(url, "-poison").delete_queue()
    assert findings(url)["poison queue"].todo == "`mtask init` makes it"


@pytest.mark.parametrize(
    ("ends_in", "ok", "text"),
    [
        (timedelta(days=300), True, "a shared access signature until 20"),
        (timedelta(hours=2), False, "the shared access signature ends at 20"),
        (
            timedelta(hours=-2),
            False,
            "the shared access signature in AZURE_STORAGE_CONNECTION_STRING expired at 20",
        ),
    ],
)
def test_signatures(
    azurite: Azurite,
    url: str,
    monkeypatch: pytest.MonkeyPatch,
    ends_in: timedelta,
    ok: bool,
    text: str,
) -> None:
    point_at(azurite.signed(ends_in=ends_in), monkeypatch)
    found = findings(url)["credentials"]
    assert (found.ok, found.text.startswith(text)) == (ok, True), found
    assert "sig=" not in found.text


@pytest.mark.parametrize(
    ("operation", "what"),
    [
        ("Peek Messages", "peek"),
        ("Update Message", "update"),
        ("Delete Message", "delete"),
        ("Put Message", "send"),
        ("Get Messages", "receive"),
        ("Create Queue", "make a queue"),
    ],
)
def test_what_is_not_allowed_is_named(proxy: Proxy, url: str, operation: str, what: str) -> None:
    def deny(request: Request) -> Answer | None:
        return error(403, "AuthorizationPermissionMismatch") if request.operation == operation else None

    with proxy.rule(deny):
        found = findings(url)
    assert [name for name, finding in found.items() if finding.ok is False] == [what]
    assert found[what].text.startswith(f"access denied: {what} on azureq://{ACCOUNT}/")
    assert found[what].todo


def test_what_can_not_be_taken_away_is_said(proxy: Proxy, azurite: Azurite, url: str) -> None:
    def deny(request: Request) -> Answer | None:
        denied = request.method == "DELETE" and "doctor" in request.path
        return error(403, "AuthorizationPermissionMismatch") if denied else None

    with proxy.rule(deny):
        found = findings(url)["remove a queue"]
    assert re.search(r"; and remove the queue \S+-doctor\w{8}, which was made to try this$", found.todo)
    assert found.todo.split()[-7].rstrip(",") in {each.name for each in azurite.service().list_queues()}


def test_throttled_it_can_not_be_told(proxy: Proxy, url: str) -> None:
    def throttle(request: Request) -> Answer | None:
        return error(503, "ServerBusy") if request.operation == "Peek Messages" else None

    with proxy.rule(throttle):
        assert findings(url)["peek"].ok is None


def test_wrong_accounts_and_keys(azurite: Azurite, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    other = findings(url.replace(ACCOUNT, "otherstorage"))["credentials"]
    assert (other.ok, other.stops, f"is of the storage account {ACCOUNT!r}" in other.text) == (
        False,
        True,
        True,
    )
    point_at(azurite.connection(key="YW5vdGhlciBrZXk="), monkeypatch)
    wrong = findings(url)["queue"]
    assert (wrong.ok, wrong.stops, "doesn't accept these credentials" in wrong.text) == (False, True, True)


def test_a_clock_that_is_wrong(proxy: Proxy, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def long_ago(request: Request) -> Answer | None:
        answer = proxy.forward(request)
        kept = {name: value for name, value in answer.headers.items() if name.lower() != "date"}
        return answer._replace(headers=kept | {"Date": "Sat, 01 Jan 2000 00:00:00 GMT"})

    def refused(_: Request) -> Answer:
        answer = error(403, "AuthenticationFailed")
        return answer._replace(headers=answer.headers | {"Date": "Sat, 01 Jan 2000 00:00:00 GMT"})

    for rule in (long_ago, refused):
        with proxy.rule(rule):
            found = findings(url)
        assert (found["clock"].ok, found["clock"].text.endswith("s ahead of Azure")) == (False, True)
    assert "clock is off by more than 15 minutes" in found["queue"].text


def test_an_identity_says_who_it_is() -> None:
    from mtask_azure.doctor import _who

    claims = base64.urlsafe_b64encode(json.dumps({"upn": "ada@example.org", "tid": "t-1"}).encode()).decode()
    assert _who(f"head.{claims.rstrip('=')}.signature") == "ada@example.org of tenant t-1"
    for token in ("", "a.b.c", "no token", "a.e30.c"):
        assert _who(token) == "an identity that doesn't say who it is"
