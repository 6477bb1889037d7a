"""Names and URLs of inputs and outputs, and what `submit` refuses of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtask.errors import InputError, UsageError
from mtask.model import STAGED_VERSION, Bag, Block, Message
from mtask.sources import RowsSource
from mtask.spec import Spec
from mtask.staging import Staging, StagingCheck, file_name, staged_columns
from mtask.submitting import Prepared, prepare
from mtask.template import text_of
from mtask.urls import shown

COLUMNS = ("id", "reads", "sample")
NAMES = st.from_regex(r"[a-z][a-z0-9]{0,8}", fullmatch=True).filter(
    lambda name: name not in ("id", "command", "cpus", "gpus", "memory", "tags", "priority")
)
LITERALS = st.text(st.characters(exclude_characters="{}\0", exclude_categories=["Cs"]), max_size=10)
VALUES = st.one_of(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
    st.integers(),
    st.none(),
    st.booleans(),
)


def staging(columns: Sequence[str] = COLUMNS, **fields: Any) -> Staging:
    return Staging(Spec(kind="shell", target=("x",), **fields), columns)


@given(
    st.lists(st.tuples(LITERALS, st.sampled_from(COLUMNS)), max_size=4),
    st.tuples(VALUES, VALUES, VALUES),
    LITERALS,
)
def test_a_url_is_its_text_with_the_values_of_the_row(
    pieces: list[tuple[str, str]], row: tuple[Any, ...], last: str
) -> None:
    template = "s3://b/" + "".join(f"{literal}{{{column}}}" for literal, column in pieces) + last
    values = dict(zip(COLUMNS, row, strict=True))
    expected = "s3://b/" + "".join(literal + text_of(values[column]) for literal, column in pieces) + last
    assert staging(inputs={"db": template}).urls(row)[0] == {"db": expected}


@given(LITERALS, st.tuples(VALUES, VALUES, VALUES))
def test_braces_can_be_written(text: str, row: tuple[Any, ...]) -> None:
    assert staging(outputs={"x": f"s3://b/{{{{{text}}}}}"}).urls(row)[1] == {"x": f"s3://b/{{{text}}}"}


@given(
    st.sets(NAMES, min_size=1, max_size=4),
    st.sets(NAMES, max_size=4),
    st.lists(VALUES, min_size=3, max_size=3),
)
def test_a_filled_row_has_a_path_at_each_name_and_the_other_values_as_they_were(
    ins: set[str], outs: set[str], row: list[Any]
) -> None:
    outs -= ins
    made = staging(inputs=dict.fromkeys(ins, "s3://b/i"), outputs=dict.fromkeys(outs, "s3://b/{id}"))
    paths = {name: f"/{name}" for name in ins | outs}
    filled = dict(zip(made.columns, made.filled(row, paths), strict=True))
    assert filled == dict(zip(COLUMNS, row, strict=True)) | paths


def test_a_name_may_stand_in_the_place_of_a_column_whose_value_is_its_url() -> None:
    made = staging(inputs={"reads": "{reads}"})
    assert made.columns == COLUMNS
    assert made.urls(["1", "s3://b/r.fa", "x"])[0] == {"reads": "s3://b/r.fa"}
    assert made.filled(["1", "s3://b/r.fa", "x"], {"reads": "/r.fa"}) == ["1", "/r.fa", "x"]


def test_paths_are_made_absolute_and_urls_stay_as_they_are() -> None:
    made = staging(inputs={"a": "data/{id}", "f": "folder/"}, outputs={"b": "/out/../x"})
    assert made.urls(["1", "", ""]) == (
        {"a": f"{os.getcwd()}/data/1", "f": f"{os.getcwd()}/folder/"},
        {"b": "/x"},
    )


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("s3://bucket/a/b.fa.gz", "b.fa.gz"),
        ("s3://bucket/blast/", "blast"),
        ("https://host/x/nt.fa?token=1#top", "nt.fa"),
        ("https://host", "file"),
        ("/data/q?.fa", "q?.fa"),
        ("s3://bucket", "bucket"),
        ("s3://bucket/..", "file"),
        ("/data/" + "é" * 300, "é" * 100),
    ],
)
def test_the_file_is_called_as_in_its_store(url: str, name: str) -> None:
    assert file_name(url) == name


@pytest.mark.parametrize(
    "name", ["id", "command", "cpus", "PATH", "LD_PRELOAD", "MTASK_BAG", "a-b", "1a", "", "UID"]
)
def test_a_name_that_means_something_else_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="--in"):
        staged_columns((), {name: "s3://b/x"}, {})


def test_an_input_and_an_output_have_different_names() -> None:
    with pytest.raises(UsageError, match="'db' is the name of an input and of an output"):
        staged_columns((), {"db": "s3://b/x"}, {"db": "s3://b/y"})


def accepted(rows: list[dict[str, Any]], **fields: Any) -> Prepared:
    prepared = prepare(RowsSource(rows), Spec(**({"kind": "run", "target": ("x",)} | fields)))
    prepared.spool.close()
    return prepared


def refused(rows: list[dict[str, Any]], **fields: Any) -> str:
    source = RowsSource(rows)
    with pytest.raises(UsageError) as caught:
        prepare(source, Spec(kind="shell", target=("x",), **fields))
    return str(caught.value)


ROWS = [{"id": "1", "reads": "/a"}, {"id": "2", "reads": "/b"}]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"inputs": {"db": "{nope}"}}, "--in db: there is no column 'nope'"),
        ({"inputs": {"db": "{read}"}}, "did you mean {reads}?"),
        ({"outputs": {"x": "s3://b/{id"}}, "--out x: this { is never closed"),
        ({"outputs": {"x": "https://host/{id}"}}, "appears whole or not at all"),
        ({"outputs": {"x": "sftp://host/{id}"}}, "appears whole or not at all"),
        ({"outputs": {"x": "/out/{id}/"}}, "line 1, column 'id': --out x: /out/1/ is a folder"),
        ({"outputs": {"x": "/out"}}, "line 2: --out x: another output goes to /out, too"),
        ({"outputs": {"x": "/out/{id}", "y": "/out/{id}"}}, "line 1, column 'id': --out y: another output"),
        ({"inputs": {"db": "nosuch://x"}}, "--in db: nosuch://: Protocol not known: nosuch"),
        ({"inputs": {"db": "oss://x"}}, "Install ossfs"),
    ],
)
def test_what_can_be_known_beforehand_is_refused_with_nothing_sent(fields: dict[str, Any], said: str) -> None:
    pytest.importorskip("fsspec")
    assert said in refused(ROWS, **fields)


@pytest.mark.parametrize(
    ("value", "said"),
    [("", "the URL is empty"), ("a\0b", "NUL"), ("nosuch://x", "Protocol not known")],
)
def test_a_row_with_a_url_that_cannot_be_is_named(value: str, said: str) -> None:
    pytest.importorskip("fsspec")
    source = RowsSource([*ROWS, {"id": "3", "reads": value}])
    check = StagingCheck(Spec(kind="run", target=("x",), inputs={"reads": "{reads}"}), source.columns)
    with pytest.raises(InputError, match=said) as caught:
        for chunk in source.chunks():
            check.check(chunk, None)
    assert (caught.value.line, caught.value.column) == (3, "reads")


def test_rows_that_are_left_out_write_nothing_twice() -> None:
    prepared = accepted([{"id": "1"}, {"id": "1"}], key="id", outputs={"x": "/out/{id}"})
    assert (prepared.total, prepared.repeated) == (1, 1)


def test_without_fsspec_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    assert "pip install 'mtask[urls]' s3fs" in refused(ROWS, inputs={"db": "s3://b/db"})
    accepted(ROWS, inputs={"db": "/plain"})


def takes(db: str, hits: str, reads: str) -> None: ...


def lacks(reads: str) -> None: ...


def counts(db: int, reads: str) -> None: ...


def test_a_function_must_have_a_parameter_for_each() -> None:
    urls: dict[str, Any] = {"inputs": {"db": "/db"}, "outputs": {"hits": "/out/{id}"}}
    accepted(ROWS, kind="call", target=(f"{__file__}:takes",), **urls)
    with pytest.raises(UsageError, match="no parameter for the columns 'db', 'hits'"):
        accepted(ROWS, kind="call", target=(f"{__file__}:lacks",), **urls)
    with pytest.raises(UsageError, match="column 'db': expected"):
        accepted(ROWS, kind="call", target=(f"{__file__}:counts",), inputs={"db": "/db"})


def test_an_older_worker_leaves_such_messages_to_newer_ones() -> None:
    block = Block(bag="b", number=0, first=0, count=1, rows=b"[[1]]")
    spec = Spec(kind="run", target=("x",), inputs={"db": "/db"})
    assert Message.of(Bag(name="b", spec=spec, columns=("x",)), block).v == STAGED_VERSION
    assert Message.of(Bag(name="b", spec=Spec(kind="run", target=("x",)), columns=("x",)), block).v == 1


def test_passwords_and_signatures_are_not_shown() -> None:
    text = "https://ada:s3cret@host/x?X-Amz-Signature=abc, s3://b/x"
    assert shown(text) == "https://…host/x?… s3://b/x"
