"""Which tasks are in the folder: as messages that are jobs, will be, or have ended and were not collected."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Self

from mtask.model import Message
from mtask.packing import slice_message, split_rows
from mtask_condor.batch import Batch, Filling, unsealed

__all__ = ["Live", "runs_of"]


class Live:
    """Of a folder at one moment; whoever goes by it holds the folder's lock."""

    def __init__(self) -> None:
        self._ranges: dict[tuple[str, int], list[tuple[int, int]]] = {}

    @classmethod
    def of(cls, folder: Path, own: Collection[Filling] = ()) -> Self:
        """Of batches that are complete, and of those that somebody fills: this process those of `own`."""
        found = defaultdict[tuple[str, int], list[tuple[int, int]]](list)
        for batch in Batch.all(folder):
            live = batch.live()
            ranges = batch.head.ranges
            found[batch.head.uid, batch.head.generation] += [ranges[number] for number in live]
        for head, range_ in unsealed(folder, own):
            found[head.uid, head.generation].append(range_)
        self = cls()
        self._ranges = {key: _merged(ranges) for key, ranges in found.items()}
        return self

    def has(self, message: Message) -> bool:
        """All of its tasks, in the same generation."""
        return not self._missing(message)

    def without(self, message: Message) -> Iterator[Message]:
        """What is left of the message when the tasks that are there are taken out."""
        missing = self._missing(message)
        if missing == [(message.first, message.first + message.count)] or (missing and not message.has_rows):
            yield message
        elif missing:
            rows = split_rows(message.rows)
            for start, stop in missing:
                yield slice_message(message, rows, start - message.first, stop - message.first)

    def _missing(self, message: Message) -> list[tuple[int, int]]:
        """Parts of it (first, end) that aren't there."""
        ranges = self._ranges.get((message.uid, message.generation), [])
        at, end = message.first, message.first + message.count
        missing = []
        for start, stop in ranges[max(0, bisect_right(ranges, (at, at)) - 1) :]:
            if start >= end:
                break
            if start > at:
                missing.append((at, start))
            at = max(at, stop)
        if at < end:
            missing.append((at, end))
        return missing


def runs_of(indexes: list[int]) -> Iterator[tuple[int, int]]:
    """Ascending numbers as ranges (first, end) of consecutive ones."""
    start = 0
    for at in range(1, len(indexes) + 1):
        if at == len(indexes) or indexes[at] != indexes[at - 1] + 1:
            yield indexes[start], indexes[at - 1] + 1
            start = at


def _merged(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """(first, count) as (first, end), ascending; those that touch or overlap are one."""
    merged: list[tuple[int, int]] = []
    for first, count in sorted(ranges):
        if merged and first <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], first + count)
        else:
            merged.append((first, first + count))
    return merged
