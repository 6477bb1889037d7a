"""Workers that are killed, stopped or crowded while they fetch inputs and put outputs in their places."""

from __future__ import annotations

import glob
import http.server
import os
import tempfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from mtask.model import Reason, State
from tests.chaos.harness import Site, check, exists, wait_for
from tests.servers.wire import Wire

pytest.importorskip("fsspec", reason="fsspec is not installed: pip install 'mtask[urls]'")

MB = 1_000_000
DATA = os.urandom(1000) * 3000
FUNCTIONS = """
def both(x, db, out):
    data = open(db, "rb").read()
    with open(out, "wb") as file:
        file.write(data)
    return len(data)
"""


class Web:
    """A web server with one file, which can stop in the middle of it."""

    def __init__(self) -> None:
        self.gets, self.sent = 0, threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()
        web = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(DATA)))
                self.send_header("ETag", '"1"')
                self.end_headers()

            def do_GET(self) -> None:
                web.gets += 1
                self.do_HEAD()
                self.wfile.write(DATA[: 2 * MB])
                web.sent.set()
                web.go_on.wait(60)
                self.wfile.write(DATA[2 * MB :])

            def log_message(self, *args: Any) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *args: Any) -> None:
                """A client that was killed is none."""

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/db"
        threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        ).start()

    def hold(self) -> None:
        self.go_on.clear()
        self.sent.clear()


@pytest.fixture
def web() -> Iterator[Web]:
    pytest.importorskip("aiohttp", reason="aiohttp is not installed: pip install 'mtask[urls]'")
    web = Web()
    yield web
    web.go_on.set()
    web.server.shutdown()
    web.server.server_close()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MTASK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(params=["function", "command"])
def what(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    if request.param == "command":
        return {"shell": 'cp "$db" "$out"'}
    (tmp_path / "staged.py").write_text(FUNCTIONS)
    return {"call": f"{tmp_path}/staged.py:both"}


def scratch(worker: str = "") -> list[str]:
    return glob.glob(os.path.join(tempfile.gettempdir(), f"mtask-scratch-{worker}*/out"))


def of_tree(pid: int) -> list[int]:
    """All that it has started."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += [child, *of_tree(child)]
    return found


def test_a_worker_killed_in_the_middle_of_a_fetch_leaves_nothing_half(
    site: Site, web: Web, what: dict[str, Any], cache: Path
) -> None:
    web.hold()
    bag = site.manager.submit(
        [{"x": 1}],
        bag="bag",
        lease_s=2,
        inputs={"db": web.url},
        outputs={"out": f"{site.folder}/out/{{x}}"},
        **what,
    )
    first = site.start_worker("-j", "1")
    assert web.sent.wait(20)
    wait_for(lambda: list(cache.glob("tmp/*/data/db")), "a part of it is there")
    children = of_tree(first.pid)
    first.kill()
    wait_for(lambda: not any(map(exists, children)), "what it has started ends, too")
    assert not list(cache.glob("entries/*"))

    web.go_on.set()
    site.start_worker("-j", "1")
    wait_for(bag.finished, "another one does it")
    (result,) = check(bag)
    assert result.state is State.DONE
    assert (site.folder / "out" / "1").read_bytes() == DATA
    assert not list(cache.glob("tmp/*"))
    assert web.gets == 2


def test_two_workers_on_a_host_fetch_once(site: Site, web: Web, what: dict[str, Any]) -> None:
    web.hold()
    bag = site.manager.submit(
        [{"x": x} for x in range(8)],
        bag="bag",
        inputs={"db": web.url},
        outputs={"out": f"{site.folder}/out/{{x}}"},
        **what,
    )
    workers = [site.start_worker("-j", "2") for _ in range(2)]
    assert web.sent.wait(20)
    wait_for(
        lambda: sum(len(worker.running) for worker in site.manager.table.workers()) == 4,
        "all four wait for it",
    )
    web.go_on.set()
    wait_for(bag.finished, "they are done")
    assert {result.state for result in check(bag)} == {State.DONE}
    assert len({result.worker for result in check(bag)}) == len(workers)
    assert {(site.folder / "out" / str(x)).read_bytes() for x in range(8)} == {DATA}
    assert web.gets == 1


def test_a_fetch_that_takes_too_long_is_a_failure_and_a_drain_in_one_costs_nothing(
    site: Site, web: Web, what: dict[str, Any]
) -> None:
    web.hold()
    urls: dict[str, Any] = {"inputs": {"db": web.url}, "outputs": {"out": f"{site.folder}/{{bag}}-{{x}}"}}
    slow = site.manager.submit(
        [{"x": 1, "bag": "slow"}], bag="slow", timeout_s=1.5, retries=0, **urls, **what
    )
    worker = site.start_worker("-j", "1", "--grace", "0.5")
    wait_for(slow.finished, "its time is over")
    (result,) = check(slow)
    assert result.error is not None
    assert result.error.reason is Reason.TIMEOUT
    fine = site.manager.submit([{"x": 1, "bag": "fine"}], bag="fine", retries=0, **urls, **what)
    gets = web.gets
    wait_for(lambda: web.gets > gets, "it fetches again")
    worker.terminate()
    assert worker.exit_code() == 0
    web.go_on.set()
    site.start_worker("-j", "1")
    wait_for(fine.finished, "another one does it")
    (result,) = check(fine)
    assert (result.state, result.attempt) == (State.DONE, 1)


@pytest.fixture
def wire(moto: str) -> Iterator[Wire]:
    """Between the workers and S3."""
    wire = Wire(urlsplit(moto).port or 0)
    yield wire
    wire.close()


def test_a_worker_killed_in_the_middle_of_an_upload_leaves_nothing_half(
    site: Site, wire: Wire, what: dict[str, Any], moto: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("s3fs", reason="s3fs is not installed: pip install s3fs")
    import boto3

    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    bucket, client = f"b{uuid.uuid4().hex}", boto3.client("s3", region_name="us-east-1")
    client.create_bucket(Bucket=bucket)
    (site.folder / "db").write_bytes(DATA)
    site.env |= {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{wire.port}", "AWS_DEFAULT_REGION": "us-east-1"}
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        site.env[name] = os.environ[name]
    half, go_on, passed = threading.Event(), threading.Event(), [0]

    def hold(data: bytes) -> bytes:
        passed[0] += len(data)
        if passed[0] > MB and not half.is_set():
            half.set()
            go_on.wait(60)
            raise OSError("nothing more of this one comes through")
        return data

    wire.change_asked = hold
    url = f"s3://{bucket}/out/{{x}}"
    bag = site.manager.submit(
        [{"x": 1}], bag="bag", lease_s=2, inputs={"db": str(site.folder / "db")}, outputs={"out": url}, **what
    )
    first = site.start_worker("-j", "1")
    assert half.wait(30)
    assert not bag.finished()
    children = of_tree(first.pid)
    (name,) = (worker.worker for worker in site.manager.table.workers())
    assert scratch(name)
    first.kill()
    wait_for(lambda: not any(map(exists, children)), "what it has started ends, too")
    go_on.set()
    assert "Contents" not in client.list_objects_v2(Bucket=bucket)
    wait_for(lambda: not scratch(name), "its copy here goes, too")

    second = site.start_worker("-j", "1")
    wait_for(bag.finished, "another one does it", timeout_s=40)
    (result,) = check(bag)
    assert result.state is State.DONE
    assert client.get_object(Bucket=bucket, Key="out/1")["Body"].read() == DATA
    second.terminate()
    assert second.exit_code() == 0


def test_a_worker_killed_while_it_writes_to_a_path_leaves_the_old_file(
    site: Site, what: dict[str, Any]
) -> None:
    """The output is a file so large (and empty) that it takes a while to write it."""
    target = site.folder / "out" / "1"
    target.parent.mkdir()
    target.write_text("old")
    with open(site.folder / "db", "wb") as file:
        file.truncate(200 * MB)
    what = {"shell": 'cp --sparse=always "$db" "$out"'} if "shell" in what else what
    bag = site.manager.submit(
        [{"x": 1}],
        bag="bag",
        lease_s=2,
        inputs={"db": str(site.folder / "db")},
        outputs={"out": str(target)},
        **what,
    )
    first = site.start_worker("-j", "1")

    def is_writing() -> bool:
        for pid in of_tree(first.pid):
            for link in glob.glob(f"/proc/{pid}/fd/*"):
                try:
                    if os.readlink(link).startswith(f"{target.parent}/") and os.stat(link).st_size > MB:
                        return True
                except OSError:
                    continue
        return False

    wait_for(is_writing, "a part of it is written")
    first.kill()
    assert target.read_text() == "old"
    assert os.listdir(target.parent) == ["1"]
    site.start_worker("-j", "1")
    wait_for(bag.finished, "another one does it", timeout_s=40)
    assert check(bag)[0].state is State.DONE
    assert target.stat().st_size == 200 * MB
    assert os.listdir(target.parent) == ["1"]
