"""Which tasks somebody took out of HTCondor, for `mtask status`: removed.json, beside the batches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from mtask_condor.batch import storing

__all__ = ["Removed", "RemovedFile"]


class Removed(msgspec.Struct, frozen=True, kw_only=True):
    """Tasks whose job somebody removed."""

    uid: str
    first: int
    count: int
    why: str


class RemovedFile:
    """Who changes it holds the folder's lock."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "removed.json"

    def all(self) -> list[Removed]:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=list[Removed])
        except (FileNotFoundError, msgspec.DecodeError):
            return []

    def note(self, removed: Sequence[Removed]) -> None:
        known = self.all()
        self._write([*known, *(each for each in removed if each not in known)])

    def forget(self, uids: set[str]) -> None:
        """Their tasks are sent again."""
        known = self.all()
        if any(each.uid in uids for each in known):
            self._write([each for each in known if each.uid not in uids])

    def _write(self, removed: list[Removed]) -> None:
        with storing(self._path):
            new = self._path.with_suffix(".new")
            new.write_bytes(msgspec.json.encode(removed))
            new.rename(self._path)
