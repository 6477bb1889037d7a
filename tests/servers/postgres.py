"""A PostgreSQL server of Debian's package, with its data in a temporary folder; each test has a schema of its own."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers.process import START_S, free_port, missing

SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "fsync": "off",  # only a power cut would tell
    "max_connections": "200",
    "autovacuum_naptime": "5s",
}
HBA = """
host all guarded 127.0.0.1/32 scram-sha-256
host all refused 127.0.0.1/32 reject
"""
"""All others need no password."""


class Postgres:
    """It, as a superuser who needs no password sees it."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs, self.folder = programs, folder
        self.port = free_port()
        self.user = "postgres" if os.geteuid() == 0 else None
        """It refuses to run as root."""
        if self.user:
            shutil.chown(folder, self.user)
        self._numbers = itertools.count()
        self._process: subprocess.Popen[bytes] | None = None
        options = ["-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C.UTF-8", "-N"]
        subprocess.run(
            [programs / "initdb", *options, "-D", folder / "data"],
            check=True,
            user=self.user,
            cwd=folder,
            stdout=subprocess.DEVNULL,
        )
        who = folder / "data/pg_hba.conf"
        who.write_text(HBA + who.read_text())

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """Of a database in which nothing is mtask's but in schemas that tests name."""
        return f"postgresql://postgres@{self.place}/postgres"

    def start(self) -> None:
        """Returns when it takes connections."""
        settings = SETTINGS | {"port": str(self.port), "unix_socket_directories": str(self.folder)}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", self.folder / "data", *options],
                user=self.user,
                cwd=self.folder,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                preexec_fn=end_with_parent,
            )
        deadline = time.monotonic() + START_S
        while not answers(self.url):
            if self._process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"postgres did not start: {self.said()[-2000:]}", pytrace=False)
            time.sleep(0.05)  # there is no event to await

    def stop(self, how: int = signal.SIGQUIT) -> None:
        """By default as in a crash: nobody is told, and nothing is put in order (`pg_ctl stop -m immediate`)."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(60)
            self._process = None

    def url_of(self, user: str, database: str = "postgres") -> str:
        return f"postgresql://{user}@{self.place}/{database}"

    @contextlib.contextmanager
    def settings(self, **settings: str) -> Iterator[None]:
        """For who connects within the block."""
        changes = [f"SET {name} = '{value}'" for name, value in settings.items()]
        for each in (changes, [f"RESET {name}" for name in settings]):
            for change in each:
                self.ask(f"ALTER DATABASE postgres {change}")
            if each is changes:
                yield

    def ask(self, query: str, *arguments: Any) -> list[tuple[Any, ...]]:
        import psycopg

        with contextlib.closing(psycopg.connect(self.url, autocommit=True)) as connection:
            cursor = connection.execute(query.encode(), arguments or None)
            return cursor.fetchall() if cursor.description else []

    def schema(self) -> str:
        """The name of one that isn't there yet."""
        return f"s{next(self._numbers)}"

    def new(self) -> str:
        """The URL of a new schema."""
        from mtask_postgres import make_queue

        url = f"{self.url}?schema={self.schema()}"
        make_queue(url)
        return url

    def said(self) -> str:
        return (self.folder / "log").read_text(errors="replace")


def end_with_parent() -> None:
    """Also of one that is killed, or that a time-out ends: prctl(2), PR_SET_PDEATHSIG."""
    ctypes.CDLL(None).prctl(1, signal.SIGQUIT)


def answers(url: str) -> bool:
    import psycopg

    try:
        psycopg.connect(url, connect_timeout=5).close()
    except psycopg.OperationalError:
        return False
    return True


def find_programs() -> Path | None:
    """The folder with the server's programs, which Debian keeps off PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[4]))
    on_path = shutil.which("postgres")
    return found[-1].parent if found else Path(on_path).resolve().parent if on_path else None


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """For the whole session. Who stops it starts it again."""
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'psycopg[binary]'")
    programs = find_programs()
    if programs is None:
        missing("postgresql", "`make servers` does it, or `apt-get install postgresql`")
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    # Not in pytest's folders, through which the server's user can't pass.
    with tempfile.TemporaryDirectory(prefix="mtask-postgres-", dir=memory) as folder:
        server = Postgres(programs, Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.stop()


@contextlib.contextmanager
def pooler(postgres: Postgres, mode: str) -> Iterator[str]:
    """The URL of PgBouncer before the server; it holds no more than four connections to it."""
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if program is None:
        missing("pgbouncer", "`make servers` does it, or `apt-get install pgbouncer`")
    port = free_port()
    file = postgres.folder / f"pgbouncer-{mode}.ini"
    file.write_text(
        f"""
[databases]
postgres = host=127.0.0.1 port={postgres.port} user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
default_pool_size = 4
"""
    )
    process = subprocess.Popen(
        [program, file],
        user=postgres.user,
        cwd=postgres.folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
        preexec_fn=end_with_parent,
    )
    url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
    try:
        deadline = time.monotonic() + START_S
        while not answers(url):
            assert process.poll() is None, "pgbouncer did not start"
            assert time.monotonic() < deadline
            time.sleep(0.05)  # there is no event to await
        yield url
    finally:
        process.terminate()
        process.wait(30)
