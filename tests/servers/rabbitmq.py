"""RabbitMQ brokers of tests, as Debian packages them: each a node of its own, with its data in a temporary folder.

Both are for the whole session: name what you make as nobody else does. `mortal_rabbitmq` may be killed, while something runs
at the other one for a minute (tests/servers/rabbitmq_long.py).
"""

from __future__ import annotations

import itertools
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

from tests.servers.process import free_port, missing

FOLDERS = ("/usr/lib/rabbitmq/bin", "/usr/local/lib/rabbitmq/bin", "/opt/rabbitmq/sbin")
USER, PASSWORD = "mtask", "correct horse/battery:staple"
CONSUMER_TIMEOUT_S = 60
START_S = 120


def program() -> str:
    """The server itself: the one on PATH may be Debian's wrapper, which wants to be called by root."""
    for folder in FOLDERS:
        if os.access(f"{folder}/rabbitmq-server", os.X_OK):
            return f"{folder}/rabbitmq-server"
    missing("rabbitmq-server", "`make servers` does it, or `apt-get install rabbitmq-server`")


class Broker:
    """One node, which can be killed and started again with the same data and the same port."""

    def __init__(self, folder: Path, *, settings: str = "") -> None:
        """`settings`: more lines of rabbitmq.conf."""
        self.folder, self.port = folder, free_port()
        self._epmd_port, self._cluster_port = free_port(), free_port()
        self._names = itertools.count()
        self._process: subprocess.Popen[bytes] | None = None
        self._epmd: subprocess.Popen[bytes] | None = None
        self._log = folder / "said"
        self._home = folder / "home"
        self._home.mkdir()
        conf = f"""
            listeners.tcp.1 = 127.0.0.1:{self.port}
            default_user = {USER}
            default_pass = {PASSWORD}
            consumer_timeout = {CONSUMER_TIMEOUT_S * 1000}
            disk_free_limit.absolute = 1MB
            log.file.level = warning
            {settings}
        """
        (folder / "rabbitmq.conf").write_text(
            "\n".join(line.strip() for line in conf.splitlines() if line.strip()) + "\n"
        )
        # Consumers are looked at once a second instead of once a minute; a little of the machine is enough.
        (folder / "advanced.config").write_text("[{rabbit, [{channel_tick_interval, 1000}]}].\n")
        (folder / "enabled_plugins").write_text("[].\n")

    @property
    def env(self) -> dict[str, str]:
        node = f"rabbit{self.port}@localhost"
        return os.environ | {
            "HOME": str(self._home),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "RABBITMQ_NODENAME": node,
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._cluster_port),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.folder / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
            "RABBITMQ_PID_FILE": str(self.folder / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none -kernel "
            "inet_dist_use_interface {127,0,0,1}",
        }

    def start(self) -> None:
        with self._log.open("ab") as log:
            if self._epmd is None:
                # Erlang's port mapper: the node would start one that outlives it.
                args = ["epmd", "-port", str(self._epmd_port), "-address", "127.0.0.1"]
                self._epmd = subprocess.Popen(args, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            self._process = subprocess.Popen(
                [program()],
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_S
        while not self._greets():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                said = self._log.read_text(errors="replace")[-2000:]
                pytest.fail(f"rabbitmq-server did not start: {said}", pytrace=False)
            time.sleep(0.1)  # there is no event to await: the port opens when it opens

    def kill(self) -> None:
        """By SIGKILL, with all that it has started."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def close(self) -> None:
        self.kill()
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait()

    def url(
        self, name: str = "", *, vhost: str = "", options: str = f"consumer_timeout_s={CONSUMER_TIMEOUT_S}"
    ) -> str:
        """Of a queue, by default one that isn't there yet."""
        name = name or f"q{next(self._names)}-{uuid4().hex[:6]}"
        vhost = f"/{vhost}" if vhost else ""
        return f"amqp://{USER}@127.0.0.1:{self.port}{vhost}/{name}" + (f"?{options}" if options else "")

    def written_down(self, url: str) -> None:
        """Wait until the broker has the queue in its list of queues on disk, a second after it was made. Killed before that,
        it comes back with a queue that is empty and answers nobody, for it has no leader: RabbitMQ 3.10."""
        name = urlsplit(url).path.rpartition("/")[2].encode()
        (names,) = self.folder.glob("data/*/quorum/*/names.dets")
        pattern = re.compile(rb"%2F_" + re.escape(name) + rb"(?!\.dead)")
        deadline = time.monotonic() + 10
        while not pattern.search(names.read_bytes()):
            assert time.monotonic() < deadline, f"{name!r} is not in {names}"
            time.sleep(0.05)

    def control(self, *args: str) -> str:
        """What `rabbitmqctl` says."""
        tool = Path(program()).with_name("rabbitmqctl")
        done = subprocess.run([tool, *args], env=self.env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def _greets(self) -> bool:
        """Does it answer as an AMQP broker? The port opens before the users are there."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
                connection.sendall(b"AMQP\0\0\x09\x01")
                return connection.recv(1) == b"\x01"
        except OSError:
            return False


@contextmanager
def broker(folder: Path, *, settings: str = "") -> Iterator[Broker]:
    program()
    found = Broker(folder, settings=settings)
    try:
        found.start()
        yield found
    finally:
        found.close()


@pytest.fixture(scope="session")
def rabbitmq_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with broker(tmp_path_factory.mktemp("rabbitmq")) as found:
        yield found


@pytest.fixture
def rabbitmq(rabbitmq_server: Broker, monkeypatch: pytest.MonkeyPatch) -> Broker:
    """A broker, with its password in the environment."""
    monkeypatch.setenv("MTASK_AMQP_PASSWORD", PASSWORD)
    return rabbitmq_server


@pytest.fixture(scope="session")
def mortal_rabbitmq_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with broker(tmp_path_factory.mktemp("mortal")) as found:
        yield found


@pytest.fixture
def mortal_rabbitmq(mortal_rabbitmq_server: Broker, monkeypatch: pytest.MonkeyPatch) -> Broker:
    monkeypatch.setenv("MTASK_AMQP_PASSWORD", PASSWORD)
    return mortal_rabbitmq_server
