"""The types of options that few verbs take: sizes, tags, rates, times to come, …."""

from __future__ import annotations

import os
import re
import time
from abc import abstractmethod
from datetime import datetime
from typing import Any, TypeVar

import click

from mtask.cli.common import Duration, Whole

__all__ = [
    "Cpus",
    "GpuIds",
    "Gpus",
    "Memory",
    "Names",
    "PerMessage",
    "Priority",
    "Rate",
    "Roles",
    "Size",
    "Staged",
    "Tags",
    "When",
]

T = TypeVar("T")

# What parses is imported when there is something to parse: `--help` must be quick.


class _Parsed(click.ParamType[T]):
    """Whose errors are those of a function that takes text and raises ValueError."""

    @abstractmethod
    def parse(self, text: str) -> T: ...

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> T:
        try:
            return self.parse(str(value))
        except (ValueError, OverflowError) as error:
            self.fail(str(error), param, ctx)


class Size(_Parsed[int]):
    """Bytes; also `16KiB`, `512MB`, `2GB`."""

    name = "size"

    def parse(self, text: str) -> int:
        from mtask.requirements import parse_size

        return parse_size(text)


class Staged(_Parsed[tuple[str, str]]):
    """NAME=URL; NAME alone is that of a column with URLs in it."""

    name = "staged"

    def __init__(self, option: str) -> None:
        self._option = option

    def parse(self, text: str) -> tuple[str, str]:
        name, equals, url = text.partition("=")
        if not name or (equals and not url) or "://" in name:
            raise ValueError(
                f"{text!r} should look like {self._option} db=s3://bucket/nt.fa, or be a column's name"
            )
        return name, url if equals else f"{{{name}}}"


class Memory(_Parsed[int]):
    """A size that a task or a worker may have."""

    name = "size"

    def parse(self, text: str) -> int:
        from mtask.placing import parse_memory

        return parse_memory(text)


class Cpus(_Parsed[float]):
    """A number, or a part of one."""

    name = "number"

    def parse(self, text: str) -> float:
        from mtask.placing import parse_cpus

        return parse_cpus(text)


class Tags(_Parsed[tuple[str, ...]]):
    """At least one, separated by commas."""

    name = "tags"

    def __init__(self, *, negative: bool = False) -> None:
        """`negative`: `!tag` is one, too."""
        self._negative = negative

    def parse(self, text: str) -> tuple[str, ...]:
        from mtask.placing import parse_needed_tags

        tags = parse_needed_tags(text)
        if not tags:
            raise ValueError("names no tag")  # as "$TAGS" does, where that isn't set
        unfit = [tag for tag in tags if tag.startswith("!")]
        if unfit and not self._negative:
            raise ValueError(f"{unfit[0]!r}: only --tags of tasks may say which tag a worker must not have")
        return tags


class Roles(_Parsed[tuple[str, ...]]):
    """At least one, separated by commas; or `auto` or `by-backlog`."""

    name = "roles"

    def parse(self, text: str) -> tuple[str, ...]:
        from mtask.roles import parse_roles

        return parse_roles(text)


class Priority(_Parsed[int]):
    """A name, or a number from -9 to 9."""

    name = "priority"

    def parse(self, text: str) -> int:
        from mtask.requirements import parse_priority

        return parse_priority(text)


class Rate(_Parsed[float]):
    """So many a second, a minute, an hour."""

    name = "rate"

    def parse(self, text: str) -> float:
        from mtask.placing import parse_rate

        return parse_rate(text)


class Gpus(_Parsed[int]):
    """How many a task takes."""

    name = "number"

    def parse(self, text: str) -> int:
        from mtask.placing import parse_gpus

        return parse_gpus(text)


class GpuIds(_Parsed[tuple[str, ...]]):
    """So many of this machine's, or ids with commas between them."""

    name = "gpus"

    def parse(self, text: str) -> tuple[str, ...]:
        from mtask.placing import parse_gpus

        if "," not in text and not text.strip().isdecimal():
            text += ","
        if "," not in text:
            return self._first(parse_gpus(text))
        ids = tuple(part.strip() for part in text.split(",") if part.strip())
        strange = [each for each in ids if not re.fullmatch(r"\d+|[A-Za-z][\w:/.-]*", each)]
        if strange or not ids:
            raise ValueError(f"{text.rstrip(',')!r} is neither a number of GPUs nor ids like 0,2")
        if len(set(ids)) < len(ids):
            raise ValueError(f"{text!r} names a GPU twice")
        return ids

    def _first(self, number: int) -> tuple[str, ...]:
        """Of those that a batch system left to this process, or else of all."""
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is None:
            return tuple(map(str, range(number)))
        ids = [part.strip() for part in visible.split(",") if part.strip()]
        if number > len(ids):
            raise ValueError(f"{number} are more than there are: CUDA_VISIBLE_DEVICES is {visible!r}")
        return tuple(ids[:number])


class Names(click.ParamType[tuple[str, ...]]):
    """Words separated by commas."""

    name = "names"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        names = tuple(part.strip() for part in str(value).split(","))
        if not all(names):
            self.fail(f"{value!r} has an empty name in it", param, ctx)
        return names


class When(click.ParamType[float]):
    """A time from now on (`2h`), or a date and time of this machine's zone, or with its own. UTC seconds."""

    name = "when"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return datetime.fromisoformat(str(value)).astimezone().timestamp()
        except ValueError:
            pass
        try:
            return time.time() + Duration().convert(value, param, ctx)
        except click.BadParameter:
            self.fail(
                f"{value!r} is neither a time from now, like 2h, nor a date, like 2030-01-31T08:00",
                param,
                ctx,
            )


class PerMessage(click.ParamType[int | None]):
    """A number of tasks, or `auto`."""

    name = "number or auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        if value == "auto":
            return None
        if not re.fullmatch(r"0*[1-9]\d*", str(value)):
            self.fail(f"{value!r} is neither a number from 1 on nor 'auto'", param, ctx)
        return Whole(1).convert(value, param, ctx)
