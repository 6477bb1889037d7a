"""`mtask results`: on the screen, and as files with the parameters joined in."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math

import pytest

import mtask
from mtask.model import Failure, Reason, Result

OWN = [
    "error_type", "error_message", "exit_code", "attempt", "worker", "host", "queued_at", "started_at", "finished_at",
    "wall_s", "cpu_s", "peak_bytes", "stdout", "stderr", "traceback",
]  # fmt: skip
ERROR = Failure(reason=Reason.RAISED, type="ValueError", message="no", traceback="  line 3, in f\n")


def fill(rows, values, *, bag="b", attempts=()):
    """A bag with these results, without a worker; an exception stands for a failed task, None for one that runs."""
    with mtask.connect() as mt:
        handle = mt.submit(rows, run="echo", bag=bag)
        results = []
        for index, value in enumerate(values):
            if value is None:
                continue
            row = {"bag": bag, "index": index, "id": rows[index].get("id"), "wall_s": 0.25, "started_at": 1.5}
            failed = isinstance(value, Exception)
            results.append(Result.failed(**row, error=ERROR) if failed else Result.done(**row, value=value))
        mt.table.record(results)
        mt.table.keep_attempts([Result.failed(bag, at, ERROR, attempt=n) for at, n in attempts])
        return handle.name


def table(text):
    header, *rows = csv.reader(io.StringIO(text))
    return header, [dict(zip(header, row, strict=True)) for row in rows]


@pytest.fixture
def scores(command):
    rows = [{"id": f"r{n}", "x": n} for n in range(4)]
    fill(rows, [{"score": 0.5, "x": 1}, ValueError(), {"score": None, "more": [1, {"a": "ä"}]}, None])
    return command


class TestFile:
    def test_csv_joins_parameters_and_spreads_dictionaries(self, scores):
        code, out, err = scores("results", "b", "-o", "r.csv")
        assert (code, out) == (0, "")
        assert err == "r.csv: 3 rows\n1 task has not ended yet\n"
        header, rows = table(scores.read("r.csv"))
        assert header == ["index", "id", "x", "state", "score", "value.x", "more", *OWN]
        first, second, third = rows
        assert [first[key] for key in ("index", "id", "x", "state", "score", "value.x", "more")] == [
            "0", "r0", "0", "done", "0.5", "1", "",
        ]  # fmt: skip
        assert (second["state"], second["error_type"], second["error_message"]) == (
            "failed",
            "ValueError",
            "no",
        )
        assert (second["score"], second["traceback"]) == ("", "  line 3, in f\n")
        assert (third["score"], third["more"]) == ("", '[1,{"a":"ä"}]')
        assert first["started_at"] == "1970-01-01T00:00:01.500000+00:00"

    def test_csv_gz(self, scores):
        scores("results", "b", "-o", "r.csv.gz")
        assert len(table(gzip.decompress((scores.folder / "r.csv.gz").read_bytes()).decode())[1]) == 3

    @pytest.mark.parametrize("name", ["r.jsonl", "r.jsonl.gz"])
    def test_jsonl(self, scores, name):
        scores("results", "b", "-o", name)
        data = (scores.folder / name).read_bytes()
        lines = [
            json.loads(line) for line in (gzip.decompress(data) if name.endswith("gz") else data).splitlines()
        ]
        assert [line["more"] for line in lines] == [None, None, [1, {"a": "ä"}]]
        assert [line["score"] for line in lines] == [0.5, None, None]
        assert list(lines[0]) == ["index", "id", "x", "state", "score", "value.x", "more", *OWN]

    def test_parquet(self, scores):
        parquet = pytest.importorskip("pyarrow.parquet")
        scores("results", "b", "-o", "r.parquet")
        read = parquet.read_table("r.parquet")
        kinds = {
            name: str(read.schema.field(name).type)
            for name in ("index", "id", "x", "score", "more", "wall_s")
        }
        assert kinds == {
            "index": "int64", "id": "string", "x": "int64", "score": "double", "more": "string", "wall_s": "double",
        }  # fmt: skip
        assert read["more"].to_pylist() == [None, None, '[1,{"a":"ä"}]']
        assert read["state"].to_pylist() == ["done", "failed", "done"]

    def test_parquet_of_mixed_types_becomes_text(self, command):
        parquet = pytest.importorskip("pyarrow.parquet")
        fill([{"x": n} for n in range(5)], [1, "one", 2.5, True, 1 << 70])
        command("results", "b", "-o", "r.parquet")
        assert parquet.read_table("r.parquet")["value"].to_pylist() == [
            "1",
            "one",
            "2.5",
            "true",
            str(1 << 70),
        ]

    def test_parquet_of_whole_and_broken_numbers(self, command):
        parquet = pytest.importorskip("pyarrow.parquet")
        fill([{"x": n} for n in range(3)], [1, 2.5, ValueError()])
        command("results", "b", "-o", "r.parquet")
        assert parquet.read_table("r.parquet")["value"].to_pylist() == [1.0, 2.5, None]

    def test_other_values_stay_whole(self, command):
        fill([{"x": n} for n in range(4)], [{"a": 1}, [1, 2], "text, with a comma", True])
        command("results", "b", "-o", "r.csv")
        assert [row["value"] for row in table(command.read("r.csv"))[1]] == [
            '{"a":1}', "[1,2]", "text, with a comma", "true",
        ]  # fmt: skip

    def test_names_that_collide(self, command):
        rows = [{"index": "mine", "state": "CA", "wall_s": "w", "k": "p"}]
        fill(rows, [{"k": "v", "state": "new", "stdout": "s", "index": 7}])
        command("results", "b", "-o", "r.csv")
        header, (row,) = table(command.read("r.csv"))
        assert len(set(header)) == len(header)
        expected = {
            "mtask.index": "0", "index": "mine", "state": "CA", "wall_s": "w", "k": "p",
            "mtask.state": "done", "value.k": "v", "value.state": "new", "value.index": "7",
            "stdout": "s", "mtask.stdout": "", "mtask.wall_s": "0.25",
        }  # fmt: skip
        assert {name: row[name] for name in expected} == expected

    def test_what_csv_must_quote(self, command):
        text = 'a "b", c\nd\r\n\'e'
        fill([{"x": text}], [{"y": text}])
        command("results", "b", "-o", "r.csv")
        with (command.folder / "r.csv").open(newline="", encoding="utf-8") as file:
            (row,) = csv.DictReader(file)
        assert (row["x"], row["y"]) == (text, text)

    def test_attempts(self, scores):
        with mtask.connect() as mt:
            mt.table.keep_attempts([Result.failed("b", 2, ERROR, attempt=n) for n in (1, 2)])
        assert scores("results", "b", "--attempts", "-o", "r.csv").err == "r.csv: 2 rows\n"
        rows = table(scores.read("r.csv"))[1]
        assert [(row["index"], row["x"], row["attempt"]) for row in rows] == [
            ("2", "2", "1"),
            ("2", "2", "2"),
        ]

    def test_an_older_file_is_replaced_as_a_whole(self, scores):
        scores.write("r.csv", "old")
        scores("results", "b", "--limit", "1", "-o", "r.csv")
        assert len(table(scores.read("r.csv"))[1]) == 1
        assert not list(scores.folder.glob("*.part"))

    def test_of_a_bag_without_results(self, command):
        fill([{"x": 1}], [None])
        assert command("results", "b", "-o", "r.csv").err == "r.csv: 0 rows\n1 task has not ended yet\n"
        assert table(command.read("r.csv")) == (["index", "x", "state", "value", *OWN], [])

    def test_a_million_would_stream(self, command):
        fill([{"x": n} for n in range(25_000)], list(range(25_000)))
        command("results", "b", "-o", "r.jsonl")
        values = [json.loads(line)["value"] for line in command.read("r.jsonl").splitlines()]
        assert values == list(range(25_000))


CHOICES = [
    ((), [0, 1, 2]),
    (("--failed",), [1]),
    (("--state", "done"), [0, 2]),
    (("--state", "done", "--state", "failed"), [0, 1, 2]),
    (("--state", "expired"), []),
    (("--limit", "1"), [0]),
    (("--state", "done", "--limit", "1"), [0]),
    (("--limit", "0"), []),
]


@pytest.mark.parametrize(("args", "indexes"), CHOICES)
def test_chosen(scores, args, indexes):
    scores("results", "b", *args, "-o", "r.jsonl")
    assert [json.loads(line)["index"] for line in scores.read("r.jsonl").splitlines()] == indexes
    shown = scores("results", "b", *args).out.splitlines()[1:]
    assert [int(line.split()[0]) for line in shown] == indexes


class TestScreen:
    def test_columns_without_a_value_and_machinery_are_left_out(self, scores):
        header = scores("results", "b").out.splitlines()[0].split()
        assert header == [
            "index", "id", "x", "state", "score", "value.x", "more", "error_type", "error_message", "attempt", "wall_s",
        ]  # fmt: skip

    def test_a_narrow_terminal_gets_whole_columns(self, scores, monkeypatch):
        monkeypatch.setenv("COLUMNS", "60")
        _, out, err = scores("results", "b")
        assert max(map(len, out.splitlines())) <= 60
        assert "…" not in out
        assert out.splitlines()[0].split()[0] == "index"
        assert "state" in out
        assert "no room for wall_s, attempt" in err
        assert "-o FILE writes all columns" in err

    def test_the_first_50(self, command):
        fill([{"x": n} for n in range(60)], list(range(60)))
        _, out, err = command("results", "b")
        assert (len(out.splitlines()), "the first 50; --limit N shows more" in err) == (51, True)
        assert len(command("results", "b", "--limit", "55").out.splitlines()) == 56

    def test_long_and_odd_texts_stay_on_their_line(self, command):
        fill([{"x": "[red]a\nb" + "c" * 100}], ["\x1b[31mred"])
        lines = command("results", "b").out.splitlines()
        assert len(lines) == 2
        assert "[red]a bccc" in lines[1]
        assert "…" in lines[1]
        assert "\x1b" not in lines[1]

    def test_nothing_yet(self, command):
        fill([{"x": 1}], [None])
        assert command("results", "b").out == "no results\n"


def test_to_pandas(scores):
    pandas = pytest.importorskip("pandas")
    with mtask.connect() as mt:
        frame = mt.bag("b").to_pandas()
    assert list(frame["x"]) == [0, 1, 2]
    assert frame["score"][0] == 0.5
    assert math.isnan(frame["score"][1])
    assert frame["started_at"][0] == pandas.Timestamp("1970-01-01T00:00:01.5Z")
    assert frame["more"][2] == [1, {"a": "ä"}]
