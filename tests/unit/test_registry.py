"""Scheme → backend: ours, somebody else's by entry point, and what to install."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints
from types import ModuleType

import pytest

from mtask.errors import UsageError
from mtask.queue import Queue
from mtask.registry import BUILTIN, open_queue, open_table, scheme_of, shown, table_beside
from mtask.table import Table


def test_sqlite_serves_both(tmp_path):
    url = f"sqlite:///{tmp_path}/t.db"
    assert table_beside(url) == url
    queue, table = open_queue(url), open_table(url)
    assert isinstance(queue, Queue)
    assert isinstance(table, Table)
    queue.close()
    table.close()


def test_schemes_are_in_alphabetical_order():
    assert list(BUILTIN) == sorted(BUILTIN)


@pytest.mark.parametrize("scheme", [scheme for scheme, (_, extra) in BUILTIN.items() if extra])
def test_what_to_install(scheme, monkeypatch):
    module, extra = BUILTIN[scheme]
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError) as caught:
        open_queue(f"{scheme}://somewhere")
    assert f"pip install 'mtask[{extra}]'" in str(caught.value)


@pytest.mark.parametrize("url", ["", "tasks.db", "://x", "/tmp/t.db"])
def test_no_url(url):
    with pytest.raises(UsageError, match="is not the URL"):
        scheme_of(url)


def test_unknown_scheme_lists_those_there_are():
    with pytest.raises(UsageError, match=r"unknown scheme 'redis'; there are .*sqlite, sqs"):
        open_table("redis://host")


@pytest.fixture
def elsewhere(monkeypatch):
    module = ModuleType("mtask_elsewhere")
    module.open_queue = lambda url: ("queue", url)
    monkeypatch.setitem(sys.modules, "mtask_elsewhere", module)
    entry = EntryPoint("elsewhere", "mtask_elsewhere", "mtask.backends")
    monkeypatch.setattr(
        "importlib.metadata.entry_points", lambda **chosen: EntryPoints([entry]).select(**chosen)
    )


def test_a_backend_of_somebody_else(elsewhere):
    assert open_queue("elsewhere://x") == ("queue", "elsewhere://x")
    assert table_beside("elsewhere://x") is None
    with pytest.raises(UsageError, match="elsewhere:// has no table"):
        open_table("elsewhere://x")


def test_nobody_elses_client_is_imported(tmp_path):
    program = (
        "import sys, mtask\nmtask.connect(f'sqlite:///{sys.argv[1]}/t.db').close()\n"
        "print(sorted({'boto3', 'pika', 'psycopg', 'google', 'azure', 'pandas', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("url", "safe"),
    [
        ("amqp://me:secret@host:5672/q", "amqp://me:…@host:5672/q"),
        ("postgresql://:s@cret@/q", "postgresql://:…@/q"),
        ("sqlite:///a:b@c.db", "sqlite:///a:b@c.db"),
        ("sqs://us-west-2/reads", "sqs://us-west-2/reads"),
    ],
)
def test_passwords_are_not_shown(url, safe):
    assert shown(url) == safe
