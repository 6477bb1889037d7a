"""Messages on disk: a folder of those that become one cluster of jobs, one job a message.

    order.json     what they have in common, for the nodes
    head.json      the same for this side; complete (with `ranges`) from when no message is added any more
    cluster        its number and its schedd, from when it was submitted
    log            what HTCondor says of its jobs
    damaged        is there when too little of it can be read
    0.in, 1.in …   the messages, until their results are recorded, or they were removed
    0.out, 0.err   what the job of a message brought back, and what it complained about

A folder is filled under a name that begins with a dot, locked by who fills it. If that one dies, the next to come
completes it: a message is sent when its file is there. It is removed under another such name, at first renamed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Self

import msgspec

from mtask.errors import MessageError, StorageFullError, UnusableError
from mtask.model import Message
from mtask.requirements import Lane
from mtask_condor.order import Order

__all__ = ["DAMAGED", "Batch", "Filling", "Head", "abandoned", "storing", "sweep", "unsealed"]


DAMAGED = "damaged"
_GONE = ".gone-"
"""The beginning of the names of what is being removed."""


class Head(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What this side has to know of a batch."""

    bag: str
    uid: str
    generation: int = 0
    lane: str = ""
    due_at: float = 0.0
    """No job starts before (UTC)."""
    sources: tuple[tuple[str, int], ...] = ()
    """Messages (batch, number) that these take the place of."""
    ranges: tuple[tuple[int, int], ...] = ()
    """Of each message: its first task, and how many."""


class storing:
    """Errors of the disk as ours."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, OSError):
            text = f"{error.filename or self._path} can't be used: {error.strerror}"
            if error.errno in (28, 122):  # ENOSPC, EDQUOT
                raise StorageFullError(
                    f"{text}; free some space there, or say ?folder=… in the queue's URL"
                ) from None
            raise UnusableError(f"{text}; say another ?folder=… in the queue's URL") from None


class Filling:
    """A batch to which messages are added."""

    def __init__(self, folder: Path, head: Head, order: Order, *, kept: bool = True) -> None:
        """`kept`: is it to be completed if this process dies?"""
        self.id = secrets.token_hex(6)
        self._folder, self.head = folder, head
        self._path = folder / f".{self.id}"
        self.ranges: list[tuple[int, int]] = []
        """Of each message so far: its first task, and how many."""
        new = folder / f".new-{self.id}"  # a name that nobody looks for, until it is locked
        new.mkdir(mode=0o700)
        self._lock = (new / "filling").open("wb") if kept else None
        if self._lock is not None:
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        _write(new / "order.json", msgspec.json.encode(order))
        _write(new / "head.json", msgspec.json.encode(head))
        new.rename(self._path)

    @property
    def count(self) -> int:
        return len(self.ranges)

    def add(self, message: Message) -> None:
        number = len(self.ranges)
        (self._path / f"{number}.out").touch()  # the first start finds one, as any later one does
        _write(self._path / f"{number}.in", message.encode())
        self.ranges.append((message.first, message.count))

    def seal(self, sources: Sequence[tuple[str, int]] = ()) -> Batch:
        try:
            return _sealed(self._path, self._folder / self.id, self.head, self.ranges, sources)
        finally:
            if self._lock is not None:
                self._lock.close()


def sweep(folder: Path) -> None:
    """Remove what is left of batches whose removal ended halfway."""
    for path in folder.glob(f"{_GONE}*"):
        shutil.rmtree(path, ignore_errors=True)


def abandoned(folder: Path) -> Iterator[Batch]:
    """Batches whose filler died, completed now."""
    for path in folder.glob(".????????????"):
        try:
            with (path / "filling").open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                head = msgspec.json.decode((path / "head.json").read_bytes(), type=Head)
                msgspec.json.decode((path / "order.json").read_bytes(), type=Order)
                ranges = list(_ranges_in(path))
                if ranges:
                    yield _sealed(path, folder / path.name[1:], head, ranges, ())
                else:
                    shutil.rmtree(path, ignore_errors=True)
        except BlockingIOError:
            continue
        except (FileNotFoundError, ValueError):  # it had only begun: no message was in it
            shutil.rmtree(path, ignore_errors=True)


def unsealed(folder: Path, own: Collection[Filling] = ()) -> Iterator[tuple[Head, tuple[int, int]]]:
    """The messages (head of their batch; first task, and how many) of batches that somebody fills just now: this
    process those of `own`."""
    yield from ((filling.head, range_) for filling in own for range_ in filling.ranges)
    known = {f".{filling.id}" for filling in own}
    for path in folder.glob(".????????????"):
        if path.name in known:
            continue
        try:
            head = msgspec.json.decode((path / "head.json").read_bytes(), type=Head)
        except (FileNotFoundError, ValueError):
            continue
        yield from ((head, range_) for range_ in _ranges_in(path))


def _ranges_in(path: Path) -> Iterator[tuple[int, int]]:
    number = 0
    while True:
        try:
            message = Message.decode((path / f"{number}.in").read_bytes())
        except (OSError, MessageError):  # the last one: its sender didn't get to know that it was stored
            return
        yield message.first, message.count
        number += 1


def _sealed(
    path: Path, place: Path, head: Head, ranges: Sequence[tuple[int, int]], sources: Sequence[tuple[str, int]]
) -> Batch:
    head = msgspec.structs.replace(head, ranges=tuple(ranges), sources=tuple(sources))
    _write(path / "head.json", msgspec.json.encode(head))
    path.rename(place)
    return Batch(place)


class Batch:
    """A folder to which nothing is added any more."""

    def __init__(self, path: Path) -> None:
        self.path, self.id = path, path.name

    @classmethod
    def all(cls, folder: Path) -> list[Self]:
        if not folder.is_dir():
            return []
        found = (path for path in sorted(folder.iterdir()) if re.fullmatch(r"[0-9a-f]{12}", path.name))
        return [cls(path) for path in found if not (path / DAMAGED).exists()]

    @cached_property
    def head(self) -> Head:
        return msgspec.json.decode((self.path / "head.json").read_bytes(), type=Head)

    @cached_property
    def order(self) -> Order:
        return msgspec.json.decode((self.path / "order.json").read_bytes(), type=Order)

    @property
    def is_sound(self) -> bool:
        """Can its head and its order be read?"""
        return not self.damaged()

    def damaged(self) -> list[str]:
        """Of `head` and `order`, those that can't be read."""
        found = []
        for name in ("head", "order"):
            try:
                getattr(self, name)
            except (FileNotFoundError, ValueError):
                found.append(name)
        return found

    def set_aside(self) -> None:
        """It stays where it is, for HTCondor still writes to it, but counts no more."""
        (self.path / DAMAGED).touch()

    def write_head(self, head: Head) -> None:
        self._write("head.json", head)

    def write_order(self, order: Order) -> None:
        self._write("order.json", order)

    def _write(self, name: str, content: Head | Order) -> None:
        """In place of one that can't be read."""
        owner = self.path.stat()
        _write(self.path / name, msgspec.json.encode(content))
        os.chown(self.path / name, owner.st_uid, owner.st_gid)

    @property
    def lane(self) -> Lane:
        return self.order.bag.lane(self.head.lane)

    @property
    def count(self) -> int:
        return len(self.head.ranges)

    def cluster(self) -> int | None:
        """None: not submitted, as far as is known."""
        try:
            return int((self.path / "cluster").read_text().split()[0])
        except (FileNotFoundError, ValueError, IndexError):
            return None

    def schedd(self) -> str:
        """The full name of the one that it was submitted to; empty: not known."""
        try:
            return (self.path / "cluster").read_text().partition(" ")[2]
        except FileNotFoundError:
            return ""

    def submitted(self, cluster: int, schedd: str) -> None:
        _write(self.path / "cluster", f"{cluster} {schedd}".encode())

    def live(self) -> set[int]:
        """Messages that aren't done with."""
        names = os.listdir(self.path) if self.path.is_dir() else []
        return {int(name[:-3]) for name in names if name.endswith(".in")}

    def message(self, number: int) -> Message | None:
        """None: it is done with."""
        try:
            return Message.decode((self.path / f"{number}.in").read_bytes())
        except FileNotFoundError:
            return None

    def brought_back(self, number: int) -> bool:
        """Did its job bring back anything?"""
        try:
            return (self.path / f"{number}.out").stat().st_size > 0
        except FileNotFoundError:
            return False

    def complaint(self, number: int) -> str:
        """The end of what the job printed as an error."""
        try:
            return (self.path / f"{number}.err").read_text(errors="replace").strip()[-300:]
        except OSError:
            return ""

    def forget(self, number: int) -> None:
        """The message is done with."""
        for suffix in ("out", "err", "in"):
            (self.path / f"{number}.{suffix}").unlink(missing_ok=True)

    def remove(self) -> None:
        """At once, as others see it; what is left of it if this process dies, `sweep` removes."""
        gone = self.path.with_name(_GONE + self.id)
        with contextlib.suppress(FileNotFoundError):
            self.path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def give_to(self, uid: int, gid: int) -> None:
        """All of it, to the user whose jobs work in it."""
        for path in (self.path, *self.path.iterdir()):
            os.chown(path, uid, gid)


def _write(path: Path, content: bytes) -> None:
    """All or nothing, as long as the machine goes on; then the table knows what is missing."""
    half = path.with_name(path.name + ".new")
    with open(os.open(half, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)
    half.rename(path)
