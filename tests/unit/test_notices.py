"""Each cloud's metadata service, as its documentation shows it, on a port of this machine."""

from __future__ import annotations

import http.client
import json
import queue
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler
from typing import Any, ClassVar

import pytest

from mtask.worker import notices as module
from mtask.worker.notices import Azure, Cloud, Ec2, Google, Notice, Watcher, find_cloud, grace_of
from tests.servers.process import serving


class Metadata(BaseHTTPRequestHandler):
    """Answers like one cloud; `notice` is what it has to say, `posted` what it was told."""

    cloud = ""
    notice: ClassVar[dict[str, str]] = {}
    posted: ClassVar[list[Any]] = []
    changed: ClassVar[threading.Event] = threading.Event()

    def answer(self, status: int, body: str = "", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def do_PUT(self) -> None:
        ttl = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds")
        right = self.cloud == "ec2" and self.path == "/latest/api/token" and ttl == "21600"
        self.answer(200, "token-1") if right else self.answer(404)

    def do_GET(self) -> None:
        getattr(self, f"get_{self.cloud}")()

    def get_ec2(self) -> None:
        if self.headers.get("X-aws-ec2-metadata-token") != "token-1":
            return self.answer(401)
        body = self.notice.get(self.path.removeprefix("/latest/meta-data/"))
        self.answer(404) if body is None else self.answer(200, body)

    def get_google(self) -> None:
        if self.headers.get("Metadata-Flavor") != "Google":
            return self.answer(403)
        if "wait_for_change=true" in self.path:
            self.changed.wait(10)
        self.answer(200, self.notice.get("preempted", "FALSE"), Metadata_Flavor="Google")

    def get_azure(self) -> None:
        if self.headers.get("Metadata") != "true":
            return self.answer(400)
        if self.path.startswith("/metadata/instance/compute/name"):
            return self.answer(200, "vm-7")
        self.answer(200, self.notice.get("events", '{"DocumentIncarnation":1,"Events":[]}'))

    def do_POST(self) -> None:
        self.posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.answer(200)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Metadata]]:
    """The handler, whose class attributes steer it."""
    handler = type("Handler", (Metadata,), {"notice": {}, "posted": [], "changed": threading.Event()})
    with serving(handler) as address:
        for name in ("AWS_EC2_METADATA_SERVICE_ENDPOINT", "MTASK_AZURE_METADATA_ENDPOINT"):
            monkeypatch.setenv(name, f"http://{address}/")
        monkeypatch.setenv("GCE_METADATA_HOST", address)
        yield handler
        handler.changed.set()


def in_seconds(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


def announce(service: type[Metadata]) -> None:
    """The notice of the service's cloud, with the time of each that is usual."""
    service.notice.update(
        {
            "spot/instance-action": json.dumps(
                {"action": "terminate", "time": in_seconds(120).strftime("%Y-%m-%dT%H:%M:%SZ")}
            ),
            "preempted": "TRUE",
            "events": json.dumps(
                {
                    "DocumentIncarnation": 2,
                    "Events": [
                        {"EventId": "other", "EventType": "Reboot", "Resources": ["vm-7"]},
                        {"EventId": "not-mine", "EventType": "Preempt", "Resources": ["vm-8"]},
                        {
                            "EventId": "mine",
                            "EventType": "Preempt",
                            "Resources": ["vm-7"],
                            "EventStatus": "Scheduled",
                            "NotBefore": format_datetime(in_seconds(40), usegmt=True),
                        },
                    ],
                }
            ),
        }
    )
    service.changed.set()


@pytest.mark.parametrize(("name", "kind"), [("ec2", Ec2), ("google", Google), ("azure", Azure)])
def test_the_cloud_is_found_by_asking(service: type[Metadata], name: str, kind: type[Cloud]) -> None:
    service.cloud = name
    assert isinstance(find_cloud(), kind)


def test_no_cloud_is_found_where_nothing_answers(
    service: type[Metadata], monkeypatch: pytest.MonkeyPatch
) -> None:
    service.cloud = "ec2"
    for name in ("AWS_EC2_METADATA_SERVICE_ENDPOINT", "GCE_METADATA_HOST", "MTASK_AZURE_METADATA_ENDPOINT"):
        monkeypatch.setenv(name, "127.0.0.1:1")
    assert find_cloud() is None


@pytest.mark.parametrize(("name", "left_s"), [("ec2", 120), ("google", 30), ("azure", 40)])
def test_a_notice_comes_once_with_the_time_left(service: type[Metadata], name: str, left_s: float) -> None:
    service.cloud = name
    notices: queue.Queue[Notice] = queue.Queue()
    watcher = Watcher("auto", notices.put)
    announce(service)
    watcher.start()
    notice = notices.get(timeout=10)
    watcher.join(timeout=10)
    assert not watcher.is_alive()
    assert notice.left_s == pytest.approx(left_s, abs=3)
    assert grace_of(notice, 1000) == pytest.approx(left_s - 5, abs=3)
    assert grace_of(notice, 10) == 10
    watcher.stop()
    assert service.posted == ([{"StartRequests": [{"EventId": "mine"}]}] if name == "azure" else [])


def test_google_tells_while_it_is_waited_for(service: type[Metadata]) -> None:
    service.cloud = "google"
    notices: queue.Queue[Notice] = queue.Queue()
    watcher = Watcher("google", notices.put)
    watcher.start()
    with pytest.raises(queue.Empty):
        notices.get(timeout=0.1)
    announce(service)
    assert "Google" in notices.get(timeout=10).what
    watcher.stop()
    watcher.join(timeout=10)


def test_a_recommendation_gives_all_the_time_and_is_said_once(service: type[Metadata]) -> None:
    service.cloud = "ec2"
    service.notice["events/recommendations/rebalance"] = '{"noticeTime":"2026-01-01T00:00:00Z"}'
    cloud = Ec2()
    notice = cloud.poll()
    assert notice is not None
    assert notice.left_s is None
    assert grace_of(notice, 30) == float("inf")
    assert cloud.poll() is None


def test_the_machines_of_others_are_not_ours(service: type[Metadata]) -> None:
    service.cloud = "azure"
    announce(service)
    notice = Azure().poll()
    assert notice is not None
    assert notice.event == "mine"


@pytest.mark.parametrize(("seconds", "zone", "left_s"), [(-60, "Z", 0), (600, "", 600), (600, "+00:00", 600)])
def test_a_time_that_is_over_or_names_no_zone(
    service: type[Metadata], seconds: float, zone: str, left_s: float
) -> None:
    service.cloud = "ec2"
    time = in_seconds(seconds).strftime("%Y-%m-%dT%H:%M:%S") + zone
    service.notice["spot/instance-action"] = json.dumps({"action": "stop", "time": time})
    notice = Ec2().poll()
    assert notice is not None
    assert notice.left_s is not None
    assert notice.left_s == pytest.approx(left_s, abs=10)
    assert notice.left_s >= 0


def test_an_eviction_that_has_begun_leaves_no_time(service: type[Metadata]) -> None:
    service.cloud = "azure"
    event = {"EventId": "mine", "EventType": "Preempt", "Resources": ["vm-7"], "NotBefore": ""}
    service.notice["events"] = json.dumps({"Events": [event]})
    notice = Azure().poll()
    assert notice is not None
    assert notice.left_s == 0


def test_who_answers_without_googles_header_isnt_google(service: type[Metadata]) -> None:
    service.cloud = "ec2"
    assert not Google().is_here()


def test_nobody_is_asked_on_a_machine_of_another_maker(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(module, "_may_be_a_cloud", lambda: False)
    monkeypatch.setattr(module, "request", lambda host, *_: asked.append(host))
    assert find_cloud() is None
    assert asked == []


def test_a_service_that_hiccups_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [OSError(), http.client.BadStatusLine("?"), ValueError("no JSON"), KeyError("time"), None]

    class Hiccups(Ec2):
        pause_s = 0.0

        def poll(self) -> Notice | None:
            if not answers:
                return Notice("at last", 1.0)
            if (answer := answers.pop()) is not None:
                raise answer
            return None

    monkeypatch.setitem(module.CLOUDS, "ec2", Hiccups)
    found: queue.Queue[Notice] = queue.Queue()
    watcher = Watcher("ec2", found.put)
    watcher.start()
    assert found.get(timeout=10).what == "at last"
    watcher.join(timeout=10)
    assert not watcher.is_alive()


def test_an_expired_token_is_renewed(service: type[Metadata]) -> None:
    service.cloud = "ec2"
    cloud = Ec2()
    assert cloud.is_here()
    cloud._token = "stale"
    assert cloud.poll() is None  # answered 401
    announce(service)
    assert cloud.poll() is not None
