"""Inputs by URL, fetched once a host: a folder that all workers of this user on it share.

    entries/URL-VERSION/   data/…    what was fetched, read-only
                           meta      size and checksum of each file, and what it looked like when that was last true
                           lock      shared: a task uses it; its content: bytes; its time: when it was used last
    tmp/…                  what is being fetched, or removed; of a process that lives as long as `lock` is held
    locks/…                exclusive: who fetches the URLs that share this one
    lock                   exclusive: who makes room; shared: who takes what is there

Locks are flock's, which end with their process: whoever is killed leaves nothing half and nothing locked. VERSION is
made of what the store says of the object (etag, time, size, …), asked before each use.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import msgspec

from mtask.errors import UsageError
from mtask.requirements import parse_size
from mtask.staging import file_name
from mtask.urls import filesystem

__all__ = ["Cache", "Use", "version_of"]

SIZE = "20GB"
"""How large a cache may be by default."""
VERIFY_S = 24 * 3600.0
"""Checksums are computed anew when a file doesn't look as it did when that was last done, and this often."""
STRIPES = 3
"""Digits of the name of the lock under which a URL is fetched: so many don't pile up."""
TRIES = 3
_MARKS = {
    "content-md5",
    "content_md5",
    "crc32c",
    "digest",
    "etag",
    "generation",
    "ino",
    "last-modified",
    "last_modified",
    "lastmodified",
    "md5hash",
    "modified",
    "mtime",
    "updated",
    "version_id",
    "versionid",
}
"""By what the file systems of fsspec tell one version of an object from the next, in lower case."""


class _File(msgspec.Struct):
    digest: str
    looks: list[int]
    """Size, times of change in ns, inode."""


class _Meta(msgspec.Struct):
    url: str
    files: dict[str, _File]
    verified_at: float


class _Remote(msgspec.Struct):
    """An object, or a folder of objects, in a store."""

    files: dict[str, tuple[str, int | None]]
    """Its path below the entry's data → (path in the store, bytes, if it says)."""
    version: str

    @property
    def size_bytes(self) -> int:
        return sum(size or 0 for _, size in self.files.values())


class Use:
    """Holds an entry, so that it is not removed, until it is closed or this process ends."""

    def __init__(self, path: str, lock: int) -> None:
        self.path, self._lock = path, lock

    def close(self) -> None:
        _mark(self._lock)
        os.close(self._lock)


class Cache:
    """See above."""

    def __init__(self, folder: Path, size_bytes: int) -> None:
        """What tasks use together may take more than `size_bytes`; what nobody uses makes room."""
        self.folder, self.size_bytes = folder, size_bytes
        for name in ("entries", "tmp", "locks"):
            (folder / name).mkdir(parents=True, exist_ok=True, mode=0o700)

    @classmethod
    def of_environment(cls) -> Self:
        """By MTASK_CACHE and MTASK_CACHE_SIZE. Raises UsageError."""
        said = os.environ.get("MTASK_CACHE_SIZE") or SIZE
        try:
            size_bytes = parse_size(said)
        except ValueError as error:
            raise UsageError(f"MTASK_CACHE_SIZE: {error}") from None
        home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        folder = Path(os.environ.get("MTASK_CACHE") or os.path.join(home, "mtask")).absolute()
        try:
            return cls(folder, size_bytes)
        except OSError as error:
            raise UsageError(
                f"no input can be kept in {folder}: {error.strerror}; set MTASK_CACHE to another folder"
            ) from None

    def use(self, url: str) -> Use:
        """What the URL leads to now, as a file, or as a folder if it ends in a slash. Raises what its store raises."""
        store, path = filesystem(url)
        name = file_name(url)
        key = hashlib.blake2b(url.encode(), digest_size=16).hexdigest()
        for left in reversed(range(TRIES)):
            remote = _look(store, path, name, folder=url.endswith("/"))
            entry = f"{key}-{remote.version}"
            if use := self._take(entry, name):
                return use
            with _locked(self.folder / "locks" / key[:STRIPES], fcntl.LOCK_EX):
                if use := self._take(entry, name, verify=True):
                    return use
                fetched, lock = self._fetch(store, remote, url)
                try:
                    # What came may be newer than what was announced.
                    if left and _look(store, path, name, folder=url.endswith("/")).version != remote.version:
                        _drop(fetched, lock)
                        continue
                    return self._keep(fetched, lock, entry, name)
                except BaseException:
                    _drop(fetched, lock)
                    raise
        raise AssertionError("the last try ends otherwise")

    def _take(self, entry: str, name: str, *, verify: bool = False) -> Use | None:
        """Without `verify`, only if it looks as it did when its checksums were right."""
        place = self.folder / "entries" / entry
        with self._guarded(fcntl.LOCK_SH):
            try:
                lock = os.open(place / "lock", os.O_RDWR)
            except FileNotFoundError:
                return None
            fcntl.flock(
                lock, fcntl.LOCK_SH
            )  # who removes it holds it only while it holds the other lock, too
        if _is_as_it_was(place) or (verify and _is_right(place)):
            _mark(lock)
            return Use(str(place / "data" / name), lock)
        if verify:
            with self._guarded(fcntl.LOCK_EX):
                gone = self._away(place)
            with suppress(
                BlockingIOError
            ):  # a task still uses it: the next one to make room after that removes it
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(gone, ignore_errors=True)
        os.close(lock)
        return None

    def _fetch(self, store: Any, remote: _Remote, url: str) -> tuple[Path, int]:
        """Into a folder of its own; returns that, and its lock, held."""
        made, lock = self._make_room(remote.size_bytes)
        try:
            files = {}
            for name, (path, size) in remote.files.items():
                target = made / "data" / name
                target.parent.mkdir(parents=True, exist_ok=True)
                store.get_file(path, str(target))
                got = target.stat().st_size
                if size is not None and got != size:
                    raise OSError(f"{got:,} bytes came of {size:,}")
                files[name] = _File(_digest(target, sync=True), [])
                target.chmod(0o444)
                files[name].looks = _looks(target)
            _write(made / "meta", _Meta(url, files, time.time()))
            os.ftruncate(lock, 0)
            os.pwrite(lock, b"%d" % sum(file.looks[0] for file in files.values()), 0)
        except BaseException:
            _drop(made, lock)
            raise
        return made, lock

    def _keep(self, fetched: Path, lock: int, entry: str, name: str) -> Use:
        place = self.folder / "entries" / entry
        with self._guarded(fcntl.LOCK_EX):
            os.rename(fetched, place)
            _mark(lock)
            fcntl.flock(lock, fcntl.LOCK_SH)
        return Use(str(place / "data" / name), lock)

    def _make_room(self, size_bytes: int) -> tuple[Path, int]:
        """For so much; returns an empty folder and its lock, held. What a killed process has left goes first, then what
        wasn't used for longest; what is in use stays."""
        gone = []
        with self._guarded(fcntl.LOCK_EX):
            taken, idle = size_bytes, []
            for place in (self.folder / "tmp").iterdir():
                with _unused(place) as (size, _, unused):
                    if unused:
                        gone.append(place)
                    else:
                        taken += size
            for place in (self.folder / "entries").iterdir():
                with _unused(place) as (size, used_at, unused):
                    taken += size
                    if unused:
                        idle.append((used_at, size, place))
            for _, size, place in sorted(idle):
                if taken <= self.size_bytes:
                    break
                taken -= size
                gone.append(self._away(place))
            made = self.folder / "tmp" / secrets.token_hex(8)
            made.mkdir()
            lock = os.open(made / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)
            os.pwrite(lock, b"%d" % size_bytes, 0)
        for place in gone:
            shutil.rmtree(place, ignore_errors=True)
        return made, lock

    def _away(self, place: Path) -> Path:
        """Out of the entries, to where it is removed, now or by the next who makes room."""
        gone = self.folder / "tmp" / secrets.token_hex(8)
        with suppress(FileNotFoundError):
            os.rename(place, gone)
        return gone

    @contextmanager
    def _guarded(self, how: int) -> Iterator[None]:
        with _locked(self.folder / "lock", how):
            yield


@contextmanager
def _locked(path: Path, how: int) -> Iterator[None]:
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, how)
        yield
    finally:
        os.close(lock)


@contextmanager
def _unused(place: Path) -> Iterator[tuple[int, float, bool]]:
    """(bytes, when it was used last, does nobody use it?) of an entry, or of what is to be one."""
    try:
        lock = os.open(place / "lock", os.O_RDWR)
    except OSError:
        yield 0, 0.0, True
        return
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            unused = True
        except BlockingIOError:
            unused = False
        said = os.pread(lock, 32, 0)
        yield int(said) if said.isdigit() else 0, os.fstat(lock).st_mtime, unused
    finally:
        os.close(lock)


def _mark(lock: int) -> None:
    """As used now: the kernel's own stamps are some ms coarse."""
    now_ns = time.time_ns()
    os.utime(lock, ns=(now_ns, now_ns))


def _drop(fetched: Path, lock: int) -> None:
    shutil.rmtree(fetched, ignore_errors=True)
    os.close(lock)


def _look(store: Any, path: str, name: str, *, folder: bool) -> _Remote:
    """What is there now. Raises FileNotFoundError, and what else the store raises."""
    store.invalidate_cache()
    if not folder:
        info = store.info(path)
        if info.get("type") == "directory":
            raise IsADirectoryError(
                "it is a folder: write the URL with a slash at its end to fetch all of it"
            )
        return _Remote({name: (path, info.get("size"))}, version_of([info]))
    path = path.rstrip("/")
    found: Mapping[str, Mapping[str, Any]] = store.find(path, detail=True)
    if not found:
        raise FileNotFoundError(path)
    files = {}
    for each, info in sorted(found.items()):
        below = each.removeprefix(path).removeprefix("/")
        if not below or below.endswith("/"):  # what stands for a folder where there are none
            continue
        if {"", ".", ".."} & set(below.split("/")):
            raise ValueError(f"there is an object in it whose name can't be a file's: {each!r}")
        files[f"{name}/{below}"] = each, info.get("size")
    return _Remote(files, version_of(found[each] for each in sorted(found)))


def version_of(infos: Any) -> str:
    """Another one when an object has changed, as far as its store tells."""
    told = [
        sorted(
            (key.lower(), str(value))
            for key, value in info.items()
            if key.lower() in _MARKS or key in ("name", "size")
        )
        for info in infos
    ]
    return hashlib.blake2b(msgspec.json.encode(told), digest_size=16).hexdigest()


def _looks(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _read(place: Path) -> _Meta | None:
    try:
        return msgspec.json.decode((place / "meta").read_bytes(), type=_Meta)
    except (OSError, msgspec.MsgspecError):
        return None


def _is_as_it_was(place: Path) -> bool:
    meta = _read(place)
    if meta is None or not 0 <= time.time() - meta.verified_at < VERIFY_S:
        return False
    try:
        return all(_looks(place / "data" / name) == file.looks for name, file in meta.files.items())
    except OSError:
        return False


def _is_right(place: Path) -> bool:
    """Has each file the checksum that it had when it was fetched?"""
    meta = _read(place)
    if meta is None:
        return False
    try:
        for name, file in meta.files.items():
            path = place / "data" / name
            file.looks = _looks(path)
            if _digest(path) != file.digest:
                return False
    except OSError:
        return False
    meta.verified_at = time.time()
    with suppress(OSError):  # no room to say so: it is right all the same
        _write(place / "meta", meta)
    return True


def _digest(path: Path, *, sync: bool = False) -> str:
    with open(path, "rb") as file:
        if sync:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).hexdigest()


def _write(path: Path, meta: _Meta) -> None:
    new = path.with_name("meta.new")
    with open(new, "wb") as file:
        file.write(msgspec.json.encode(meta))
        file.flush()
        os.fsync(file.fileno())
    os.rename(new, path)
