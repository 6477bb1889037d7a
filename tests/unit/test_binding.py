"""Functions: found, checked against the columns, and called with what the file says."""

from __future__ import annotations

import asyncio
import collections.abc
import dataclasses
import datetime
import enum
import functools
import math
import os
import subprocess
import sys
import typing
import uuid
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, NewType, Optional, TypedDict, Union

import msgspec
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtask.binding import Binder, resolve, user_traceback
from mtask.errors import InputError, UsageError
from mtask.sources import Chunk, RowsSource, encode_rows

# Finding functions


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def refused(target: str) -> str:
    with pytest.raises(UsageError) as caught:
        resolve(target)
    return str(caught.value)


CODE = """
import helper_of_tools
def align(reads): return "aligned " + reads
def helped(): return helper_of_tools.VALUE
class Model:
    rate = 0.5
    @staticmethod
    def predict(x): return x
    def fit(self, x): return x
"""


def test_functions_of_modules_and_files(here: Path) -> None:
    (here / "pack").mkdir()
    for folder in (here, here / "pack"):
        (folder / "tools_x.py").write_text(CODE)
        (folder / "helper_of_tools.py").write_text("VALUE = 5")
    assert resolve("math:sqrt") is math.sqrt
    assert resolve("tools_x:align")("a") == "aligned a"
    assert sys.path[0] == str(here), "the current folder"
    assert resolve("pack.tools_x:align")("a") == "aligned a"
    assert resolve("tools_x:Model.predict")(3) == 3
    for place in ("pack/tools_x.py", str(here / "pack" / "tools_x.py")):
        assert resolve(f"{place}:helped")() == 5, "what lies beside a file can be imported"
    assert resolve("tools_x.py:align") is resolve("tools_x.py:align")
    (here / "json.py").write_text("def run(): return 'mine'")
    assert resolve("json.py:run")() == "mine"
    assert sys.modules["json"].__file__ != str(here / "json.py")


def test_a_class_of_a_file_can_be_found_again(here: Path) -> None:
    (here / "points_x.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Point:\n    x: int\ndef run(p: Point): return p.x\n"
    )
    binder = Binder(resolve("points_x.py:run"), ("p",), textual=True)
    assert trip(binder, '{"x": 3}') == 3


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("toolsx", "doesn't name a function; write module:function or file.py:function"),
        ("tools_y.align", "did you mean tools_y:align?"),
        ("tools_y:", "doesn't name a function"),
        (":align", "doesn't name a function"),
        ("tool_y:align", "no module 'tool_y'; did you mean tools_y? Looked in:\n    "),
        ("tools_y.sub:align", "no module 'tools_y.sub' (tools_y is a module, not a package). Looked in:"),
        ("tools_y.py:algin", "tools_y.py has no function 'algin'; did you mean align? It defines "),
        ("tools_y:zzzz", "tools_y has no function 'zzzz'. It defines Model, align, helped"),
        ("tools_y:Model.predit", "tools_y:Model has no function 'predit'; did you mean predict?"),
        ("tools_y:Model.rate", "tools_y:Model.rate is not a function, but 0.5 (float)"),
        ("tool_y.py:align", "no file 'tool_y.py'; did you mean tools_y.py?"),
        ("sub/none.py:align", "no file 'sub/none.py'"),
    ],
)
def test_functions_that_are_not_there(here: Path, target: str, text: str) -> None:
    (here / "tools_y.py").write_text(CODE)
    (here / "helper_of_tools.py").write_text("VALUE = 5")
    assert text in refused(target)


def test_the_search_path_is_shown_an_entry_a_line(here: Path) -> None:
    assert refused("zzzz_none:f").splitlines()[1] == f"    {here}"
    assert f"    {os.path.dirname(os.__file__)}" in refused("zzzz_none:f").splitlines()


@pytest.mark.parametrize("target", ["broken_x:f", "broken_x.py:f"])
@pytest.mark.parametrize(
    ("code", "texts"),
    [
        (
            "x = 1\n1 / 0\n",
            ['broken_x.py", line 2, in <module>', "1 / 0", "ZeroDivisionError: division by zero"],
        ),
        (
            "import no_such_thing_x\n",
            ["ModuleNotFoundError: No module named 'no_such_thing_x'", "Is 'no_such_thing_x' installed"],
        ),
        ("def f(:\n", ["SyntaxError: invalid syntax", "line 1"]),
        ("import sys; sys.exit(3)\n", ["SystemExit: 3", '__name__ == "__main__"']),
    ],
)
def test_errors_while_importing(here: Path, target: str, code: str, texts: list[str]) -> None:
    (here / "broken_x.py").write_text(code)
    problem = refused(target)
    assert problem.startswith(target.partition(":")[0] + " can't be imported: ")
    for text in texts:
        assert text in problem
    assert "importlib" not in problem
    assert "binding.py" not in problem
    assert "broken_x" not in sys.modules


def test_the_current_folder_is_not_put_before_a_path_that_has_it(here: Path) -> None:
    sys.path.append(str(here))
    resolve("math:sqrt")
    assert sys.path.count(str(here)) == 1


def test_user_traceback_of_an_error_without_frames() -> None:
    assert user_traceback(ValueError("x")) == "ValueError: x\n"


# The columns and the signature


def shape(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, kwargs


def f_two(a, b):
    return shape(a, b)  # type: ignore[no-untyped-def]


def f_default(a, b=5, c=6):
    return shape(a, b, c)  # type: ignore[no-untyped-def]


def f_id(id):
    return shape(id)  # type: ignore[no-untyped-def]


def f_rest(a, **rest):
    return shape(a, **rest)  # type: ignore[no-untyped-def]


def f_keyword(a, *, k, m=1):
    return shape(a, k=k, m=m)  # type: ignore[no-untyped-def]


def f_positional(a, b=2, c=3, /, d=4):
    return shape(a, b, c, d)  # type: ignore[no-untyped-def]


def f_star(a, *more, k=0):
    return shape(a, *more, k=k)  # type: ignore[no-untyped-def]


def f_none():
    return shape()  # type: ignore[no-untyped-def]


@pytest.mark.parametrize(
    ("function", "columns", "row", "expected"),
    [
        (f_two, "a b", [1, 2], shape(1, 2)),
        (f_two, "b a", [1, 2], shape(2, 1)),
        (f_two, "id b a", [0, 1, 2], shape(2, 1)),
        (f_default, "a", [1], shape(1, 5, 6)),
        (f_default, "c a", [1, 2], shape(2, 5, 1)),
        (f_default, "id a", [1, 2], shape(2, 5, 6)),
        (f_id, "id", [1], shape(1)),
        (f_rest, "a x id", [1, 2, 3], shape(1, x=2, id=3)),
        (f_rest, "a", [1], shape(1)),
        (f_keyword, "k a", [1, 2], shape(2, k=1, m=1)),
        (f_positional, "a c", [1, 2], shape(1, 2, 2, 4)),
        (f_positional, "a d", [1, 2], shape(1, 2, 3, 2)),
        (f_positional, "d c b a", [1, 2, 3, 4], shape(4, 3, 2, 1)),
        (f_star, "k a", [1, 2], shape(2, k=1)),
        (f_none, "id", [1], shape()),
        (functools.partial(f_two, 1), "b", [2], shape(1, 2)),
        (functools.partial(f_two, b=1), "a", [2], shape(2, 1)),
        (math.sqrt, "x", [4], 2.0),
    ],
)
def test_calls(function: Callable[..., Any], columns: str, row: list[Any], expected: Any) -> None:
    binder = Binder(function, columns.split())
    before = row.copy()
    assert binder.caller()(row) == expected
    assert binder.call_with(row) == expected
    assert row == before


def test_other_things_that_can_be_called() -> None:
    class Caller:
        def __call__(self, n: int) -> int:
            return n + 1

        def method(self, n: int) -> int:
            return n + 2

        @classmethod
        def made(cls, n: int) -> int:
            return n + 3

    for function, expected in [(Caller(), 6), (Caller().method, 7), (Caller.made, 8)]:
        assert trip(Binder(function, ("n",), textual=True), "5") == expected
    assert trip(Binder(Place, ("name", "size"), textual=True), "a", "5") == Place("a", 5)

    @functools.wraps(f_two)
    def wrapper(*args: Any) -> Any:
        return f_two(*args)

    assert Binder(wrapper, ("a", "b")).call_with([1, 2]) == shape(1, 2)


def test_async_functions_are_run_to_their_end() -> None:
    async def later(n: int) -> int:
        await asyncio.sleep(0)
        return n + 1

    class Later:
        async def __call__(self, n: int) -> int:
            return n + 1

    for function in (later, Later(), functools.partial(later)):
        assert Binder(function, ("n",)).call_with([1]) == 2


@pytest.mark.parametrize(
    ("function", "columns", "texts"),
    [
        (f_two, "a", ["no column for the parameter 'b'", "the function:  f_two(a, b)", "the columns:   a"]),
        (f_two, "a b c d", ["no parameter for the columns 'c', 'd'"]),
        (f_two, "a B", ["no column for the parameter 'b'; rename the column 'B'?"]),
        (f_two, "a, b", ["no column for the parameter 'a'; rename the column 'a,'?"]),
        (f_id, "x", ["no column for the parameter 'id'", "no parameter for the column 'x'"]),
        (f_none, "x", ["no parameter for the column 'x'"]),
        (f_star, "a b", ["no parameter for the column 'b'"]),
        (Path.exists, "x", ["a method needs an object"]),
        (print, "x", ["no parameter for the column 'x'"]),
        (dict, "x", ["has no signature; call it from a function of your own"]),
    ],
)
def test_columns_that_do_not_fit(function: Callable[..., Any], columns: str, texts: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        Binder(function, columns.split(" "))
    for text in texts:
        assert text in str(caught.value)


# Values, from text and back


class Color(enum.Enum):
    RED = "r"
    BLUE = 2
    PAIR = (1, 2)


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


@dataclasses.dataclass
class Place:
    name: str
    size: int = 0
    path: Path | None = None


class Options(TypedDict):
    rate: float


class Item(msgspec.Struct):
    name: str
    tags: list[str] = []


class Name(str):
    pass


UserId = NewType("UserId", int)


def trip(binder: Binder, *row: Any) -> Any:
    """One row from the file through JSON to the function's value."""
    chunk = binder.wire(Chunk(range(2, 3), [[value] for value in row], "t.csv"))
    (encoded,) = encode_rows(chunk, binder.columns)
    return binder.caller()(msgspec.json.decode(encoded))


def binder_of(annotation: Any, *, textual: bool = True, default: Any = dataclasses.MISSING) -> Binder:
    def function(x: Any) -> Any:
        return x

    if default is not dataclasses.MISSING:
        function.__defaults__ = (default,)
    function.__annotations__ = {"x": annotation}
    return Binder(function, ("x",), textual)


DAY = datetime.date(2026, 1, 31)
NOON = datetime.datetime(2026, 1, 31, 12, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [
        (int, "5", 5),
        (int, " -7 ", -7),
        (int, str(2**80), 2**80),
        (float, "5", 5.0),
        (float, "1e-3", 0.001),
        (float, "-Infinity", -math.inf),
        (float, "inf", math.inf),
        *[(bool, word, True) for word in ("true", "True", "TRUE", "yes", "1", "t", "T", " tRuE ")],
        *[(bool, word, False) for word in ("false", "FALSE", "no", "No", "0", "f")],
        (str, "", ""),
        (str, "007", "007"),
        (Any, "5", "5"),
        (object, "5", "5"),
        ("NoSuchType", "5", "5"),
        ("int", "5", 5),
        (Annotated[int, "meters"], "5", 5),
        (Annotated[list[Annotated[int, msgspec.Meta(gt=0)]], "x"], "[5]", [5]),
        (UserId, "5", 5),
        (Name, "a", Name("a")),
        (Path, "a/b", Path("a/b")),
        (PurePosixPath, "a", PurePosixPath("a")),
        (os.PathLike, "a", Path("a")),
        (Union[str, os.PathLike], "a", "a"),  # noqa: UP007
        (datetime.date, "2026-01-31", DAY),
        (datetime.datetime, "2026-01-31T12:00Z", NOON),
        (datetime.datetime, "2026-01-31", datetime.datetime(2026, 1, 31)),
        (datetime.time, "12:30", datetime.time(12, 30)),
        (datetime.timedelta, "P1DT2H", datetime.timedelta(days=1, hours=2)),
        (Decimal, "1.10", Decimal("1.10")),
        (uuid.UUID, str(uuid.UUID(int=5)), uuid.UUID(int=5)),
        (Literal["a", 2, None, True], "2", 2),
        (Literal["a", 2, None, True], "a", "a"),
        (Literal["a", 2, None, True], "", None),
        (Literal["a", 2, None, True], "true", True),
        (Literal[Color.RED], "RED", Color.RED),
        (Color, "RED", Color.RED),
        (Color, "r", Color.RED),
        (Color, "2", Color.BLUE),
        (Color, "PAIR", Color.PAIR),
        (Level, "2", Level.HIGH),
        (Optional[int], "", None),  # noqa: UP045
        (int | None, "5", 5),
        (Path | None, "a", Path("a")),
        (Path | None, "", None),
        (float | None, "nan", math.nan),
        (int | float, "5", 5),
        (int | float, "5.5", 5.5),
        (int | float, "inf", math.inf),
        (str | int, "5", 5),
        (str | int | None, "x", "x"),
        (float | str, "inf", math.inf),
        (float | str, "x", "x"),
        (datetime.date | int | str, "2026-01-31", DAY),
        (datetime.date | int | str, "5", 5),
        (int | np.ndarray, "5", 5),
        (list, '[1, "a"]', [1, "a"]),
        (list[float], "[1, 2.5]", [1.0, 2.5]),
        (tuple[int, str], '[1, "a"]', (1, "a")),
        (set[int], "[3, 1]", {1, 3}),
        (dict[str, int], '{"a": 1}', {"a": 1}),
        (dict[int, Path], '{"1": "a"}', {1: Path("a")}),
        (dict[str, Any], '{"a": null}', {"a": None}),
        (collections.abc.Sequence[int], "[1]", [1]),
        (list[int] | str, "[1]", [1]),
        (list[int] | str, "x", "x"),
        (list[int] | set[str], '["a"]', {"a"}),
        (list[Decimal], "[1.10]", [Decimal("1.10")]),
        (list[Level], "[2]", [Level.HIGH]),
        (Place, '{"name": "a", "path": "p"}', Place("a", 0, Path("p"))),
        (Options, '{"rate": 1}', {"rate": 1.0}),
        (Item, '{"name": "a", "tags": ["b"]}', Item("a", ["b"])),
        (np.float64, "0.5", np.float64(0.5)),
        (np.int64, "5", np.int64(5)),
        (pd.Timestamp, "2026-01-31", pd.Timestamp("2026-01-31")),
        (typing.Final[int], "5", 5),
        (typing.TypeVar("T", bound=int), "5", 5),
    ],
    ids=repr,
)
def test_text_becomes_what_the_annotation_says(annotation: Any, text: str, value: Any) -> None:
    result = trip(binder_of(annotation), text)
    assert type(result) is type(value)
    assert result == value or (math.isnan(value) and math.isnan(result))


@pytest.mark.parametrize(
    ("annotation", "text", "problem"),
    [
        (int, "abc", "expected an integer, got 'abc'"),
        (int, "5.0", "expected an integer, got '5.0'"),
        (int, "1_000", "expected an integer, got '1_000'"),
        (int, "", "expected an integer, got ''; annotate the parameter `… | None` if there may be nothing"),
        (int, "x" * 100, f"expected an integer, got '{'x' * 60}'…"),
        (float, "abc", "expected a number, got 'abc'"),
        (float, "1,5", "expected a number, got '1,5'; write a decimal point, not a comma"),
        (float, "1e400", "expected a number, got '1e400', which is too large"),
        (bool, "2", "expected true or false, got '2'"),
        (Path, "", "expected a path, got ''"),
        (datetime.date, "31.1.2026", "expected a date like 2026-01-31, got '31.1.2026'"),
        (datetime.date, "2026-01-31T12:00", "expected a date like"),
        (datetime.datetime, "noon", "expected a date and time like 2026-01-31T23:59:00, got 'noon'"),
        (Decimal, "x", "expected a decimal number, got 'x'"),
        (uuid.UUID, "x", "expected a UUID, got 'x'"),
        (Literal["a", 2], "b", "expected one of 'a', 2, got 'b'"),
        (Color, "GREEN", "expected one of RED, BLUE, PAIR (Color), got 'GREEN'"),
        (int | None, "x", "expected an integer or nothing, got 'x'"),
        (int | datetime.date, "x", "expected an integer or a date like 2026-01-31, got 'x'"),
        (
            list[int],
            '[1, "a"]',
            "expected a JSON array (list[int]), got '[1, \"a\"]': Expected `int`, got `str`",
        ),
        (list[int], "1;2", "expected a JSON array (list[int]), got '1;2': "),
        (Place, "{}", "expected a JSON object (Place), got '{}': Object missing required field `name`"),
        (datetime.timedelta, "x", "expected a duration like P1DT2H, got 'x'"),
        (list[float], "[NaN]", "JSON is malformed"),
    ],
)
def test_text_that_is_something_else(annotation: Any, text: str, problem: str) -> None:
    good = {int: "5", float: "1", bool: "1", Path: "a"}.get(annotation)
    column = [good, good, text] if good else [text]
    binder = binder_of(annotation)
    with pytest.raises(InputError) as caught:
        binder.wire(Chunk([2, 5, 9][: len(column)], [column], "t.csv"))
    assert (caught.value.source, caught.value.column) == ("t.csv", "x")
    assert caught.value.line == (9 if good else 2)
    assert problem in caught.value.problem


@pytest.mark.parametrize(
    "annotation", [np.ndarray, pd.DataFrame, list[np.ndarray], Callable[[], int], bytes, complex, type]
)
def test_annotations_that_no_file_can_hold(annotation: Any) -> None:
    with pytest.raises(UsageError) as caught:
        binder_of(annotation)
    assert "the parameter 'x' can't come from a file" in str(caught.value)


def test_a_default_of_none_lets_a_field_be_empty() -> None:
    assert trip(binder_of(int, default=None), "") is None
    assert trip(binder_of(int, default=None), "5") == 5
    with pytest.raises(InputError):
        trip(binder_of(int, default=3), "")


def test_annotated_keyword_arguments() -> None:
    def function(a: str, **rest: int) -> Any:
        return shape(a, **rest)

    assert trip(Binder(function, ("a", "b", "c"), textual=True), "1", "2", "3") == shape("1", b=2, c=3)


def test_an_id_that_the_function_does_not_take_stays_as_it_is() -> None:
    chunk = Binder(f_none, ("id",), textual=True).wire(Chunk([2], [("007",)]))
    assert list(chunk.columns[0]) == ["007"]


# Values, from JSON lines, Parquet and Python


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        (int, 5, 5),
        (int, np.int64(5), 5),
        (float, 5, 5.0),
        (float, math.nan, math.nan),
        (float, np.float32(0.5), 0.5),
        (bool, True, True),
        (bool, np.bool_(True), True),
        (str, "a", "a"),
        (str, np.str_("a"), "a"),
        (Any, {"a": [1, None]}, {"a": [1, None]}),
        (Any, 2**80, 2**80),
        (Path, Path("a"), Path("a")),
        (Path, "a", Path("a")),
        (datetime.date, DAY, DAY),
        (datetime.date, "2026-01-31", DAY),
        (datetime.datetime, NOON, NOON),
        (Decimal, Decimal("1.10"), Decimal("1.10")),
        (Decimal, 1.1, Decimal("1.1")),
        (uuid.UUID, uuid.UUID(int=5), uuid.UUID(int=5)),
        (Literal["a", 1], 1, 1),
        (Color, Color.PAIR, Color.PAIR),
        (Color, "RED", Color.RED),
        (Color, "r", Color.RED),
        (Color, 2, Color.BLUE),
        (int | None, None, None),
        (float | None, math.inf, math.inf),
        (float | str, "inf", "inf"),
        (float | str, math.inf, math.inf),
        (int | list[int], [1], [1]),
        (list[float], [1, 2.5], [1.0, 2.5]),
        (tuple[int, ...], (1, 2), (1, 2)),
        (list[float], np.array([1, 2.5]), [1.0, 2.5]),
        (list[Place], [Place("a")], [Place("a")]),
        (list[Level], [Level.HIGH], [Level.HIGH]),
        (set[str], {"a"}, {"a"}),
        (dict[int, float], {1: 2}, {1: 2.0}),
        (dict[str, Path], {"a": Path("p")}, {"a": Path("p")}),
        (Place, Place("a", 1, Path("p")), Place("a", 1, Path("p"))),
        (Place, {"name": "a", "size": 1}, Place("a", 1)),
        (Item, Item("a"), Item("a")),
        (datetime.timedelta, datetime.timedelta(seconds=1.5), datetime.timedelta(seconds=1.5)),
    ],
    ids=repr,
)
def test_values_are_checked_and_come_back(annotation: Any, value: Any, expected: Any) -> None:
    result = trip(binder_of(annotation, textual=False), value)
    assert type(result) is type(expected)
    assert result == expected or (math.isnan(expected) and math.isnan(result))


@pytest.mark.parametrize(
    ("annotation", "value", "problem"),
    [
        (int, "5", "expected an integer, got '5'"),
        (int, True, "expected an integer, got True"),
        (int, 5.0, "expected an integer, got 5.0"),
        (int, None, "expected an integer, got None; annotate the parameter `… | None`"),
        (float, "5", "expected a number, got '5'"),
        (float, False, "expected a number, got False"),
        (float, 10**400, "which is too large"),
        (bool, 1, "expected true or false, got 1"),
        (str, 5, "expected text, got 5"),
        (Path, 5, "expected a path, got 5"),
        (datetime.date, NOON, "expected a date like"),
        (Decimal, True, "expected a decimal number"),
        (Literal[1], True, "expected one of 1, got True"),
        (Color, "x", "expected one of RED, BLUE, PAIR (Color), got 'x'"),
        (list[int], ["a"], "Expected `int`, got `str` - at `$[0]`"),
        (Place, Place("a", "x"), "Expected `int`, got `str`"),  # type: ignore[arg-type]
        (Place, 5, "expected a JSON object (Place), got 5"),
        (Any, math.nan, "annotate the function's parameter `float`, or give None"),
        (list[float], [math.inf], "there is a nan or inf inside [inf]"),
        (Any, object, "a value of type type can't be sent"),
    ],
    ids=repr,
)
def test_values_that_are_something_else(annotation: Any, value: Any, problem: str) -> None:
    with pytest.raises(InputError) as caught:
        trip(binder_of(annotation, textual=False), value)
    assert (caught.value.source, caught.value.line, caught.value.column) == ("t.csv", 2, "x")
    assert problem in caught.value.problem


VALUES: list[tuple[Any, st.SearchStrategy[Any], Callable[[Any], str]]] = [
    (int, st.integers(), str),
    (float, st.floats(), repr),
    (bool, st.booleans(), str),
    (str, st.text(), str),
    (
        datetime.datetime,
        st.datetimes(timezones=st.none() | st.just(datetime.UTC)).map(lambda when: when.replace(fold=0)),
        str,
    ),
    (datetime.date, st.dates(), str),
    (Decimal, st.decimals(allow_nan=False), str),
    (Color, st.sampled_from(Color), lambda member: str(member.name)),
    (float | None, st.none() | st.floats(), lambda value: "" if value is None else repr(value)),
    (list[int], st.lists(st.integers()), lambda value: msgspec.json.encode(value).decode()),
    (
        dict[str, float],
        st.dictionaries(st.text(), st.floats(allow_nan=False, allow_infinity=False)),
        lambda value: msgspec.json.encode(value).decode(),
    ),
]


@settings(deadline=None)
@given(st.data())
def test_typed_values_come_back_the_same(data: st.DataObject) -> None:
    """From text and from values, in columns of many rows, the function gets what was written."""
    annotation, strategy, written = data.draw(st.sampled_from(VALUES))
    values = data.draw(st.lists(strategy, min_size=1, max_size=20))
    for textual in (True, False):
        binder = binder_of(annotation, textual=textual)
        column = [written(value) for value in values] if textual else values
        chunk = binder.wire(Chunk(range(2, 2 + len(values)), [column], "t"))
        rows = encode_rows(chunk, ("x",))
        call = binder.caller()
        results = [call(msgspec.json.decode(row)) for row in rows]
        assert list(map(repr, results)) == list(map(repr, values)), "repr tells nan, -0.0 and types apart"


@pytest.mark.parametrize("annotation", ["set[str]", "dict[str, set[str]]", "Any"])
def test_sets_go_over_the_wire_in_one_order(annotation: str) -> None:
    """Else the same submit, run again, would look like other tasks."""
    value = "{'k': set('abcdefgh')}" if "dict" in annotation else "set('abcdefgh')"
    code = (
        "from typing import Any\n"
        "from mtask.binding import Binder\n"
        "from mtask.sources import Chunk, encode_rows\n"
        f"def function(x: {annotation}): ...\n"
        "b = Binder(function, ('x',), False)\n"
        f"print(encode_rows(b.wire(Chunk([1], [[{value}]])), ('x',)))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.getcwd()},
            capture_output=True,
            check=True,
        ).stdout
        for seed in "123"
    }
    assert len(outputs) == 1


def test_rows_of_a_data_frame() -> None:
    def function(n: int, x: float, s: str | None) -> Any:
        return n, x, s

    frame = pd.DataFrame({"n": [1, 2], "x": [0.5, None], "s": ["a", None]})
    binder = Binder(function, tuple(frame.columns))
    rows = [
        row for chunk in RowsSource(frame).chunks() for row in encode_rows(binder.wire(chunk), binder.columns)
    ]
    assert rows == [b'[1,0.5,"a"]', b'[2,"nan",null]']
    assert repr(binder.call_with(msgspec.json.decode(rows[1]))) == "(2, nan, None)"
