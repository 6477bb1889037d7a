"""The push endpoint: a real server, real requests as Pub/Sub's documentation has them, and Google's emulator that pushes by itself."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from mtask.bag import BagHandle
from mtask.manager import Manager, connect
from mtask.model import Message, State
from mtask_gcp import make_queue, open_queue
from mtask_gcp.client import Client
from mtask_gcp.names import address_of, subscription_path
from tests.servers.gcp import Emulator
from tests.servers.process import answers, free_port, running

FUNCTIONS = """
import sys, time

def double(x: int) -> int:
    return 2 * x

def fail(x: int) -> None:
    raise ValueError(f"not {x}")

def slow(x: int) -> int:
    time.sleep(60)
    return x

def loaded(x: int) -> bool:
    return any(name in sys.modules for name in ("grpc", "google.cloud", "google.pubsub_v1", "mtask_gcp"))
"""


class Endpoint:
    """The server, and the queue that would push to it."""

    def __init__(self, url: str, manager: Manager, place: str, log: Path) -> None:
        self.url, self.manager, self.place, self._log = url, manager, place, log
        self.process: subprocess.Popen[bytes] | None = None
        address = address_of(url)
        self.subscription = subscription_path(address, address.name)

    def post(self, body: bytes) -> int:
        """The status of the answer."""
        request = urllib.request.Request(self.place, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                status: int = answer.status
                return status
        except urllib.error.HTTPError as error:
            return error.code

    def push(self, data: bytes, *, attempt: int = 1, subscription: str = "", **attributes: str) -> int:
        """As Pub/Sub does: https://cloud.google.com/pubsub/docs/push#receive_push."""
        now = datetime.now(UTC) - timedelta(milliseconds=200)
        message = {
            "attributes": attributes,
            "data": base64.b64encode(data).decode(),
            "messageId": "2070443601311540",
            "message_id": "2070443601311540",
            "publishTime": now.isoformat().replace("+00:00", "Z"),
            "publish_time": now.isoformat().replace("+00:00", "Z"),
        }
        body = {
            "message": message,
            "subscription": subscription or self.subscription,
            "deliveryAttempt": attempt,
        }
        return self.post(json.dumps(body).encode())

    def messages(self) -> list[bytes]:
        """What is in the queue, taken out: somebody must push it."""
        with closing(open_queue(self.url)) as queue:
            found: list[bytes] = []
            while taken := queue.receive(max_messages=100, lease_s=600, wait_s=0.3):
                found += [each.body for each in taken]
                queue.delete(taken)
            return found

    def submit(self, function: str, rows: int, **options: Any) -> BagHandle:
        given = {"retries": 0} | options
        return self.manager.submit(
            [{"x": x} for x in range(rows)], call=f"push_tasks:{function}", bag="bag", **given
        )

    def said(self) -> str:
        return self._log.read_text()


@pytest.fixture
def endpoint(pubsub: Emulator, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Endpoint]:
    url, table = pubsub.url(), f"sqlite:///{tmp_path}/t.db"
    make_queue(url)
    (tmp_path / "push_tasks.py").write_text(FUNCTIONS)
    port, log = free_port(), tmp_path / "log"
    place = f"http://127.0.0.1:{port}/"
    environment = {
        "MTASK_QUEUE": url,
        "MTASK_TABLE": table,
        "MTASK_SLOTS": "1",
        "MTASK_PUSH_S": str(getattr(request, "param", 600)),
        "PORT": str(port),
        "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
    }
    patch = pytest.MonkeyPatch()
    for name, value in environment.items():
        patch.setenv(name, value)
    patch.syspath_prepend(str(tmp_path))
    server = running([sys.executable, "-m", "mtask_gcp.push"], lambda: answers(place), log)
    with patch.context(), connect(url, table) as manager, server as process:
        endpoint = Endpoint(url, manager, place, log)
        endpoint.process = process
        yield endpoint
    patch.undo()
    sys.modules.pop("push_tasks", None)
    print(log.read_text())


def values(bag: BagHandle) -> list[Any]:
    return [result.value for result in bag.results()]


def test_what_is_pushed_is_run_and_acknowledged(endpoint: Endpoint) -> None:
    bag = endpoint.submit("double", 20, per_message=10)
    pushed = endpoint.messages()
    assert [endpoint.push(each) for each in pushed] == [204, 204]
    assert values(bag) == [2 * x for x in range(20)]
    assert bag.finished()
    assert endpoint.push(pushed[0], attempt=2) == 204  # the answer was lost; its tasks have rows
    assert endpoint.messages() == []
    assert len(list(endpoint.manager.table.workers())) == 1


def test_a_failed_attempt_is_sent_again_and_pushed_when_its_time_has_come(endpoint: Endpoint) -> None:
    bag = endpoint.submit("fail", 1, retries=1)
    (body,) = endpoint.messages()
    assert endpoint.push(body) == 204
    assert bag.counts().ended == 0
    deadline_s = time.monotonic() + 20
    while not (again := endpoint.messages()):
        assert time.monotonic() < deadline_s
    assert Message.decode(again[0]).attempt == 1
    assert endpoint.push(again[0], attempt=5, **{"mtask-delay-ms": "60000"}) == 503, "it is early"
    assert endpoint.push(again[0], attempt=5, **{"mtask-delay-ms": "1"}) == 204
    (due,) = endpoint.messages()
    assert due == again[0]
    assert endpoint.push(due) == 204
    (result,) = bag.results()
    assert (result.state, result.attempt) == (State.FAILED, 2)


def test_deliveries_are_counted(endpoint: Endpoint) -> None:
    bag = endpoint.submit("double", 1, max_deliveries=3)
    (body,) = endpoint.messages()
    assert endpoint.push(body, attempt=4) == 204
    (result,) = bag.results()
    assert result.error is not None
    assert result.error.reason == "lost"


def test_what_is_no_message_of_ours_is_set_aside(endpoint: Endpoint) -> None:
    assert endpoint.push(b"\xffhello") == 204
    (dead,) = endpoint.manager.table.dead()
    assert dead.body == b"\xffhello"


@pytest.mark.parametrize("endpoint", [11], indirect=True)
def test_what_there_is_no_time_for_goes_to_another_request(endpoint: Endpoint) -> None:
    """A deadline of 11 s: 5 s of margin, 2 s of grace, so the first task has 4 s, and the second none."""
    bag = endpoint.submit("slow", 2, per_message=2)
    (body,) = endpoint.messages()
    began_s = time.monotonic()
    assert endpoint.push(body) == 204
    assert time.monotonic() - began_s < 11
    rest = [Message.decode(each) for each in endpoint.messages()]
    ended = [result.index for result in bag.results()]
    assert sorted(
        [*ended, *(index for each in rest for index in range(each.first, each.first + each.count))]
    ) == [0, 1]
    assert rest


def test_one_that_is_told_to_stop_gives_back_what_it_runs(endpoint: Endpoint) -> None:
    bag = endpoint.submit("slow", 1)
    (body,) = endpoint.messages()
    server = endpoint.process
    assert server is not None

    def stop() -> None:
        while not any(worker.running for worker in endpoint.manager.table.workers()):
            time.sleep(0.02)
        server.terminate()

    thread = threading.Thread(target=stop)
    thread.start()
    assert endpoint.push(body) == 204
    thread.join()
    assert server.wait(10) == 0
    (again,) = map(Message.decode, endpoint.messages())
    assert (again.first, again.attempt, again.deaths) == (0, 0, 0)
    assert bag.counts().ended == 0


def test_one_that_is_told_to_stop_answers_first(tmp_path: Path) -> None:
    """Else what it has done, or published anew, is pushed again. Here it is told so when nothing runs any more."""
    port, log = free_port(), tmp_path / "log"
    place = f"http://127.0.0.1:{port}/"
    program = """if True:
        import os, signal, sys
        from mtask_gcp import push
        def run(*_):
            os.kill(os.getpid(), signal.SIGTERM)
            return push._Answer(push.DONE)
        push._run = run
        sys.exit(push.main())
    """
    body = json.dumps({"message": {"data": ""}, "subscription": "s"}).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PORT", str(port))
        with running([sys.executable, "-c", program], lambda: answers(place), log) as server:
            with urllib.request.urlopen(urllib.request.Request(place, body), timeout=30) as answer:
                assert answer.status == 204
            assert server.wait(10) == 0


def test_users_code_runs_without_the_clients_of_google(endpoint: Endpoint) -> None:
    bag = endpoint.submit("loaded", 1)
    (body,) = endpoint.messages()
    endpoint.push(body)
    assert values(bag) == [False]


def test_requests_that_are_no_push(endpoint: Endpoint) -> None:
    for body, status in (
        (b"", 400),
        (b"{}", 400),
        (b'{"message": {"data": "!!!"}, "subscription": "s"}', 400),
        (b'{"message": {"data": ""}, "subscription": "projects/p/subscriptions/other"}', 503),
    ):
        before = endpoint.said()
        assert endpoint.post(body) == status
        assert endpoint.said() != before


def test_the_emulator_pushes_by_itself(endpoint: Endpoint) -> None:
    client = Client(address_of(endpoint.url))
    with closing(client):
        client.subscriber.modify_push_config(
            subscription=endpoint.subscription, push_config={"push_endpoint": endpoint.place}
        )
    bag = endpoint.submit("double", 30, per_message=10)
    deadline_s = time.monotonic() + 30
    while not bag.finished():
        assert time.monotonic() < deadline_s, endpoint.said()
        time.sleep(0.1)  # nobody tells
    assert values(bag) == [2 * x for x in range(30)]


def test_settings_that_make_no_sense() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mtask_gcp.push"],
        env=os.environ | {"PORT": "http"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (
        2,
        "error: PORT must be a number from 1 to 999999999, not 'http'\n",
    )
