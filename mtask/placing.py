"""From rows to lanes: what each task needs, by its bag's spec and by columns of its own row."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from mtask.errors import UsageError
from mtask.requirements import (
    MOST_GPUS,
    REQUIREMENT_COLUMNS,
    Lane,
    Requirements,
    parse_priority,
    parse_size,
    parse_tags,
)
from mtask.sources.base import Chunk, shorten
from mtask.spec import MOST, Spec

__all__ = [
    "MOST_LANES",
    "Placing",
    "lanes_of",
    "parse_cpus",
    "parse_gpus",
    "parse_memory",
    "parse_needed_tags",
    "parse_rate",
    "spec_fields",
]

MOST_LANES = 100
"""Of one bag. Each is a queue of its own, and a worker looks into all that it can serve."""
LEAST_MEMORY_BYTES = 10**6
"""Nobody means less, but many forget the unit."""

_SECONDS = {"": 1, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


# What people write. Each of these raises ValueError.


def parse_cpus(value: Any) -> float:
    """More than 0; a part of one will do."""
    return Requirements(cpus=_number(value, "CPUs")).cpus


def parse_gpus(value: Any) -> int:
    """A whole number from 0 on."""
    number = _number(value, "GPUs")
    if number > MOST_GPUS:
        raise ValueError(f"{shorten(value)} is more than any machine has; the most is {MOST_GPUS}")
    if not number.is_integer():
        raise ValueError(f"{value!r} is not a whole number of GPUs")
    return Requirements(gpus=int(number)).gpus


def parse_memory(value: Any) -> int:
    """Bytes, from `8GB` and the like. So few that a unit must be missing are refused."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{shorten(value)} is not a size; write 512MB, 2GB, 2GiB")
    text = str(value).strip()
    if text.startswith("-"):
        raise ValueError(f"{value!r} is negative; write 512MB, 2GB, 2GiB")
    try:
        size_bytes = parse_size(text)
    except OverflowError:
        size_bytes = MOST
    if size_bytes >= MOST:
        raise ValueError(f"{shorten(value)} is more than any machine has")
    if not size_bytes:
        raise ValueError("memory must be more than 0; leave it out where there is no need")
    if size_bytes < LEAST_MEMORY_BYTES:
        hint = (
            f"a unit seems to be missing, as in {text}GB or {text}MB"
            if text[-1].isdigit()
            else "write 512MB, 2GB, 2GiB"
        )
        raise ValueError(f"{value!r} is {size_bytes:,} bytes, too little for any task; {hint}")
    return size_bytes


def parse_needed_tags(value: Any) -> tuple[str, ...]:
    """Each once, sorted, from text or a list."""
    if isinstance(value, str):
        return tuple(sorted(set(parse_tags(value))))
    if not isinstance(value, Iterable) or not all(isinstance(tag, str) for tag in value):
        raise ValueError(f"{shorten(value)} is not a list of tags; write them with commas, as in blast,eu")
    return tuple(sorted({tag for each in value for tag in parse_tags(each)}))


def parse_rate(value: Any) -> float:
    """Tasks a second, from `10/s`, `600/min`, `100/h` or a number."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(?:/\s*([a-z]+)|)\s*", str(value))
    if not found or (found[2] or "") not in _SECONDS:
        raise ValueError(f"{value!r} is not a rate; write 10/s, 600/min or 100/h")
    rate = float(found[1]) / _SECONDS[found[2] or ""]
    if not 0 < rate <= MOST:
        raise ValueError(f"{value!r}: a rate must be more than 0" + (f" and at most {MOST}" if rate else ""))
    return rate


def _priority(value: Any) -> int:
    whole = isinstance(value, float) and value.is_integer()  # as a data frame has it
    return parse_priority(int(value) if whole else value)


def _max_running(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{value!r} is not a number of tasks from 1 on")
    return value


def _number(value: Any, of: str) -> float:
    if not isinstance(value, bool):
        try:
            return float(value)
        except (TypeError, ValueError, OverflowError):
            pass
    raise ValueError(f"{shorten(value)} is not a number of {of}")


_PARSERS: dict[str, Callable[[Any], Any]] = {
    "cpus": parse_cpus,
    "gpus": parse_gpus,
    "memory": parse_memory,
    "priority": _priority,
    "tags": parse_needed_tags,
}
_OPTIONS = _PARSERS | {"max_running": _max_running, "only_on": parse_needed_tags, "rate": parse_rate}


def spec_fields(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as people write them (`memory="8GB"`, `tags="a,b"`, `priority="high"`, `rate="10/s"`) as the
    fields of `Spec`. What means the same comes out the same. Raises ValueError."""
    if options.get("memory") is not None and options.get("memory_bytes") is not None:
        raise ValueError("memory and memory_bytes say the same: give one of them")
    fields = {}
    for name, value in options.items():
        if name not in _OPTIONS:
            fields[name] = value
        elif value is not None:
            try:
                fields["memory_bytes" if name == "memory" else name] = _OPTIONS[name](value)
            except ValueError as error:
                said = str(error)
                raise ValueError(said if said.startswith(name) else f"{name}: {said}") from None
    return fields


class Placing:
    """Gives each row the number of its lane; what the lanes are is in `kinds`, in order of appearance."""

    def __init__(self, spec: Spec, columns: Sequence[str]) -> None:
        """Raises UsageError for needs that no worker can meet."""
        self._spec = spec
        self._at = {name: columns.index(name) for name in REQUIREMENT_COLUMNS if name in columns}
        try:
            _check(spec.requires)
        except ValueError as error:
            raise UsageError(str(error)) from None
        self.kinds: list[tuple[int, Requirements]] = [] if self._at else [(spec.priority, spec.requires)]
        self._numbers = {kind: number for number, kind in enumerate(self.kinds)}
        self._known: dict[tuple[str, ...], int] = {}

    @property
    def by_row(self) -> tuple[str, ...]:
        """The columns by which rows say something themselves."""
        return tuple(self._at)

    @property
    def needs(self) -> list[Requirements]:
        """What tasks need, each once."""
        return list(dict.fromkeys(requires for _, requires in self.kinds))

    def numbers(self, chunk: Chunk) -> list[int]:
        """For each row of the chunk, its lane. Raises InputError with line and column."""
        columns = [chunk.columns[at] for at in self._at.values()]
        found = []
        for row, values in enumerate(zip(*columns, strict=True)):
            key = tuple(map(repr, values))
            if key not in self._known:
                self._known[key] = self._number(chunk, row, values)
            found.append(self._known[key])
        return found

    def lanes(self, uid: str) -> list[Lane]:
        """Of a bag with this uid, by their numbers."""
        return lanes_of(self._spec, self.kinds, uid)

    def _number(self, chunk: Chunk, row: int, values: Sequence[Any]) -> int:
        priority, requires = self._spec.priority, self._spec.requires
        for name, value in zip(self._at, values, strict=True):
            if _is_empty(value):
                continue
            try:
                parsed = _PARSERS[name](value)
                if name == "priority":
                    priority = parsed
                else:
                    requires = _with(requires, name, parsed)
            except ValueError as error:
                hint = f"the column {name!r} says what each task needs"
                raise chunk.error(
                    f"{error}; {hint}: rename it if it means something else", row, name
                ) from None
        kind = priority, requires
        if kind not in self._numbers:
            if len(self.kinds) == MOST_LANES:
                raise chunk.error(self._too_many(), row)
            self._numbers[kind] = len(self.kinds)
            self.kinds.append(kind)
        return self._numbers[kind]

    def _too_many(self) -> str:
        columns = " and ".join(map(repr, self._at))
        return (
            f"there are more than {MOST_LANES} different values of {columns}, and each takes a queue of its own; "
            "round them up, as to 1, 2, 4, 8GB"
        )


def lanes_of(spec: Spec, kinds: Iterable[tuple[int, Requirements]], uid: str) -> list[Lane]:
    """Those of a bag's tasks with these priorities and needs."""
    return [
        Lane.of(priority, requires, uid=uid, max_running=spec.max_running, rate=spec.rate)
        for priority, requires in kinds
    ]


def _with(requires: Requirements, name: str, value: Any) -> Requirements:
    if name == "tags":
        value += requires.tags
    changed = msgspec.structs.replace(requires, **{"memory_bytes" if name == "memory" else name: value})
    _check(changed)
    return changed


def _check(requires: Requirements) -> None:
    """Raises ValueError for tags that exclude each other."""
    for tag in requires.tags:
        if f"!{tag}" in requires.tags:
            raise ValueError(f"the tags {tag} and !{tag} exclude each other: no worker could run it")
    if requires.only_on and all(f"!{tag}" in requires.tags for tag in requires.only_on):
        raise ValueError(
            f"only-on {', '.join(requires.only_on)} and the tags exclude each other: no worker could run it"
        )


def _is_empty(value: Any) -> bool:
    return value is None or value != value or (isinstance(value, str) and not value.strip())
