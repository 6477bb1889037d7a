"""Real servers on free ports of 127.0.0.1, in a temporary folder."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.processes import Processes, free_port

__all__ = ["SERVERS", "Server"]


@dataclass(frozen=True)
class Server:
    """`start` returns the server's URL as soon as it listens."""

    start: Callable[[Processes, Path], str]
    program: Callable[[], str | None]
    """Where the program is; None: not here."""
    package: str
    """Debian's."""
    settings: str
    version: Callable[[], str]


def start_redis(processes: Processes, folder: Path) -> str:
    port = free_port()
    command = ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", str(folder)]
    processes.start(command, os.environ)
    processes.wait_for_port(port)
    return f"redis://127.0.0.1:{port}/0"


def start_rabbitmq(processes: Processes, folder: Path) -> str:
    port, names = free_port(), free_port()
    config = folder / "rabbitmq.conf"
    config.write_text("")
    environment = {
        **os.environ,
        "HOME": str(folder),  # of the cookie
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "ERL_EPMD_PORT": str(names),
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_NODENAME": f"peers{port}@localhost",
        "RABBITMQ_DIST_PORT": str(free_port()),
        "RABBITMQ_MNESIA_BASE": str(folder / "data"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_CONFIG_FILE": str(config),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
    }
    # Its name server would become a daemon if RabbitMQ started it.
    processes.start(["epmd", "-port", str(names), "-address", "127.0.0.1"], environment)
    processes.wait_for_port(names)
    processes.start([str(find_rabbitmq())], environment)
    processes.wait_for_port(port)
    return f"amqp://guest:guest@127.0.0.1:{port}/%2F"


def start_postgres(processes: Processes, folder: Path) -> str:
    port, data = free_port(), folder / "data"
    program = find_postgres()
    assert program is not None
    user = "postgres" if os.geteuid() == 0 else None  # it refuses to run as root
    if user:
        shutil.chown(folder, user)
    initdb = Path(program).with_name("initdb")
    subprocess.run(
        [initdb, "-A", "trust", "-U", "postgres", "-D", data],
        check=True,
        user=user,
        cwd=folder,
        stdout=subprocess.DEVNULL,
    )
    options = ["-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={folder}", "-p", str(port)]
    processes.start([program, "-D", str(data), *options], os.environ, user=user, cwd=folder)
    processes.wait_for_port(port)
    return f"postgresql://postgres@127.0.0.1:{port}/postgres"


def find_redis() -> str | None:
    return shutil.which("redis-server")


def find_rabbitmq() -> str | None:
    """Not the wrapper on PATH, which wants root and the package's own user."""
    found = sorted(Path("/usr/lib/rabbitmq").glob("lib/rabbitmq_server-*/sbin/rabbitmq-server"))
    return str(found[-1]) if found and shutil.which("epmd") else None


def find_postgres() -> str | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    return str(found[-1]) if found else shutil.which("postgres")


def version_of(program: str | None) -> str:
    done = subprocess.run([str(program), "--version"], capture_output=True, text=True)
    return done.stdout.strip()


SERVERS = {
    "redis": Server(
        start_redis,
        find_redis,
        package="redis-server",
        settings="--save '': in memory only",
        version=lambda: version_of(find_redis()),
    ),
    "rabbitmq": Server(
        start_rabbitmq,
        find_rabbitmq,
        package="rabbitmq-server",
        settings="as it comes, one node",
        version=lambda: Path(str(find_rabbitmq())).parents[1].name,
    ),
    "postgres": Server(
        start_postgres,
        find_postgres,
        package="postgresql",
        settings="as it comes: fsync at each commit",
        version=lambda: version_of(find_postgres()),
    ),
}
