"""Notices of a cloud that it will take this machine away, from its metadata service.

EC2: spot instance-action (2 minutes ahead) and rebalance recommendation, by IMDSv2.
https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
Google: `instance/preempted` (30 seconds), waited for. https://cloud.google.com/compute/docs/instances/preemptible
Azure: Scheduled Events of the type Preempt (30 seconds at least), acknowledged when the worker has drained.
https://learn.microsoft.com/azure/virtual-machines/linux/scheduled-events

Which cloud this is, is found out by asking each once. HTCondor, Kubernetes and Slurm send SIGTERM instead.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import NamedTuple, Protocol

__all__ = ["CLOUDS", "Azure", "Ec2", "Google", "Notice", "Watcher", "find_cloud"]

ASK_S = 1.0
"""A metadata service is on the same host and answers in milliseconds, or isn't there."""
MARGIN_S = 5.0
"""Of the time that is left, kept back for the last rows and releases."""


class Notice(NamedTuple):
    """What is going to happen."""

    what: str
    left_s: float | None
    """Until then; None: only a recommendation, nothing may happen at all."""
    event: str = ""
    """By which Azure knows it."""


class Cloud(Protocol):
    """One vendor's metadata service. All methods raise OSError or HTTPException when it doesn't answer."""

    name: str
    pause_s: float
    """Between two polls."""

    def is_here(self) -> bool: ...

    def poll(self) -> Notice | None: ...

    def acknowledge(self, notice: Notice) -> None:
        """The worker has drained; the machine may go."""
        ...


def request(
    host: str,
    method: str,
    path: str,
    headers: Mapping[str, str],
    *,
    body: str | None = None,
    timeout_s: float = ASK_S,
) -> tuple[int, str, Mapping[str, str]]:
    """(status, body, headers); never by a proxy. `host` may have a port."""
    connection = http.client.HTTPConnection(host, timeout=timeout_s)
    try:
        connection.request(method, path, body=body, headers=dict(headers))
        response = connection.getresponse()
        return response.status, response.read().decode("utf-8", "replace"), dict(response.getheaders())
    finally:
        connection.close()


def _host(variable: str, default: str) -> str:
    return os.environ.get(variable, default).removeprefix("http://").rstrip("/")


class Ec2:
    """Spot interruptions and rebalance recommendations, polled."""

    name, pause_s = "ec2", 5.0

    def __init__(self) -> None:
        self._host = _host("AWS_EC2_METADATA_SERVICE_ENDPOINT", "169.254.169.254")
        self._token, self._token_until_s = "", 0.0
        self._recommended = False

    def is_here(self) -> bool:
        return bool(self._new_token())

    def _new_token(self) -> str:
        headers = {"X-aws-ec2-metadata-token-ttl-seconds": "21600"}
        status, token, _ = request(self._host, "PUT", "/latest/api/token", headers)
        self._token, self._token_until_s = token if status == 200 else "", time.monotonic() + 21000
        return self._token

    def _get(self, path: str) -> str | None:
        if time.monotonic() > self._token_until_s:
            self._new_token()
        status, body, _ = request(
            self._host, "GET", f"/latest/meta-data/{path}", {"X-aws-ec2-metadata-token": self._token}
        )
        if status == 401:
            self._token_until_s = 0.0
        return body if status == 200 else None

    def poll(self) -> Notice | None:
        body = self._get("spot/instance-action")
        if body is not None:
            action = json.loads(body)
            at = datetime.fromisoformat(action["time"])
            return Notice(f"EC2 will {action['action']} this instance", _left_s(at))
        if not self._recommended and self._get("events/recommendations/rebalance") is not None:
            self._recommended = True
            return Notice("EC2 recommends to leave this instance", None)
        return None

    def acknowledge(self, notice: Notice) -> None:
        pass


class Google:
    """Preemptions, waited for."""

    name, pause_s = "google", 1.0
    WAIT_S = 20
    LEFT_S = 30.0

    def __init__(self) -> None:
        self._host = _host("GCE_METADATA_HOST", "metadata.google.internal")

    def _get(self, query: str, timeout_s: float) -> tuple[int, str, Mapping[str, str]]:
        path = f"/computeMetadata/v1/instance/preempted{query}"
        return request(self._host, "GET", path, {"Metadata-Flavor": "Google"}, timeout_s=timeout_s)

    def is_here(self) -> bool:
        _, _, headers = self._get("", ASK_S)
        return {key.lower(): value for key, value in headers.items()}.get("metadata-flavor") == "Google"

    def poll(self) -> Notice | None:
        status, body, _ = self._get("", ASK_S)
        if status == 200 and body.strip() != "TRUE":
            query = f"?wait_for_change=true&timeout_sec={self.WAIT_S}"
            status, body, _ = self._get(query, self.WAIT_S + 5)
        return Notice("Google preempts this instance", self.LEFT_S) if body.strip() == "TRUE" else None

    def acknowledge(self, notice: Notice) -> None:
        pass


class Azure:
    """Scheduled Events of the type Preempt, polled and acknowledged."""

    name, pause_s = "azure", 1.0
    _EVENTS = "/metadata/scheduledevents?api-version=2020-07-01"
    _NAME = "/metadata/instance/compute/name?api-version=2021-02-01&format=text"
    _HEADERS = {"Metadata": "true"}  # noqa: RUF012

    def __init__(self) -> None:
        self._host = _host("MTASK_AZURE_METADATA_ENDPOINT", "169.254.169.254")
        self._vm = ""

    def is_here(self) -> bool:
        status, self._vm, _ = request(self._host, "GET", self._NAME, self._HEADERS)
        return status == 200

    def poll(self) -> Notice | None:
        if not self._vm:
            self.is_here()  # asks for the machine's name
        # The first request of a machine's life switches the service on, which can take minutes.
        status, body, _ = request(self._host, "GET", self._EVENTS, self._HEADERS, timeout_s=150)
        if status != 200:
            return None
        for event in json.loads(body).get("Events", ()):
            mine = not self._vm or self._vm in event.get("Resources", (self._vm,))
            if event.get("EventType") == "Preempt" and mine:
                before = event.get("NotBefore")
                left_s = _left_s(parsedate_to_datetime(before)) if before else 0.0
                return Notice("Azure evicts this machine", left_s, event["EventId"])
        return None

    def acknowledge(self, notice: Notice) -> None:
        body = json.dumps({"StartRequests": [{"EventId": notice.event}]})
        request(self._host, "POST", self._EVENTS, self._HEADERS, body=body)


_ENDPOINTS = ("AWS_EC2_METADATA_SERVICE_ENDPOINT", "GCE_METADATA_HOST", "MTASK_AZURE_METADATA_ENDPOINT")
CLOUDS: dict[str, Callable[[], Cloud]] = {"azure": Azure, "ec2": Ec2, "google": Google}


def _may_be_a_cloud() -> bool:
    """Does the firmware name one of the three as its maker? Elsewhere nobody needs to be asked."""
    if any(name in os.environ for name in _ENDPOINTS):
        return True
    try:
        maker = Path("/sys/class/dmi/id/sys_vendor").read_text()
    except OSError:
        return False
    return maker.strip() in ("Amazon EC2", "Google", "Microsoft Corporation", "Xen")


def find_cloud() -> Cloud | None:
    """Ask all three at once, for a second at most."""
    if not _may_be_a_cloud():
        return None

    def ask(make: Callable[[], Cloud]) -> Cloud | None:
        try:
            cloud = make()
            return cloud if cloud.is_here() else None
        except (OSError, http.client.HTTPException):
            return None

    with ThreadPoolExecutor(len(CLOUDS)) as pool:
        return next((cloud for cloud in pool.map(ask, CLOUDS.values()) if cloud is not None), None)


class Watcher(threading.Thread):
    """Asks for notices until one comes, and drains the worker then."""

    def __init__(self, cloud: str, on_notice: Callable[[Notice], None]) -> None:
        """`cloud`: a name in `CLOUDS`, or `auto`."""
        super().__init__(name="mtask-notices", daemon=True)
        self._cloud_name, self._on_notice = cloud, on_notice
        self._over = threading.Event()
        self._cloud: Cloud | None = None
        self._last: Notice | None = None

    def run(self) -> None:
        self._cloud = find_cloud() if self._cloud_name == "auto" else CLOUDS[self._cloud_name]()
        cloud = self._cloud
        while cloud is not None and not self._over.is_set():
            try:
                notice = cloud.poll()
            except (OSError, http.client.HTTPException, ValueError, KeyError):
                notice = None  # a service that hiccups is asked again; one that is gone tells nothing
            if notice is not None:
                self._last = notice
                self._on_notice(notice)
                if notice.left_s is not None:
                    return
            self._over.wait(cloud.pause_s)

    def stop(self) -> None:
        """The worker has drained: tell the cloud, if it wants to know."""
        self._over.set()
        if self._cloud is not None and self._last is not None and self._last.event:
            # If that fails, it evicts at its own time.
            with contextlib.suppress(OSError, http.client.HTTPException):
                self._cloud.acknowledge(self._last)


def grace_of(notice: Notice, grace_s: float) -> float:
    """How long running tasks may go on: the worker's own grace, but not beyond the machine's end."""
    return float("inf") if notice.left_s is None else max(0.0, min(grace_s, notice.left_s - MARGIN_S))


def _left_s(at: datetime) -> float:
    at = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
    return max(0.0, (at - datetime.now(UTC)).total_seconds())
