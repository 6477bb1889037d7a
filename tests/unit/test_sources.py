"""Task files and rows: what is read, and what is said about what can't be."""

from __future__ import annotations

import csv
import dataclasses
import datetime
import gzip
import io
import json
import math
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mtask.errors import InputError, UsageError
from mtask.sources import Chunk, CsvSource, RowsSource, Source, encode_rows, open_source

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(content: str | bytes, name: str = "tasks.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def rows_of(source: Source) -> list[tuple[Any, ...]]:
    return [row for chunk in source.chunks() for row in zip(*chunk.columns, strict=True)]


def lines_of(source: Source) -> list[int]:
    return [line for chunk in source.chunks() for line in chunk.lines]


def refusal(path: Path | str, **options: Any) -> InputError:
    with pytest.raises(InputError) as caught:
        rows_of(open_source(path, **options))
    return caught.value


# CSV


def test_csv(write: Write) -> None:
    source = open_source(write("id,reads\n1,a.fq\n2,\n"))
    assert (source.columns, source.textual, source.repeatable) == (("id", "reads"), True, True)
    assert rows_of(source) == [("1", "a.fq"), ("2", "")]
    assert lines_of(source) == [2, 3]
    assert rows_of(source) == rows_of(source), "a file can be read again"


@pytest.mark.parametrize(
    ("content", "columns", "rows", "lines"),
    [
        (b"\xef\xbb\xbfid,x\r\n1,2\r\n", ("id", "x"), [("1", "2")], [2]),
        ('id,x\n1,"a\nb"\n2,c\n', ("id", "x"), [("1", "a\nb"), ("2", "c")], [2, 4]),
        ('id,x\r\n1,"a\r\nb\rc\n"\r\n2,c', ("id", "x"), [("1", "a\r\nb\rc\n"), ("2", "c")], [2, 6]),
        ('id,"x\ny"\n1,2\n', ("id", "x\ny"), [("1", "2")], [3]),
        ("\n\nid,x\n\n1,2\n   \n3,4\n\n\n", ("id", "x"), [("1", "2"), ("3", "4")], [5, 7]),
        ('x\n1\n\n""\n  \n', ("x",), [("1",), ("",), ("  ",)], [2, 4, 5]),
        ("id;x\n1;2,5\n", ("id", "x"), [("1", "2,5")], [2]),
        ("sep=;\r\nid;x\r\n1;2\r\n", ("id", "x"), [("1", "2")], [3]),
        ("id\tx\n1\t2\n", ("id", "x"), [("1", "2")], [2]),
        ("id,x\r1,2\r3,4\r", ("id", "x"), [("1", "2"), ("3", "4")], [2, 3]),
        ('id,x\n1,"say ""hi"""\n', ("id", "x"), [("1", 'say "hi"')], [2]),
        ("id,x\n,\n", ("id", "x"), [("", "")], [2]),
        ("id,x\n", ("id", "x"), [], []),
        ("id,x", ("id", "x"), [], []),
        ("näme\n日本\n", ("näme",), [("日本",)], [2]),
    ],
)
def test_csv_as_it_comes(
    write: Write, content: Any, columns: tuple[str, ...], rows: list[tuple[str, ...]], lines: list[int]
) -> None:
    source = open_source(write(content))
    assert source.columns == columns
    assert rows_of(source) == rows
    assert lines_of(source) == lines


CELLS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    width=st.integers(1, 4),
    data=st.data(),
    end=st.sampled_from(["\n", "\r\n"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    bom=st.booleans(),
)
def test_what_csv_writer_writes_is_read_back(
    width: int, data: st.DataObject, end: str, quoting: Any, bom: bool
) -> None:
    rows = data.draw(st.lists(st.tuples(*[CELLS] * width), max_size=300))
    if (end, quoting) == ("\n", csv.QUOTE_MINIMAL):
        # Before Python 3.13, csv.writer doesn't quote a lone \r there, which ends a line for most readers.
        rows = [tuple(cell.replace("\r", "") for cell in row) for row in rows]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator=end, quoting=quoting)
    writer.writerow([f"c{at}" for at in range(width)])
    starts = []
    for row in rows:
        seen = text.getvalue()
        starts.append(1 + seen.count("\n") + seen.count("\r") - seen.count("\r\n"))
        writer.writerow(row)
    content = text.getvalue().encode()
    stream = io.BytesIO(b"\xef\xbb\xbf" * bom + content)
    chunks = list(open_source("-", stdin=stream).chunks())
    assert [row for chunk in chunks for row in zip(*chunk.columns, strict=True)] == rows
    assert [line for chunk in chunks for line in chunk.lines] == starts


@pytest.mark.parametrize("offset", [-3, -2, -1, 0, 1])
@pytest.mark.parametrize("piece", ["ä", "日", "\r\n", '"\r\n"', "😀"])
def test_characters_across_the_edges_of_what_is_read_at_once(write: Write, piece: str, offset: int) -> None:
    for edge in (1 << 17, 1 << 18):
        head = "x\n"
        filler = "a" * (edge - len(head) + offset)
        text = (
            f"{head}{filler}\n{piece}\nlast\n"
            if '"' in piece or "\r" in piece
            else f"{head}{filler}{piece}\nlast\n"
        )
        source = open_source(write(text))
        assert rows_of(source) == [
            (row[0],) for row in list(csv.reader(io.StringIO(text, newline="")))[1:] if row
        ]
        breaks = text.count("\n") + text.count("\r") - text.count("\r\n")
        assert lines_of(source)[-1] == breaks


@pytest.mark.parametrize(
    ("content", "line", "column", "text"),
    [
        ("", None, None, "is empty; the first line should name the columns"),
        ("\n\n", None, None, "is empty"),
        (b"\xef\xbb\xbf", None, None, "is empty"),
        ("id,x,id\n", 1, "id", "columns 1 and 3 have the same name"),
        ("id,,x\n", 1, None, "column number 2 has no name; the first line names the columns: 'id,,x'"),
        (",x\n0,1\n", 1, None, "column number 1 has no name; if pandas wrote it: to_csv(…, index=False)"),
        ("\n\nid, \n", 3, None, "column number 2 has no name"),
        (
            "id,x\n1,2\n3\n",
            3,
            None,
            "expected 2 fields, found 1; there is none for column 'x'. The row begins: '3'",
        ),
        (
            "id,x\n1,2\n\n3,a,b\n",
            4,
            None,
            "expected 2 fields, found 3; write a value that has a comma in it between double quotes. "
            "The row begins: '3,a,b'",
        ),
        ("x\n1,2\n", 2, None, "expected 1 field, found 2"),
        ('id,x\n1,"a\nb"\n3\n', 4, None, "expected 2 fields, found 1"),
        (b"id,x\n1,2\n3,caf\xe9\n", 3, None, "not UTF-8: byte 0xe9"),
        (b"id,\xe9\n", 1, None, "iconv -f latin1"),
        ("id,x\n1,2\n".encode("utf-16"), 1, None, "a NUL byte; this is not a text file"),
        (b"id,x\n1,2\n3,a\0b\n", 3, None, "a NUL byte"),
        ('id,x\n1,2\n3,"a\nb\nc\n', 3, None, "a double quote is opened in this row and never closed"),
        ('id,x\n1,"a"b\n', 2, None, "a double quote in the middle of a field"),
        ('"id,x\n', 1, None, "never closed"),
    ],
)
def test_bad_csv(write: Write, content: Any, line: int | None, column: str | None, text: str) -> None:
    path = write(content)
    error = refusal(path)
    assert (error.source, error.line, error.column) == (str(path), line, column)
    assert text in error.problem
    assert str(error).startswith(str(path))


def test_errors_far_into_a_file_name_the_right_line(write: Write) -> None:
    good = "".join(f'{number},"a\nb"\n' for number in range(20_000))
    for bad, text in [
        (b"x\n", "expected 2"),
        (b"1,\xff\n", "not UTF-8"),
        (b"1,\0\n", "NUL"),
        (b'1,"\n', "never"),
    ]:
        error = refusal(write(b"id,x\n" + good.encode() + bad))
        assert error.line == 40_002
        assert text in error.problem


def test_a_long_row_is_shown_shortened(write: Write) -> None:
    error = refusal(write("a,b\n" + "x" * 1000 + "\n"))
    assert error.problem.endswith("x" * 20 + "'…")
    assert len(error.problem) < 200


def test_a_large_field_is_read_and_a_forgotten_quote_does_not_fill_the_memory(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert rows_of(open_source(write("x,y\n1," + "y" * 2**20 + "\n"))) == [("1", "y" * 2**20)]
    old = csv.field_size_limit(1000)
    try:
        monkeypatch.setattr("mtask.sources.csv.MOST_FIELD_CHARS", 1000)
        error = refusal(write('x,y\n1,2\n1,"' + "y\n" * 2000))
    finally:
        csv.field_size_limit(old)
    assert (error.line, "closing double quote missing" in error.problem) == (3, True)


def test_files_that_are_not_there(tmp_path: Path, write: Write) -> None:
    write("id\n")
    error = refusal(tmp_path / "task.csv")
    assert error.problem == f"no such file; did you mean '{tmp_path / 'tasks.csv'}'?"
    assert refusal(tmp_path).problem == "is a directory; give a file"
    assert "can't be opened" in refusal(str(tmp_path / "a\0b")).problem
    for name in ("x.csv", "x.jsonl", "x.parquet", "x.csv.gz", "x.csv.zst", "x.xlsx"):
        assert "no such file" in refusal(tmp_path / "none" / name).problem


def test_kinds_of_files_that_are_not_read(write: Write) -> None:
    for name, text in [("a.xlsx", "CSV UTF-8"), ("a.json", "jsonl"), ("a.csv.zip", "unpack it")]:
        with pytest.raises(UsageError, match=text):
            open_source(write("", name))


def test_a_compressed_file_without_the_suffix(write: Write) -> None:
    error = refusal(write(zstandard.compress(b"id\n1\n"), "tasks.csv"))
    assert error.line == 1
    error = refusal(write(b"\x1f\x8b\x08abc", "tasks.csv"))
    assert "it looks compressed; give it a name that ends in .csv.gz" in error.problem


def test_tsv(write: Write) -> None:
    source = open_source(write("id\tx,y\n1\t2\n", "a.tsv"))
    assert (source.columns, rows_of(source)) == (("id", "x,y"), [("1", "2")])


def test_standard_input_is_read_once() -> None:
    source = open_source("-", stdin=io.BytesIO(b"id,x\n1,2\n"))
    assert (source.name, source.repeatable) == ("standard input", False)
    assert rows_of(source) == [("1", "2")]
    with pytest.raises(UsageError, match="can be read only once"):
        rows_of(source)
    error = refusal("-", stdin=io.BytesIO(b"id,x\n1\n"))
    assert str(error).startswith("standard input, line 2: expected 2 fields")


def test_standard_input_of_a_process() -> None:
    code = "from mtask.sources import open_source as o; print([list(c.columns) for c in o('-').chunks()])"
    done = subprocess.run([sys.executable, "-c", code], input=b"a,b\n1,2\n", capture_output=True, check=True)
    assert done.stdout == b"[[('1',), ('2',)]]\n"


def test_a_named_pipe_is_read_once(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with subprocess.Popen(["sh", "-c", f"printf 'a,b\\n1,2\\n' > {path}"]):
        source = open_source(path)
        assert (source.repeatable, rows_of(source)) == (False, [("1", "2")])


def test_json_lines_from_a_named_pipe(tmp_path: Path) -> None:
    path = tmp_path / "pipe.jsonl"
    os.mkfifo(path)
    with subprocess.Popen(["sh", "-c", f'printf \'\\n{{"a": 1}}\\n{{"a": 2}}\\n\' > {path}']):
        source = open_source(path)
        assert (source.repeatable, rows_of(source)) == (False, [(1,), (2,)])
        with pytest.raises(UsageError, match="only once"):
            rows_of(source)


# Compression

MANY = b"id,x\n" + b"".join(b"%d,%d\n" % (number, number * 7919 % 10007) for number in range(50_000))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_files(write: Write, suffix: str) -> None:
    press: Any = gzip.compress if suffix == ".gz" else zstandard.compress
    half = MANY.index(b"\n25000,") + 1
    expected = rows_of(open_source(write(MANY)))
    assert rows_of(open_source(write(press(MANY), f"a.csv{suffix}"))) == expected
    both = press(MANY[:half]) + press(MANY[half:])
    assert rows_of(open_source(write(both, f"b.csv{suffix}"))) == expected, "one after the other"
    lines = b'{"id": 1}\n{"id": 2}\n'
    assert rows_of(open_source(write(press(lines), f"a.jsonl{suffix}"))) == [(1,), (2,)]
    assert "is empty" in refusal(write(press(b""), f"c.csv{suffix}")).problem


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_broken_compressed_files(write: Write, suffix: str) -> None:
    press: Any = gzip.compress if suffix == ".gz" else zstandard.compress
    pressed = press(MANY)
    for cut in (len(pressed) // 2, len(pressed) - 3):
        assert "is cut off in the middle" in refusal(write(pressed[:cut], f"a.csv{suffix}")).problem
    assert "can't be decompressed" in refusal(write(MANY, f"a.csv{suffix}")).problem
    broken = bytearray(pressed)
    broken[len(pressed) // 2 :] = os.urandom(len(pressed) - len(pressed) // 2)
    with pytest.raises(InputError):
        rows_of(open_source(write(bytes(broken), f"a.csv{suffix}")))


def test_zstandard_and_pyarrow_that_are_not_installed(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for name in ("a.csv.zst", "a.parquet"):
        with pytest.raises(UsageError) as caught:
            open_source(write("", name))
        assert "pip install 'mtask[files]'" in str(caught.value)


# JSON lines


def test_jsonl(write: Write) -> None:
    content = (
        '\ufeff{"id": 1, "x": [1, {"a": null}]}\n\n{"x": "ä", "id": 18446744073709551617}\n{"id":1,"x":2.5}'
    )
    source = open_source(write(content, "a.jsonl"))
    assert (source.columns, source.textual) == (("id", "x"), False)
    assert rows_of(source) == [(1, [1, {"a": None}]), (18446744073709551617, "ä"), (1, 2.5)]
    assert lines_of(source) == [1, 3, 4]
    assert rows_of(open_source(write('{"a": 1}\n{"a": 2}\n', "a.ndjson"))) == [(1,), (2,)]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.lists(
        st.tuples(st.integers(), st.text(), st.floats(allow_nan=False, allow_infinity=False)), min_size=1
    )
)
def test_what_json_writes_is_read_back(write: Write, values: list[tuple[int, str, float]]) -> None:
    text = "".join(
        json.dumps(dict(zip("abc", row, strict=True))) + "\n"
        for row in values
        if max(row[1], default="") < "\ud800"
    )
    if text:
        read = rows_of(open_source(write(text, "a.jsonl")))
        assert read == [row for row in values if max(row[1], default="") < "\ud800"]


@pytest.mark.parametrize(
    ("content", "line", "text"),
    [
        ("", None, "is empty"),
        ("\n\n", None, "is empty"),
        ('{"a": 1}\n[1]\n', 2, "expected an object, found an array: '[1]'"),
        ('{"a": 1}\n"x"\n', 2, "found a string"),
        ('{"a": 1}\n3\n', 2, "found a number"),
        ("{}\n", 1, "an object without keys"),
        ('{"a": 1}\n{"a": }\n', 2, "not JSON: invalid character (byte 6): '{\"a\": }'"),
        ('{"a": 1}\n{"a": NaN}\n', 2, "JSON has no NaN or Infinity"),
        ('[\n{"a": 1}\n]\n', 1, "one object a line"),
        ('{"a": 1}\n\n{"b": 1}\n', 3, "other keys than the first line has: without 'a', with 'b' more"),
        ('{"a": 1}\n{"a": 1, "b": 2}\n', 2, "with 'b' more; every line must have the same keys"),
        ('{"a": 1, "b": 1}\n{"b": 1}\n', 2, "without 'a'"),
        ('{"": 1}\n', 1, "column number 1 has no name"),
        (b'{"a": 1}\n{"a": "\xff"}\n', 2, "not UTF-8"),
        ('{"a": 1}\n{"a": 1e999}\n', 2, "Number out of range"),
        (f'{{"a": 1}}\n{{"a": {"[" * 5000}}}\n', 2, "nested too deep"),
        ('{"a": 1}\n{"a": "x\0"}\n', 2, "invalid character"),
    ],
)
def test_bad_jsonl(write: Write, content: Any, line: int | None, text: str) -> None:
    path = write(content, "a.jsonl")
    error = refusal(path)
    assert (error.source, error.line) == (str(path), line)
    assert text in error.problem


def test_a_long_jsonl_file_is_read_in_pieces(write: Write) -> None:
    path = write("".join(f'{{"id": {number}}}\n' for number in range(200_000)), "a.jsonl")
    assert [row[0] for row in rows_of(open_source(path))] == list(range(200_000))
    assert len(list(open_source(path).chunks())) > 1
    with path.open("a") as file:
        file.write("oops\n")
    assert refusal(path).line == 200_001


# Parquet


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    when = datetime.datetime(2026, 1, 31, 12, 0, 0, 5000)
    table = pa.table(
        {
            "id": pa.array([1, 2], pa.int64()),
            "x": [1.5, None],
            "name": ["a", "ä"],
            "at": pa.array([when, None], pa.timestamp("ns")),
            "day": [when.date(), None],
            "price": [Decimal("1.10"), None],
            "tags": [["a"], []],
            "more": [{"n": 1, "at": when}, None],
            "kind": pa.array(["u", "v"]).dictionary_encode(),
            "took": [datetime.timedelta(seconds=1.5), None],
        }
    )
    pa.parquet.write_table(table, path)
    source = open_source(path)
    iso = "2026-01-31T12:00:00.005000"
    assert source.columns == tuple(table.column_names)
    assert rows_of(source) == [
        (1, 1.5, "a", iso, "2026-01-31", "1.10", ["a"], {"n": 1, "at": iso}, "u", 1.5),
        (2, None, "ä", None, None, None, [], None, "v", None),
    ]
    assert lines_of(source) == [1, 2]
    assert rows_of(source) == rows_of(source)


def test_bad_parquet(tmp_path: Path, write: Write) -> None:
    assert "not a Parquet file" in refusal(write("hello", "a.parquet")).problem
    path = tmp_path / "b.parquet"
    pa.parquet.write_table(pa.table({"a": [b"x"]}), path)
    error = refusal(path)
    assert (error.column, "values of type binary can't be sent" in error.problem) == ("a", True)
    pa.parquet.write_table(pa.table({"a": [[b"x"]]}), path)
    assert refusal(path).column == "a"
    pa.parquet.write_table(pa.table({"a": list(range(1000))}), path)
    content = bytearray(path.read_bytes())
    content[4:200] = b"\xff" * 196
    assert "can't be read" in refusal(write(bytes(content), "c.parquet")).problem


# Rows of a Python program


@dataclasses.dataclass
class Point:
    x: int
    y: str


class NamedPoint(NamedTuple):
    x: int
    y: str


class StructPoint(msgspec.Struct):
    x: int
    y: str


@pytest.mark.parametrize(
    "rows",
    [
        [{"x": 1, "y": "a"}, {"y": "b", "x": 2}],
        [Point(1, "a"), Point(2, "b")],
        [NamedPoint(1, "a"), NamedPoint(2, "b")],
        [StructPoint(1, "a"), StructPoint(2, "b")],
        pd.DataFrame({"x": [1, 2], "y": ["a", "b"]}, index=[7, 8]),
        ({"x": number, "y": letter} for number, letter in [(1, "a"), (2, "b")]),
    ],
    ids=lambda rows: type(rows[0] if isinstance(rows, list) else rows).__name__,
)
def test_rows(rows: Any) -> None:
    source = RowsSource(rows)
    assert (source.columns, source.textual) == (("x", "y"), False)
    read = rows_of(source)
    assert read == [(1, "a"), (2, "b")]
    assert {type(value) for row in read for value in row} == {int, str}


def test_tuples_need_columns() -> None:
    assert rows_of(RowsSource([(1, 2), [3, 4]], columns=["a", "b"])) == [(1, 2), (3, 4)]
    with pytest.raises(UsageError, match="give mappings, or columns="):
        RowsSource([(1, 2)])


def test_rows_are_read_as_they_are_needed() -> None:
    given_out = 0

    def rows() -> Iterator[dict[str, int]]:
        nonlocal given_out
        for number in range(100_000):
            given_out += 1
            yield {"x": number}

    source = RowsSource(rows())
    assert given_out == 1
    assert not source.repeatable
    next(iter(source.chunks()))
    assert given_out < 10_000
    with pytest.raises(UsageError, match="only once; give a list"):
        list(source.chunks())


def test_no_rows() -> None:
    assert RowsSource([]).columns == ()
    assert rows_of(RowsSource([], columns=["a"])) == []
    assert rows_of(RowsSource(pd.DataFrame({"a": []}))) == []


def test_missing_values_of_a_data_frame() -> None:
    frame = pd.DataFrame(
        {
            "f": [1.5, None],
            "s": ["a", None],
            "n": pd.array([1, None], "Int64"),
            "t": [pd.Timestamp("2026-01-31"), pd.NaT],
        }
    )
    (first, second) = rows_of(RowsSource(frame))
    assert first == (1.5, "a", 1, pd.Timestamp("2026-01-31"))
    assert math.isnan(second[0])
    assert second[1:] == (None, None, None)


@pytest.mark.parametrize(
    ("rows", "columns", "line", "text"),
    [
        ([{"x": 1}, {"x": 2, "z": 3}], None, 2, "other columns than 'x': with 'z' more: {'x': 2, 'z': 3}"),
        ([{"x": 1}, {"z": 3}], None, 2, "without 'x', with 'z' more"),
        ([Point(1, "a"), {"x": 1}], None, 2, "without 'y'"),
        ([(1, 2), (1,)], ["a", "b"], 2, "expected 2 values, found 1: (1,)"),
        ([{"x": 1}, 5], None, 2, "expected a mapping, a tuple or a dataclass, found 5"),
        ([{1: 2}], None, None, "the name of a column must be text, not 1"),
        ([(1, 2)], ["a", "a"], None, "columns 1 and 2 have the same name"),
    ],
)
def test_bad_rows(rows: Any, columns: Any, line: int | None, text: str) -> None:
    with pytest.raises(InputError) as caught:
        rows_of(RowsSource(rows, columns))
    assert (caught.value.source, caught.value.line) == ("rows", line)
    assert text in caught.value.problem


@pytest.mark.parametrize("rows", ["tasks.csv", {"x": 1}, 5])
def test_what_is_not_rows(rows: Any) -> None:
    with pytest.raises(UsageError, match="rows must be"):
        RowsSource(rows)


# Encoding


def test_encoded_rows() -> None:
    chunk = Chunk(range(2, 4), [[1, None], ["a", "ä"]], "t.csv")
    assert encode_rows(chunk, ("n", "s")) == [b'[1,"a"]', '[null,"ä"]'.encode()]
    assert encode_rows(Chunk([], [(), ()]), ("n", "s")) == []
    assert encode_rows(Chunk([2], [[Path("a")]]), ("p",)) == [b'["a"]']


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (math.nan, "nan has no JSON form: annotate the function's parameter `float`, or give None"),
        ([1, {"a": math.inf}], "there is a nan or inf inside [1, {'a': inf}]"),
        (object, "a value of type type can't be sent"),
        ("a\ud800", "half of a surrogate pair"),
    ],
)
def test_values_that_cannot_be_encoded(value: Any, text: str) -> None:
    with pytest.raises(InputError) as caught:
        encode_rows(Chunk([2, 5], [[None, 0], ["null", value]], "t"), ("n", "v"))
    assert (caught.value.source, caught.value.line, caught.value.column) == ("t", 5, "v")
    assert text in caught.value.problem


# Size


def test_memory_does_not_grow_with_the_file(write: Write) -> None:
    path = write("id,x\n" + "".join(f"{number},{'x' * 100}\n" for number in range(100_000)))
    wide = write("id,x\n" + "".join(f"{number},{'x' * 200_000}\n" for number in range(200)), "wide.csv")
    for file in (path, wide):
        tracemalloc.start()
        for _ in CsvSource(file).chunks():
            pass
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 110 * 2**20 if file is wide else peak < 8 * 2**20
