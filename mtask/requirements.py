"""What a task needs of the worker that runs it, what a worker can do, and the lanes between them."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterable
from typing import Any, Self

import msgspec

__all__ = [
    "DEFAULT_LANE",
    "PRIORITIES",
    "REQUIREMENT_COLUMNS",
    "Capabilities",
    "Lane",
    "Requirements",
    "can_with",
    "find_lane",
    "front_of",
    "lacking",
    "parse_priority",
    "parse_size",
    "parse_tags",
    "size_text",
]

PRIORITIES = {"low": -1, "normal": 0, "high": 1}
"""By name; any whole number from -9 to 9 will do, too."""
REQUIREMENT_COLUMNS = ("cpus", "gpus", "memory", "priority", "tags")
"""Columns with these names say what a row's task needs, in place of the bag's options; tags come to them."""
MOST_CPUS = 4096
MOST_GPUS = 1024

_SIZES = {"": 1, "B": 1, "K": 1000, "KB": 1000, "KIB": 1024, "M": 10**6, "MB": 10**6, "MIB": 2**20}
_SIZES |= {"G": 10**9, "GB": 10**9, "GIB": 2**30, "T": 10**12, "TB": 10**12, "TIB": 2**40}


class Requirements(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a task needs. Raises ValueError, also when decoded; tags come out sorted, each once."""

    cpus: float = 1.0
    """So many of the worker's; a part of one will do for tasks that mostly wait."""
    memory_bytes: int = 0
    """Reserved; 0 reserves none."""
    gpus: int = 0
    tags: tuple[str, ...] = ()
    """The worker has all of these, and none of those written `!tag`."""
    only_on: tuple[str, ...] = ()
    """The worker has at least one of these."""

    def __post_init__(self) -> None:
        if not 0 < self.cpus <= MOST_CPUS:
            raise ValueError(f"cpus must be more than 0 and at most {MOST_CPUS}, not {self.cpus:g}")
        if self.memory_bytes < 0:
            raise ValueError("memory must not be negative")
        if not 0 <= self.gpus <= MOST_GPUS:
            raise ValueError(f"gpus must be from 0 to {MOST_GPUS}, not {self.gpus}")
        msgspec.structs.force_setattr(self, "cpus", float(self.cpus))  # 4 and 4.0 are one lane
        for name in ("tags", "only_on"):
            tags = getattr(self, name)
            for tag in tags:
                _check_tag(tag.removeprefix("!") if name == "tags" else tag)
            msgspec.structs.force_setattr(self, name, tuple(sorted(set(tags))))

    def __str__(self) -> str:
        """As in `cpus=4 memory=8GB gpus=1 tags=blast,eu`; empty when it is what every task needs."""
        parts = [f"cpus={self.cpus:g}"] if self.cpus != 1 else []
        if self.memory_bytes:
            parts.append(f"memory={size_text(self.memory_bytes)}")
        if self.gpus:
            parts.append(f"gpus={self.gpus}")
        if self.tags:
            parts.append(f"tags={','.join(self.tags)}")
        if self.only_on:
            parts.append(f"only-on={','.join(self.only_on)}")
        return " ".join(parts)


class Capabilities(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a worker can do, all of its slots together."""

    cpus: float = 1.0
    memory_bytes: int = 0
    gpus: tuple[str, ...] = ()
    """Their ids, as CUDA_VISIBLE_DEVICES takes them."""
    tags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for tag in self.tags:
            _check_tag(tag)

    def lacks(self, needs: Requirements) -> str:
        """What such a task needs and the worker doesn't have; empty: it can run it when it is free."""
        if needs.cpus > self.cpus:
            return f"cpus={needs.cpus:g}"
        if needs.memory_bytes > self.memory_bytes:
            return f"memory={size_text(needs.memory_bytes)}"
        if needs.gpus > len(self.gpus):
            return f"gpus={needs.gpus}"
        for tag in needs.tags:
            if (tag.removeprefix("!") in self.tags) == tag.startswith("!"):
                return f"the tag {tag}" if not tag.startswith("!") else f"a worker without the tag {tag[1:]}"
        if needs.only_on and not set(needs.only_on) & set(self.tags):
            return f"one of the tags {', '.join(needs.only_on)}"
        return ""


def lacking(can: Capabilities, roles: tuple[str, ...] | None, needs: Requirements) -> str:
    """What a worker of this kind lacks for such a task, if it serves only those that ask for one of its roles
    (None: all). Empty: it can run it when it is free."""
    if roles is not None and not {*needs.tags, *needs.only_on} & set(roles):
        asked = {tag for tag in needs.tags if not tag.startswith("!")} | set(needs.only_on)
        return f"the role {' or '.join(sorted(asked))}" if asked else "a worker without --roles"
    return can.lacks(needs)


def can_with(own: Capabilities, roles: Iterable[str]) -> Capabilities:
    """The same with these roles among its tags."""
    return msgspec.structs.replace(own, tags=tuple(dict.fromkeys((*own.tags, *roles))))


class Lane(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the tasks of a physical queue have in common. Made by `Lane.of`; the same things make the same name."""

    name: str = ""
    """Of letters and digits; empty: the queue itself, where all go that ask for nothing."""
    priority: int = 0
    requires: Requirements = Requirements()
    uid: str = ""
    """Of the bag whose tasks alone are in it, because it limits them."""
    max_running: int | None = None
    """So many of its tasks run at a time, on all workers together."""
    rate: float | None = None
    """So many of its tasks start in a second, on all workers together."""
    front: bool = False
    """Beside the lane that is the same otherwise, and received from first: for what was given back."""

    @classmethod
    def of(
        cls,
        priority: int,
        requires: Requirements,
        *,
        uid: str = "",
        max_running: int | None = None,
        rate: float | None = None,
        front: bool = False,
    ) -> Self:
        limited = max_running is not None or rate is not None
        lane = cls(
            priority=priority,
            requires=requires,
            uid=uid if limited else "",
            max_running=max_running,
            rate=rate,
            front=front,
        )
        if lane == cls():
            return lane
        import hashlib  # OpenSSL: worth 2 ms

        name = hashlib.blake2b(msgspec.json.encode(lane), digest_size=8).hexdigest()
        return msgspec.structs.replace(lane, name=name)

    @property
    def limited(self) -> bool:
        return self.max_running is not None or self.rate is not None


DEFAULT_LANE = Lane()


@functools.lru_cache(1024)
def front_of(lane: Lane) -> Lane:
    """The lane where goes what is given back of this one's; itself where each start is counted."""
    return lane if lane.limited else Lane.of(lane.priority, lane.requires, front=True)


def find_lane(name: str, lanes: Iterable[Lane]) -> Lane | None:
    """The default lane, one of these, or the front one of one of them."""
    own = (DEFAULT_LANE, *lanes)
    return next((lane for lane in itertools.chain(own, map(front_of, own)) if lane.name == name), None)


def parse_size(text: str) -> int:
    """Bytes, from `1500`, `16KiB`, `512MB`, `2G`. Raises ValueError."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([A-Za-z]*)\s*", text)
    if not found or found[2].upper() not in _SIZES:
        raise ValueError(f"{text!r} is not a size; write bytes, or 512MB, 2GB, 2GiB")
    return int(float(found[1]) * _SIZES[found[2].upper()])


def size_text(size_bytes: int) -> str:
    """As `parse_size` reads it, in the largest unit that comes out even or nearly so."""
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("KB", 1000)):
        if size_bytes >= size:
            return f"{size_bytes / size:.2f}".rstrip("0").rstrip(".") + unit
    return str(size_bytes)


def parse_tags(text: str) -> tuple[str, ...]:
    """Tags separated by commas or spaces. Raises ValueError."""
    tags = tuple(tag for tag in re.split(r"[,\s]+", text) if tag)
    for tag in tags:
        _check_tag(tag.removeprefix("!"))
    return tags


def parse_priority(value: Any) -> int:
    """From `high`, `normal`, `low`, or a whole number from -9 to 9. Raises ValueError."""
    named = PRIORITIES.get(str(value).strip().lower())
    if named is not None:
        return named
    try:
        number = int(str(value))
    except ValueError:
        number = 10
    if not -9 <= number <= 9:
        names: Iterable[str] = PRIORITIES
        raise ValueError(f"{value!r} is not a priority; write {', '.join(names)}, or a number from -9 to 9")
    return number


def _check_tag(tag: str) -> None:
    if not re.fullmatch(r"[^\W_][\w.:/=+-]{0,63}", tag):
        raise ValueError(
            f"{tag!r} can't be a tag: it has 1 to 64 letters, digits and . : / = + - _, and begins with a "
            "letter or a digit"
        )
