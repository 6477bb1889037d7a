"""Who may do what with a Firestore table, and what `mtask doctor` finds; the emulator's rules stand in for Google's IAM."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mtask.doctor import Finding
from mtask.errors import UnusableError
from mtask.registry import ROLES
from mtask.testing.samples import a_bag, a_done, a_status
from mtask_gcp import FirestoreTable, diagnose, make_table, open_table
from mtask_gcp.policies import GRANTS, METHODS
from tests.servers.firestore import create_table, emulator_args, new_url
from tests.servers.process import answers, free_port, running


@pytest.fixture
def url(firestore: str) -> str:
    return create_table()


RULES = """rules_version = '2';
service cloud.firestore { match /databases/{d}/documents {
  match /mtask/{table}/{rest=**} { allow read: if table.matches('readable.*'); allow write: if false; }
} }
"""


@pytest.fixture(scope="module")
def forbidding(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An emulator that lets nobody in who isn't its owner, but into tables called readable-…"""
    folder = tmp_path_factory.mktemp("forbidding")
    (folder / "rules").write_text(RULES)
    port = free_port()
    args = emulator_args(port, f"--rules={folder / 'rules'}")
    with running(args, lambda: answers(f"http://127.0.0.1:{port}/"), folder / "log"):
        yield f"127.0.0.1:{port}"


@pytest.fixture
def stranger(forbidding: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a table that this one may read."""
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", forbidding)
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    url = new_url("readable")
    make_table(url)
    monkeypatch.setattr("mtask_gcp.database.OWNER", [])
    return url


def test_denied_names_the_role(stranger: str) -> None:
    denied = r"access denied: .* roles/datastore\.user .*`mtask doctor`"
    with pytest.raises(UnusableError, match=denied):
        open_table(new_url())
    with closing(open_table(stranger)) as table:
        assert table.bags() == []
        calls: list[Any] = [
            lambda: table.create_bag(a_bag()),
            lambda: table.swap("key", b"", 0),
            lambda: table.beat(a_status()),
        ]
        for call in calls:
            with pytest.raises(UnusableError, match=denied):
                call()


def test_what_the_table_asks_for_is_in_the_roles(
    table: FirestoreTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, once = set[str](), table._db._once
    monkeypatch.setattr(
        table._db, "_once", lambda method, request: (asked.add(method), once(method, request))[1]
    )
    table.create_bag(a_bag())
    table.record([a_done(index) for index in range(3)])
    assert table.counts("bag").done == len(list(table.results("bag"))) == 3
    methods = {f"Firestore/{method.title().replace('_', '')}" for method in asked}
    assert methods == {method for method in METHODS if method.startswith("Firestore/")}
    needed = {permission for method in methods for permission in METHODS[method]}
    for role in ROLES:
        assert {each for each in GRANTS[role] if each.startswith("datastore.")} == needed


# -- mtask doctor ---------------------------------------------------------------------------------------


def found(url: str) -> dict[str, Finding]:
    return {each.what: each for each in diagnose([url], ROLES)}


def test_doctor_finds_nothing_wrong(storage: str) -> None:
    findings = found(create_table())
    assert {what: each.ok for what, each in findings.items() if each.ok is not True} == {"time to live": None}
    assert {"database", "clock", "datastore.entities.create", "storage.objects.get"} <= findings.keys()


def test_doctor_changes_nothing(url: str, table: FirestoreTable) -> None:
    before = table._db.get(table._db.root)
    assert found(url)["bucket"].ok is None
    assert table._db.get(table._db.root)[:3] == before[:3]
    assert list(table._db.stream(table._db.root, "mtask-doctor")) == []


def test_doctor_says_what_is_not_there(firestore: str, url: str, storage: str) -> None:
    missing = found(new_url())["table"]
    assert (missing.ok, missing.stops, missing.todo) == (False, True, "`mtask init` makes it")
    bucket = found(f"{url}?bucket=no-such-bucket")["storage.objects.create"]
    assert bucket.ok is False
    assert "there is no bucket 'no-such-bucket'" in bucket.text


def test_doctor_says_what_is_denied(stranger: str) -> None:
    ok = {what: each.ok for what, each in found(stranger).items() if what.startswith("datastore.")}
    assert ok == {
        "datastore.entities.get": True,
        "datastore.entities.list": True,
        "datastore.entities.create": False,
        "datastore.entities.update": False,
        "datastore.entities.delete": False,
    }
    closed = found(new_url())["database"]
    assert (closed.ok, closed.stops) == (False, True)
    assert "roles/datastore.user" in closed.text


def test_doctor_when_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", f"127.0.0.1:{free_port()}")
    credentials, finding = diagnose([new_url()], ROLES)
    assert credentials.ok
    assert (finding.ok, finding.stops) == (False, True)
    assert "out of reach" in finding.text


def test_without_credentials_it_says_how_to_get_some(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FIRESTORE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    with pytest.raises(UnusableError, match="gcloud auth application-default login"):
        open_table(new_url())
