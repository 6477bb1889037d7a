"""The function for Azure Functions, with messages as the host's worker makes them, over Azurite. The host isn't here."""

from __future__ import annotations

import base64
import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from azure.functions.meta import Datum
from azure.functions.queue import QueueMessageInConverter

import mtask_azure
from mtask.bag import BagHandle
from mtask.errors import MtaskError, UsageError
from mtask.giveback import copy_of
from mtask.manager import Manager, connect
from mtask.model import Delivery, State
from mtask.registry import make
from mtask_azure import serverless
from tests.servers.azure import ACCOUNT, Azurite
from tests.unit.worker_kit import wait_until

TASKS = """
import os, time

def double(x: int) -> int:
    return 2 * x

def twice(x: str) -> str:
    return 2 * x

def fail(x: int) -> None:
    raise ValueError(f"not {x}")

def log(x: int, path: str) -> None:
    with open(path, "a") as file:
        file.write(f"{x}\\n")

def wait_for(x: int, path: str) -> int:
    open(f"{path}.{x}", "w").close()
    while not os.path.exists(path):
        time.sleep(0.01)
    return x
"""


class App:
    """What the host of Azure Functions does for a function with a queue trigger: it takes messages, calls the function, deletes
    what it returns from, and gives back at once what it raises from."""

    def __init__(self, manager: Manager, azurite: Azurite, url: str, *, decodes: bool = True) -> None:
        """`decodes`: `messageEncoding` of host.json is `base64`, as it is unless said otherwise."""
        self.manager, self.url = manager, url
        self._queue, self._decodes = azurite.client(url), decodes
        self.errors: list[Exception] = []

    def submit(self, function: str, rows: list[dict[str, Any]], **options: Any) -> BagHandle:
        return self.manager.submit(
            rows, call=f"azure_tasks:{function}", bag="bag", **({"retries": 0} | options)
        )

    def take(self, most: int = 16) -> list[Any]:
        return list(self._queue.receive_messages(max_messages=most, visibility_timeout=600))

    def triggered(self, message: Any, **changed: Any) -> Any:
        """As the worker for Python makes it of what the host sends it."""
        text = message.content
        fields = {
            "Id": Datum(message.id, "string"),
            "DequeueCount": Datum(json.dumps(changed.get("count", message.dequeue_count)), "json"),
            "PopReceipt": Datum(message.pop_receipt, "string"),
        }
        body = base64.b64decode(text).decode() if self._decodes else text
        return QueueMessageInConverter.decode(
            Datum(changed.get("body", body), "string"), trigger_metadata=fields
        )

    def invoke(self, message: Any, **changed: Any) -> None:
        try:
            mtask_azure.queue_handler(self.triggered(message, **changed))
        except MtaskError as error:
            self.errors.append(error)
            self._queue.update_message(message, visibility_timeout=0)
        else:
            self._queue.delete_message(message)

    def run(self) -> int:
        """All messages that there are now; returns how many."""
        messages = self.take()
        for message in messages:
            self.invoke(message)
        return len(messages)


@pytest.fixture
def app(azurite: Azurite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[App]:
    queue, table = f"azureq://{ACCOUNT}/{azurite.name()}", f"sqlite:///{tmp_path}/mtask.db"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MTASK_QUEUE", queue)
    monkeypatch.setenv("MTASK_TABLE", table)
    monkeypatch.setenv("MTASK_SLOTS", "1")
    monkeypatch.setenv("AzureWebJobsScriptRoot", str(tmp_path))
    (tmp_path / "host.json").write_text('{"version": "2.0", "functionTimeout": "00:01:00"}')
    (tmp_path / "azure_tasks.py").write_text(TASKS)
    monkeypatch.syspath_prepend(str(tmp_path))
    list(make(queue, table))
    with connect(queue, table) as manager:
        yield App(manager, azurite, queue)
    if serverless._manager.cache_info().currsize:
        serverless._manager(queue, table).close()
    serverless._manager.cache_clear()
    sys.modules.pop("azure_tasks", None)


def values(bag: BagHandle) -> list[Any]:
    return [result.value for result in bag.results()]


def test_messages_are_run_and_the_host_deletes_them(app: App) -> None:
    bag = app.submit("double", [{"x": x} for x in range(6)], per_message=2)
    assert app.run() == 3
    assert (values(bag), app.errors) == ([0, 2, 4, 6, 8, 10], [])
    assert bag.finished()
    assert app.manager.queue.depth() == (0, 0, 0)
    [worker] = app.manager.table.workers()
    assert (worker.worker.startswith("functions-"), worker.state) == (True, "stopped")


def test_functions_side_by_side_are_different_workers(app: App, tmp_path: Path) -> None:
    bag = app.submit("wait_for", [{"x": x, "path": str(tmp_path / "gate")} for x in range(2)], per_message=1)
    threads = [threading.Thread(target=app.invoke, args=(message,)) for message in app.take()]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(list(tmp_path.glob("gate.*"))) == 2, timeout_s=40)
    (tmp_path / "gate").touch()
    for thread in threads:
        thread.join()
    assert (sorted(values(bag)), app.errors) == ([0, 1], [])
    assert len({worker.worker for worker in app.manager.table.workers()}) == 2


def test_a_host_that_does_not_decode(app: App, azurite: Azurite) -> None:
    """`messageEncoding` is `none`."""
    bag = app.submit("twice", [{"x": "ü🦠</a>"}])
    assert App(app.manager, azurite, app.url, decodes=False).run() == 1
    assert values(bag) == ["ü🦠</a>" * 2]


def test_a_failed_attempt_is_sent_again(app: App) -> None:
    bag = app.submit("fail", [{"x": 3}], retries=1, backoff_s=0.0)
    assert app.run() == 1
    assert not bag.finished()
    assert app.run() == 1
    [result] = bag.results()
    assert (result.state, result.attempt) == (State.FAILED, 2)
    assert app.errors == []


def test_what_there_is_no_time_for_is_sent_again_and_costs_nothing(app: App, tmp_path: Path) -> None:
    (tmp_path / "host.json").write_text('{"functionTimeout": "00:00:11"}')
    rows = [{"x": x, "path": str(tmp_path / "gate")} for x in range(2)]
    bag = app.submit("wait_for", rows, per_message=2)
    [message] = app.take()
    began_s = time.monotonic()
    app.invoke(message)
    assert time.monotonic() - began_s < 11
    assert app.errors == []
    (tmp_path / "gate").touch()
    (tmp_path / "host.json").write_text('{"functionTimeout": "-1"}')
    again = app.take()
    assert {each.dequeue_count for each in again} == {1}, "copies: nobody takes them for killers"
    for each in again:
        app.invoke(each)
    # The first one had the whole time of the first function: another would have had no more.
    assert {result.index for result in bag.results()} == {0, 1}
    assert [result.index for result in bag.results() if result.state is State.DONE] in ([0, 1], [1])


def test_a_function_that_died_costs_a_delivery(app: App, tmp_path: Path) -> None:
    """Azure hands the message on with a higher count, and what has a row isn't run again."""
    log = tmp_path / "log"
    bag = app.submit("log", [{"x": x, "path": str(log)} for x in range(3)], per_message=3)
    [message] = app.take()
    mtask_azure.queue_handler(app.triggered(message))  # and the host doesn't learn of it
    assert bag.finished()
    app.invoke(message, count=2)
    assert (log.read_text(), app.errors) == ("0\n1\n2\n", [])
    assert app.manager.queue.depth() == (0, 0, 0)


def test_a_foreign_message_is_set_aside(app: App, azurite: Azurite) -> None:
    azurite.client(app.url).send_message(base64.b64encode(b'{"order": 7}').decode())
    assert app.run() == 1
    assert [dead.body for dead in app.manager.table.dead()] == [b'{"order": 7}']
    assert (app.manager.queue.depth(), app.errors) == ((0, 0, 0), [])


def test_a_newer_message_is_left_to_others(app: App) -> None:
    """As a copy, later: else the host would call it poison."""
    app.submit("double", [{"x": 1}])
    [message] = app.take()
    body = json.loads(base64.b64decode(message.content)) | {"v": 99}
    app.invoke(message, body=json.dumps(body))
    assert app.errors == []
    depth = app.manager.queue.depth()
    assert depth == (0, None, None), "it is there, and hidden for a while"


def test_deaths_are_not_forgotten_by_a_copy(app: App) -> None:
    bag = app.submit("double", [{"x": 1}])
    app.manager.queue.main.send([])
    [message] = app.take()
    delivered = app.triggered(message, count=3)
    copy = copy_of(Delivery(body=delivered.get_body(), token=None, deliveries=delivered.dequeue_count))
    assert copy is not None
    assert copy.deaths == 2
    assert not bag.finished()


def test_a_table_that_is_away_leaves_the_message_to_the_host(app: App, tmp_path: Path) -> None:
    app.submit("double", [{"x": 1}])
    (tmp_path / "host.json").write_text('{"functionTimeout": "00:00:10"}')
    app.manager.table.close()
    for path in tmp_path.glob("mtask.db*"):
        path.unlink()
    (tmp_path / "mtask.db").write_text("no database at all " * 100)
    [message] = app.take()
    app.invoke(message)
    assert len(app.errors) == 1
    assert app.manager.queue.depth().ready == 1


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("MTASK_SLOTS", "two", "MTASK_SLOTS must be a number"),
        ("MTASK_QUEUE", "sqlite:///x.db", "MTASK_QUEUE must name the queue that triggers this function"),
    ],
)
def test_wrong_settings_are_said(
    app: App, monkeypatch: pytest.MonkeyPatch, name: str, value: str, text: str
) -> None:
    app.submit("double", [{"x": 1}])
    [message] = app.take()
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=text):
        mtask_azure.queue_handler(app.triggered(message))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ('{"functionTimeout": "00:10:00"}', 600),
        ('{"functionTimeout": "1.00:00:01"}', 86400),
        ('{"functionTimeout": "-1"}', 86400),
        ('{"functionTimeout": 7}', 300),
        ("{}", 300),
        ("[]", 300),
        ("not JSON", 300),
    ],
)
def test_the_time_is_that_of_host_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, seconds: float
) -> None:
    monkeypatch.setenv("AzureWebJobsScriptRoot", str(tmp_path))
    (tmp_path / "host.json").write_text(text)
    assert serverless._time_s() == seconds


def test_too_little_time_is_said(app: App, tmp_path: Path) -> None:
    app.submit("double", [{"x": 1}])
    (tmp_path / "host.json").write_text('{"functionTimeout": "00:00:05"}')
    [message] = app.take()
    with pytest.raises(UsageError, match=r"only 5\.0 s left; set functionTimeout of host\.json"):
        mtask_azure.queue_handler(app.triggered(message))
