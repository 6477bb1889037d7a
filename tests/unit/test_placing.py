"""From rows to lanes: what people write, and what becomes of it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtask.errors import InputError, UsageError
from mtask.model import Spec
from mtask.placing import MOST_LANES, Placing, parse_memory, parse_rate, spec_fields
from mtask.requirements import DEFAULT_LANE, Lane, Requirements, find_lane, front_of, parse_size, size_text
from mtask.sources import Chunk

COLUMNS = ("x", "cpus", "memory", "gpus", "tags", "priority")


def a_spec(**fields) -> Spec:
    return Spec(kind="call", target=("m:f",), **fields)


def placed(columns, rows, **fields):
    """The numbers of the rows' lanes, and what the lanes are."""
    placing = Placing(a_spec(**fields), columns)
    chunk = Chunk(range(2, 2 + len(rows)), list(zip(*rows, strict=True)), "t.csv")
    return placing.numbers(chunk), placing.kinds


class TestWritten:
    @pytest.mark.parametrize(
        ("text", "size_bytes"),
        [("8GB", 8 * 10**9), ("512 MiB", 512 << 20), (2.5e9, 2_500_000_000), ("1e9B", None)],
    )
    def test_memory(self, text, size_bytes):
        if size_bytes is None:
            with pytest.raises(ValueError, match="not a size"):
                parse_memory(text)
        else:
            assert parse_memory(text) == size_bytes

    @pytest.mark.parametrize("value", [8, "8", "16000", 64.0, " 8 "])
    def test_memory_without_a_unit(self, value):
        with pytest.raises(ValueError, match="a unit seems to be missing, as in"):
            parse_memory(value)

    @pytest.mark.parametrize(
        "value", ["0", 0, "-1GB", -5, "lots", "8KB", "1" * 400, True, None, [8], math.inf]
    )
    def test_no_memory(self, value):
        with pytest.raises(ValueError):
            parse_memory(value)

    @given(st.integers(10**6, 10**15))
    def test_a_size_that_is_shown_is_nearly_the_same(self, size_bytes):
        assert abs(parse_size(size_text(size_bytes)) - size_bytes) <= 0.006 * size_bytes

    @pytest.mark.parametrize(
        ("text", "per_s"),
        [
            ("10/s", 10),
            ("600/min", 10),
            ("6/m", 0.1),
            ("36/h", 0.01),
            ("864/d", 0.01),
            ("2", 2),
            (2.5, 2.5),
            (".5 / s", 0.5),
        ],
    )
    def test_rate(self, text, per_s):
        assert parse_rate(text) == pytest.approx(per_s)

    @pytest.mark.parametrize(
        "text", ["0", "0/s", "-1", "10/y", "s", "", "1e3", "ten", "1/", True, None, "9" * 400]
    )
    def test_no_rate(self, text):
        with pytest.raises(ValueError, match="rate"):
            parse_rate(text)

    def test_what_means_the_same_comes_out_the_same(self):
        one = {
            "cpus": 4,
            "memory": "8GB",
            "tags": "b,a",
            "only_on": "y x",
            "priority": "high",
            "rate": "60/min",
        }
        other = {
            "cpus": "4.0",
            "memory": 8 * 10**9,
            "tags": ["a", "b", "a"],
            "only_on": ("x", "y"),
            "priority": 1,
            "rate": 1,
        }
        first, second = (a_spec(**spec_fields(each)) for each in (one, other))
        assert first == second
        lanes = [Lane.of(spec.priority, spec.requires, uid="u", rate=spec.rate) for spec in (first, second)]
        assert lanes[0].name == lanes[1].name

    def test_fields_of_spec_stay_as_they_are(self):
        assert spec_fields({"retries": 2, "memory_bytes": 5, "timeout_s": None}) == {
            "retries": 2,
            "memory_bytes": 5,
            "timeout_s": None,
        }
        assert spec_fields({"cpus": None, "memory": None, "tags": None, "rate": None}) == {}

    @pytest.mark.parametrize(
        ("options", "problem"),
        [
            ({"cpus": 0}, "^cpus must be more than 0"),
            ({"cpus": True}, "^cpus: True is not a number of CPUs"),
            ({"cpus": [4]}, "not a number of CPUs"),
            ({"gpus": 1.5}, "^gpus: 1.5 is not a whole number"),
            ({"gpus": -1}, "^gpus must be from 0"),
            ({"tags": 5}, "^tags: 5 is not a list of tags"),
            ({"tags": ["a", 5]}, "not a list of tags"),
            ({"tags": "a<"}, "^tags: 'a<' can't be a tag"),
            ({"priority": "urgent"}, "^priority: 'urgent' is not a priority"),
            ({"priority": 1.5}, "not a priority"),
            ({"max_running": 0}, "^max_running: 0 is not a number of tasks"),
            ({"max_running": "3"}, "^max_running: '3' is not"),
            ({"memory": "1GB", "memory_bytes": 10**9}, "memory and memory_bytes say the same"),
        ],
    )
    def test_wrong(self, options, problem):
        with pytest.raises(ValueError, match=problem):
            spec_fields(options)


class TestRows:
    def test_without_such_columns_all_are_in_the_lane_of_the_spec(self):
        placing = Placing(a_spec(cpus=2.0, priority=1), ["x"])
        assert not placing.by_row
        assert placing.kinds == [(1, Requirements(cpus=2.0))]

    def test_each_row_says_what_it_needs(self):
        rows = [
            (1, "", "", "", "", ""),
            (2, "4", "8GB", "1", "blast, eu", "high"),
            (3, "0.5", " ", None, "!spot", "-9"),
            (4, "4.0", "8000MB", 1, "eu blast", 1),
        ]
        numbers, kinds = placed(COLUMNS, rows)
        assert numbers == [0, 1, 2, 1]
        assert kinds == [
            (0, Requirements()),
            (1, Requirements(cpus=4, memory_bytes=8 * 10**9, gpus=1, tags=("blast", "eu"))),
            (-9, Requirements(cpus=0.5, tags=("!spot",))),
        ]

    def test_an_empty_cell_takes_the_option_and_tags_are_added_to_it(self):
        spec = {"cpus": 2.0, "memory_bytes": 10**9, "tags": ("eu",), "only_on": ("here",), "priority": 1}
        _, kinds = placed(COLUMNS, [(1, "", "", "", "", ""), (2, "1", "", "", "blast", "low")], **spec)
        assert kinds == [
            (1, Requirements(cpus=2, memory_bytes=10**9, tags=("eu",), only_on=("here",))),
            (-1, Requirements(cpus=1, memory_bytes=10**9, tags=("blast", "eu"), only_on=("here",))),
        ]

    def test_what_no_row_asks_for_is_no_lane(self):
        numbers, kinds = placed(("cpus",), [("1",), ("2",)], cpus=64.0)
        assert (numbers, [requires.cpus for _, requires in kinds]) == ([0, 1], [1, 2])

    def test_values_of_a_data_frame(self):
        rows = [(4.0, math.nan, 1.0, None, 1.0), (math.nan, 8e9, math.nan, ["eu", "blast"], math.nan)]
        _, kinds = placed(COLUMNS[1:], rows)
        assert kinds == [
            (1, Requirements(cpus=4, gpus=1)),
            (0, Requirements(memory_bytes=8 * 10**9, tags=("blast", "eu"))),
        ]

    def test_none_is_not_the_tag_none(self):
        numbers, kinds = placed(("tags",), [(None,), ("None",)])
        assert numbers == [0, 1]
        assert kinds[1][1].tags == ("None",)

    @pytest.mark.parametrize(
        ("column", "value", "problem"),
        [
            ("cpus", "four", "'four' is not a number of CPUs"),
            ("cpus", "nan", "cpus must be more than 0"),
            ("cpus", True, "True is not a number"),
            ("cpus", {"n": 1}, "not a number of CPUs"),
            ("memory", "8", "a unit seems to be missing, as in 8GB or 8MB"),
            ("memory", ["8GB"], "is not a size"),
            ("gpus", "1.5", "not a whole number of GPUs"),
            ("gpus", "inf", "more than any machine has"),
            ("tags", "machine learning;", "'learning;' can't be a tag"),
            ("tags", 7, "7 is not a list of tags"),
            ("tags", "!eu", "eu and !eu exclude each other"),
            ("priority", "P1", "'P1' is not a priority"),
        ],
    )
    def test_a_wrong_cell_is_named_with_what_the_column_means(self, column, value, problem):
        with pytest.raises(InputError) as caught:
            placed(("x", column), [(1, None), (2, value)], tags=("eu",))
        assert str(caught.value).startswith(f"t.csv, line 3, column {column!r}: ")
        assert problem in str(caught.value)
        assert (
            f"the column {column!r} says what each task needs: rename it if it means something else"
            in str(caught.value)
        )

    def test_each_kind_is_a_queue_of_its_own_and_there_are_not_too_many(self):
        rows = [(f"{n}MB",) for n in range(1, MOST_LANES + 1)]
        assert placed(("memory",), rows)[0] == list(range(MOST_LANES))
        with pytest.raises(InputError, match=r"line 102: there are more than 100 .*'memory'.* round them up"):
            placed(("memory",), [*rows, ("999MB",)])

    @pytest.mark.parametrize(
        "fields", [{"tags": ("a", "!a")}, {"only_on": ("eu",), "tags": ("!eu",)}], ids=["tags", "only_on"]
    )
    def test_needs_that_exclude_each_other(self, fields):
        with pytest.raises(UsageError, match="exclude each other: no worker could run it"):
            Placing(a_spec(**fields), ["x"])


class TestLanes:
    def test_the_name_is_of_what_they_ask_for(self):
        one, other = (Placing(a_spec(cpus=2.0), ["x"]).lanes(uid) for uid in ("u1", "u2"))
        assert one == other
        assert one[0].name

    def test_who_asks_for_nothing_is_in_the_queue_itself(self):
        assert Placing(a_spec(), ["x"]).lanes("u") == [Lane()]

    def test_a_limit_is_of_one_bag(self):
        names = {
            Placing(a_spec(**fields), ["x"]).lanes(uid)[0].name
            for fields in ({"rate": 2.0}, {"max_running": 2})
            for uid in ("u1", "u2")
        }
        assert len(names) == 4


# -- what was given back --------------------------------------------------------------------------------


def test_each_lane_has_one_in_front_of_it_that_is_found_by_name():
    gpu = Lane.of(2, Requirements(gpus=1))
    for lane in (DEFAULT_LANE, gpu):
        front = front_of(lane)
        assert (front.priority, front.requires, front.front) == (lane.priority, lane.requires, True)
        assert front.name not in {"", DEFAULT_LANE.name, gpu.name}
        assert front_of(front) == front
        assert find_lane(lane.name, [gpu]) == lane
        assert find_lane(front.name, [gpu]) == front
    assert find_lane(gpu.name, []) is find_lane(front_of(gpu).name, []) is None


def test_where_starts_are_counted_there_is_no_other_lane():
    limited = Lane.of(0, Requirements(), uid="uid", max_running=3)
    assert front_of(limited) == limited
    assert find_lane(limited.name, [limited]) == limited
