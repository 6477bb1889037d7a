"""A personal HTCondor pool: the daemons of Debian's packages, unpacked into a folder and run by an ordinary user.

Where they come from is in packages.py. A pool is a folder with its configuration, logs and spool, and one port of
127.0.0.1. Standard library only.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import string
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from packages import SUITE, PoolError, prefix_of

HERE = Path(__file__).resolve().parent
READY_S, STOP_S = 60.0, 15.0
DAEMONS = tuple(
    f"condor_{name}"[:15]
    for name in (
        *("master", "procd", "shared_port", "collector", "negotiator", "schedd", "startd", "starter"),
        *("shadow", "dagman"),
    )
)
"""As /proc calls them."""


def runs_as() -> pwd.struct_passwd:
    """The daemons' user: root's pools are nobody's, so that a job never runs as root."""
    return pwd.getpwnam("nobody") if os.getuid() == 0 else pwd.getpwuid(os.getuid())


class Pool:
    """A folder, and the daemons that live in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "condor_config"
        self._user = runs_as()

    def start(self, prefix: Path, *, port: int | None, cpus: int, settings: Sequence[str] = ()) -> None:
        """Returns when jobs can be submitted and there is a slot for them. `settings`: lines of the configuration."""
        if len(str(self.folder)) > 60:
            raise PoolError(
                f"the path {self.folder} is too long for the daemons' sockets: take one of 60 characters"
            )
        closed = [
            path
            for path in self.folder.parents
            if not os.access(path, os.X_OK) or not path.stat().st_mode & 1
        ]
        if os.getuid() == 0 and closed:
            raise PoolError(
                f"{self._user.pw_name}, as whom root's pools run, can't enter {closed[0]}: take another --folder"
            )
        self.stop()
        port = port or _free_port()
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), 5):
            raise PoolError(f"port {port} is taken; choose another one with --port, or leave it out")
        shutil.rmtree(self.folder, ignore_errors=True)
        self._write(prefix, port, cpus, settings)
        with (self.folder / "master.out").open("wb") as output:
            master = subprocess.Popen(
                self._as_user(
                    [f"{prefix}/root/usr/sbin/condor_master", "-f", "-t", "-pidfile", str(self._pidfile)]
                ),
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env=self._environment(prefix),
            )
        self._wait(READY_S, lambda: self._ready(prefix, master), "the pool did not get ready")
        self._make_token(prefix)

    def stop(self) -> None:
        """With all jobs; they are not kept."""
        pid = self._pid()
        if pid is not None:
            os.kill(pid, signal.SIGQUIT)
            with contextlib.suppress(PoolError):
                self._wait(STOP_S, lambda: self._pid() is None, "it goes on")
        for each in (*self._own("condor_master"), *self._own()):  # the master first: it starts others again
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)

    def _own(self, *names: str) -> list[int]:
        """Daemons of this pool, and processes of its jobs; also those whose parent is gone."""
        found = []
        config = f"CONDOR_CONFIG={self.config}".encode()
        scratch = f"_CONDOR_SCRATCH_DIR={self.folder}/execute/".encode()
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                name = (process / "comm").read_text().strip()
                variables = (process / "environ").read_bytes().split(b"\0")
                job = any(each.startswith(scratch) for each in variables)
                # Who works with the pool has the same variable: that is no reason to end a shell.
                daemon = config in variables and name in (names or DAEMONS)
                if daemon or (job and not names):
                    found.append(int(process.name))
        return found

    def env(self) -> str:
        """Lines for a shell to evaluate."""
        if self._pid() is None:
            raise PoolError(f"no pool runs in {self.folder}: `personal-pool start` starts one")
        programs = next(
            line.split("=")[1].strip()
            for line in self.config.read_text().splitlines()
            if line.startswith("RELEASE_DIR")
        )
        return f"export CONDOR_CONFIG={self.config}\nexport PATH={programs}/bin:$PATH"

    @property
    def _pidfile(self) -> Path:
        return self.folder / "master.pid"

    def _pid(self) -> int | None:
        """Of the master; None: it doesn't run."""
        try:
            pid = int(self._pidfile.read_text().strip())
            state = Path(f"/proc/{pid}/stat").read_text()
        except (OSError, ValueError):
            return None
        return pid if "(condor_master)" in state and ") Z " not in state else None

    def _write(self, prefix: Path, port: int, cpus: int, settings: Sequence[str]) -> None:
        for name in ("log", "spool", "execute", "run", "lock", "cred_dir", "tokens.d", "passwords.d"):
            (self.folder / name).mkdir(parents=True)
        template = string.Template((HERE / "pool.config").read_text())
        self.config.write_text(
            template.substitute(
                prefix=prefix / "root/usr",
                folder=self.folder,
                port=port,
                cpus=cpus,
                uid=self._user.pw_uid,
                gid=self._user.pw_gid,
            )
            + "\n".join(["", "# -- said with --set", *settings, ""])
        )
        key = self.folder / "passwords.d/POOL"
        key.touch(mode=0o600)
        key.write_bytes(base64.b64encode(secrets.token_bytes(48)))
        for name in ("passwords.d", "tokens.d"):
            (self.folder / name).chmod(0o700)
        if os.getuid() == 0:
            for path in (self.folder, *self.folder.rglob("*")):
                os.chown(path, self._user.pw_uid, self._user.pw_gid)

    def _make_token(self, prefix: Path) -> None:
        """Says who submits. A client takes only a token file that its own user owns."""
        name = f"{self._user.pw_name}@mtask.pool"
        create = self._as_user([f"{prefix}/root/usr/bin/condor_token_create", "-identity", name])
        done = subprocess.run(create, capture_output=True, check=True, env=self._environment(prefix))
        tokens = self.folder / "tokens.d"
        os.chown(tokens, os.getuid(), os.getgid())
        with open(os.open(tokens / "owner", os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
            file.write(done.stdout)

    def _ready(self, prefix: Path, master: subprocess.Popen[bytes]) -> bool:
        if master.poll() is not None:
            raise PoolError(f"condor_master ended: {self._complaint()}")
        ask = self._as_user([f"{prefix}/root/usr/bin/condor_status", "-any", "-af", "MyType"])
        done = subprocess.run(ask, capture_output=True, text=True, check=False, env=self._environment(prefix))
        return {"Machine", "Negotiator", "Scheduler"} <= set(done.stdout.split())

    def _wait(self, longest_s: float, over: Callable[[], bool], complaint: str) -> None:
        deadline_s = time.monotonic() + longest_s
        while not over():
            if time.monotonic() > deadline_s:
                raise PoolError(
                    f"{complaint} within {longest_s:.0f} s: {self._complaint()}; see {self.folder}/log"
                )
            time.sleep(0.1)  # nobody tells when it is ready

    def _complaint(self) -> str:
        output = self.folder / "master.out"
        return output.read_text(errors="replace")[-500:].strip() if output.exists() else "it says nothing"

    def _as_user(self, args: list[str]) -> list[str]:
        if os.getuid():
            return args
        return [
            "setpriv",
            f"--reuid={self._user.pw_uid}",
            f"--regid={self._user.pw_gid}",
            "--clear-groups",
            *args,
        ]

    def _environment(self, prefix: Path) -> dict[str, str]:
        usr = f"{prefix}/root/usr"
        path = f"{usr}/bin:{usr}/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
        return {"HOME": str(self.folder), "LANG": "C.UTF-8", "PATH": path, "CONDOR_CONFIG": str(self.config)}


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="personal-pool", description="A real HTCondor pool of this machine alone."
    )
    parser.add_argument("verb", choices=["start", "stop", "env", "fetch"])
    default = f"/tmp/mtask-pool-{os.getuid()}"
    parser.add_argument(
        "--folder", type=Path, default=Path(default), help=f"where it lives, a short path  [{default}]"
    )
    parser.add_argument("--port", type=int, help="of 127.0.0.1  [one that is free]")
    parser.add_argument("--cpus", type=int, default=8, help="cores that it pretends to have  [8]")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        dest="settings",
        help="a line of its configuration",
    )
    parser.add_argument("--suite", default=SUITE, help=f"of Debian, from which HTCondor is taken  [{SUITE}]")
    options = parser.parse_args()
    pool = Pool(options.folder.absolute())
    try:
        if options.verb == "fetch":
            print(prefix_of(options.suite))
        elif options.verb == "start":
            pool.start(
                prefix_of(options.suite), port=options.port, cpus=options.cpus, settings=options.settings
            )
            print(f"a pool of {options.cpus} cores runs in {pool.folder}", file=sys.stderr)
            print(pool.env())
        elif options.verb == "stop":
            pool.stop()
        else:
            print(pool.env())
    except PoolError as error:
        print(f"personal-pool: {error}", file=sys.stderr)
        return error.status
    return 0


if __name__ == "__main__":
    sys.exit(main())
