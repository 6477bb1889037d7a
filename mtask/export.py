"""Results with their parameters, as CSV, JSON Lines, Parquet, or a pandas DataFrame.

One row a task that has ended. The columns: `index`, the parameters, the state, what the function
returned (`value`, or, where it returned dictionaries, a column for each key), and what is known of
the attempt. A key of a returned dictionary that is a parameter's name, too, becomes `value.KEY`; a
column of mtask's own that is, becomes `mtask.NAME`.
"""

from __future__ import annotations

import csv
import gzip
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import msgspec

from mtask.errors import UsageError
from mtask.model import Result, State

if TYPE_CHECKING:
    import pandas

    from mtask.bag import BagHandle

__all__ = ["FORMATS", "OWN_COLUMNS", "Rows", "csv_cell", "to_pandas", "write"]

FORMATS = (".csv", ".csv.gz", ".jsonl", ".jsonl.gz", ".parquet")
BATCH = 10_000

_OWN: dict[str, Callable[[Result], Any]] = {
    "error_type": lambda r: r.error and r.error.type,
    "error_message": lambda r: r.error and r.error.message,
    "exit_code": lambda r: r.exit_code,
    "attempt": lambda r: r.attempt,
    "worker": lambda r: r.worker,
    "host": lambda r: r.host,
    "queued_at": lambda r: _iso(r.queued_at),
    "started_at": lambda r: _iso(r.started_at),
    "finished_at": lambda r: _iso(r.finished_at),
    "wall_s": lambda r: r.wall_s,
    "cpu_s": lambda r: r.cpu_s,
    "peak_bytes": lambda r: r.peak_bytes,
    "stdout": lambda r: r.stdout,
    "stderr": lambda r: r.stderr,
    "traceback": lambda r: r.error and r.error.traceback,
}
OWN_COLUMNS = tuple(_OWN)
"""Behind parameters, state and values."""


class Rows:
    """The joined rows of a bag: `columns`, and an iterator of lists of values; streams.

    `states` and `limit` choose among them; `attempts` gives the attempts that were tried again instead.
    """

    def __init__(
        self,
        bag: BagHandle,
        *,
        states: Collection[State] | None = None,
        limit: int | None = None,
        attempts: bool = False,
    ) -> None:
        self._bag, self._states, self._limit, self._attempts = bag, states, limit, attempts
        self.params = bag.info.columns
        self.keys = self._value_keys()
        taken = {"index", *self.params}
        named = [f"value.{key}" if key in taken | {"state"} else key for key in self.keys or ("value",)]
        taken.update(named)
        own = [f"mtask.{name}" if name in taken else name for name in ("state", *_OWN)]
        index = "mtask.index" if "index" in self.params else "index"
        self.columns = (index, *self.params, own[0], *named, *own[1:])

    def __iter__(self) -> Iterator[list[Any]]:
        """Values as Python objects: text, numbers, None, and for what is nested lists and dicts."""
        tasks = self._bag.tasks()
        task = next(tasks, None)
        for result in self._results():
            while task is not None and task.index < result.index:
                task = next(tasks, None)
            params = list(task.params.values()) if task is not None else [None] * len(self.params)
            yield self._joined(result, params)

    def _joined(self, result: Result, params: list[Any]) -> list[Any]:
        own = (f(result) for f in _OWN.values())
        return [result.index, *params, result.state.value, *self._values(result), *own]

    def _results(self) -> Iterator[Result]:
        results = self._bag.attempts() if self._attempts else self._bag.results(states=self._states)
        return islice(results, self._limit)

    def _values(self, result: Result) -> list[Any]:
        value = result.value
        if not self.keys:
            return [value]
        if isinstance(value, dict):
            return [value.get(key) for key in self.keys]
        return [None] * len(self.keys)

    def _value_keys(self) -> tuple[str, ...]:
        """The keys of all returned dictionaries, in order of appearance; () if something else was returned."""
        keys: dict[str, None] = {}
        decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
        for result in self._results():
            if result.state is not State.DONE:
                continue
            try:
                keys.update(dict.fromkeys(decode(result.value_json)))
            except msgspec.ValidationError:
                return ()
        return tuple(keys)


def write(rows: Rows, path: str | os.PathLike[str]) -> int:
    """Write all rows to a file whose suffix is one of `FORMATS`; returns their number.

    The file appears when it is complete. Raises UsageError for another suffix or a place that can't
    be written.
    """
    path = Path(path)
    check_path(path)
    part = path.with_name(path.name + ".part")
    try:
        if path.suffix == ".parquet":
            count = _write_parquet(rows, part)
        else:
            opener = gzip.open if path.suffix == ".gz" else open
            with opener(part, "wt", encoding="utf-8", newline="") as file:
                count = (_write_csv if ".csv" in path.suffixes else _write_jsonl)(rows, file)
        os.replace(part, path)
    except OSError as error:
        raise UsageError(f"can't write {path}: {error.strerror or error}") from None
    finally:
        part.unlink(missing_ok=True)
    return count


def check_path(path: str | os.PathLike[str]) -> None:
    """Raises UsageError when the suffix is none of `FORMATS`, or the folder isn't there."""
    path = Path(path)
    if not path.name.endswith(FORMATS):
        raise UsageError(f"{path}: the suffix says the format, and must be one of {', '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise UsageError(f"can't write {path}: there is no folder {path.parent}")


def _write_csv(rows: Rows, file: IO[Any]) -> int:
    writer = csv.writer(file)
    writer.writerow(rows.columns)
    count = 0
    for row in rows:
        writer.writerow([csv_cell(value) for value in row])
        count += 1
    return count


def csv_cell(value: Any) -> Any:
    """What stands for a value in a CSV file: what is nested is JSON."""
    if value is None or (isinstance(value, str | int | float) and not isinstance(value, bool)):
        return value
    return msgspec.json.encode(value).decode()


def _write_jsonl(rows: Rows, file: IO[Any]) -> int:
    count = 0
    for row in rows:
        count += 1
        file.write(msgspec.json.encode(dict(zip(rows.columns, row, strict=True))).decode())
        file.write("\n")
    return count


def _write_parquet(rows: Rows, path: Path) -> int:
    """Columns get the one type that all their values have, found in a pass of its own; where they
    have several, they become text."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise UsageError("Parquet needs pyarrow: pip install 'mtask[files]'") from None
    kinds = _kinds(rows)
    arrow = {bool: pyarrow.bool_(), int: pyarrow.int64(), float: pyarrow.float64(), str: pyarrow.string()}
    schema = pyarrow.schema([(name, arrow[kind]) for name, kind in zip(rows.columns, kinds, strict=True)])
    count = 0
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for batch in _batches(rows):
            columns = [
                pyarrow.array([_as(kind, value) for value in column], arrow[kind])
                for kind, column in zip(kinds, zip(*batch, strict=True), strict=True)
            ]
            writer.write_table(pyarrow.table(columns, schema=schema))
            count += len(batch)
    return count


def _kinds(rows: Rows) -> list[type]:
    kinds: list[type | None] = [None] * len(rows.columns)
    for row in rows:
        for at, value in enumerate(row):
            kind = kinds[at]
            if value is None or kind is str:
                continue
            own: type = type(value) if type(value) in (bool, int, float) else str
            if own is int and not -(2**63) <= value < 2**63:
                own = str
            if kind is None or kind is own:
                kinds[at] = own
            elif {kind, own} == {int, float}:
                kinds[at] = float
            else:
                kinds[at] = str
    return [kind or str for kind in kinds]


def _as(kind: type, value: Any) -> Any:
    if value is None or type(value) is kind:
        return value
    if kind is float:
        return float(value)
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _batches(rows: Iterable[list[Any]]) -> Iterator[Sequence[list[Any]]]:
    iterator = iter(rows)
    while batch := list(islice(iterator, BATCH)):
        yield batch


def to_pandas(bag: BagHandle) -> pandas.DataFrame:
    try:
        import pandas
    except ModuleNotFoundError:
        raise UsageError("this needs pandas: pip install 'mtask[files]'") from None
    rows = Rows(bag)
    frame = pandas.DataFrame(list(rows), columns=list(rows.columns))
    for column in frame.columns:
        if str(column).removeprefix("mtask.") in ("queued_at", "started_at", "finished_at"):
            frame[column] = pandas.to_datetime(frame[column], format="ISO8601", utc=True)
    return frame


def _iso(at: float | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds")
