"""Commands with parameters in them: words stay words, values stay values."""

from __future__ import annotations

import math
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtask.arguments import MOST_TEXT_BYTES, check_command_lines, check_program, check_words
from mtask.errors import InputError, UsageError
from mtask.sources import Chunk, encode_rows
from mtask.template import Template, shell_environment, split_command, text_of

COLUMNS = ("id", "reads", "my col")
NASTY = ["; rm -rf ~", "$(id)", "`id`", "a b", "'", '"', "\\", "{reads}", "{{", "*", "-rf", "", "a\nb", "ä😀"]
WORDS = st.text("ab '\"\\${}*;|\n\t", max_size=12)


@pytest.mark.parametrize(
    ("text", "argv"),
    [
        ("blastn -query {reads} -db nt", ["blastn", "-query", "R", "-db", "nt"]),
        ("p --in={reads}.{id}.fq '{reads}' \"{reads}\"", ["p", "--in=R.7.fq", "R", "R"]),
        ("awk '{{print $1}}' {reads}", ["awk", "{print $1}", "R"]),
        ("p '{my col}' {{}} {{{id}}}", ["p", "M", "{}", "{7}"]),
        ("{reads} x", ["R", "x"]),
        ("p 'a | b' '>' \\> a|b", ["p", "a | b", ">", ">", "a|b"]),
        ("p ''", ["p", ""]),
        ("p\n  {id}\\\n", ["p", "7\n"]),
    ],
)
def test_templates(text: str, argv: list[str]) -> None:
    template = Template.parse(text, COLUMNS)
    assert template.argv([7, "R", "M"]) == argv
    assert Template(template.words, COLUMNS).argv([7, "R", "M"]) == argv, "as a worker makes it of a spec"


@pytest.mark.parametrize("value", NASTY)
def test_a_value_is_never_interpreted(value: str) -> None:
    template = Template.parse(
        f"{sys.executable} -c 'import sys; print(ascii(sys.argv[1:]))' {{reads}} x{{reads}}", COLUMNS
    )
    done = subprocess.run(template.argv([1, value, ""]), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ascii([value, f"x{value}"])


@settings(deadline=None)
@given(
    pieces=st.lists(
        st.lists(st.sampled_from([0, 1, 2]) | WORDS, min_size=1, max_size=4), min_size=1, max_size=5
    ),
    row=st.tuples(st.text(), st.text(), st.text()),
)
def test_the_words_are_always_as_many_and_the_values_intact(
    pieces: list[list[Any]], row: tuple[str, ...]
) -> None:
    """Every word is literal text and columns; the text is written as shlex and the template want it."""
    words = [
        "".join(
            f"{{{COLUMNS[p]}}}" if isinstance(p, int) else p.replace("{", "{{").replace("}", "}}")
            for p in word
        )
        for word in pieces
    ]
    template = Template.parse(shlex.join(words), COLUMNS)
    expected = ["".join(row[p] if isinstance(p, int) else p for p in word) for word in pieces]
    assert template.words == tuple(words)
    assert template.argv(row) == expected


@settings(deadline=None)
@given(st.text("ab '\"\\\n|>", max_size=20))
def test_words_are_those_of_shlex(text: str) -> None:
    try:
        words = shlex.split(text)
    except ValueError:
        words = []
    try:
        argv, problem = Template.parse(text, ()).argv(()), ""
    except UsageError as error:
        argv, problem = [], str(error)
    assert argv == words or "means something to a shell only" in problem


@settings(deadline=None)
@given(st.text("ab '\"\\\n\t\r;", max_size=20))
def test_command_lines_that_pass_the_check_can_be_split(command: str) -> None:
    chunk = Chunk([2], [[command]], "t.csv")
    try:
        words = split_command(command)
    except ValueError:
        words = []
    if words and words[0]:
        assert words == shlex.split(command)
        assert check_command_lines(chunk, ("command",)).columns == [[command]]
    else:
        with pytest.raises(InputError):
            check_command_lines(chunk, ("command",))


@pytest.mark.parametrize(
    ("text", "message", "at"),
    [
        ("p {read} x", "there is no column 'read'; did you mean {reads}? (columns: id, reads, my col)", 2),
        ("p {ID}", "did you mean {id}?", 2),
        ("p {zzz}", "there is no column 'zzz' (columns: id, reads, my col)", 2),
        ("p {}", "{} names no column; write {column}, or {{}} for literal braces", 2),
        ("p {id", "this { is never closed; for a literal brace write {{", 2),
        ("p {a{id}", "this { is never closed", 2),
        ("awk '{print $1}'", "there is no column 'print $1'", 5),
        ("p id}", "this } closes nothing; for a literal brace write }}", 4),
        ("p 'a b", "this quote is never closed", 2),
        ("p \"it's", "this quote is never closed", 2),
        ("p a\\", "there is nothing after this backslash", 3),
        ("p {my col}", "{…} is split by a blank here; put the word in quotes", 2),
        ("p {id} > out", "> means something to a shell only, and --run starts the program without one", 7),
        ("p {id} | q", "use --shell, or quote it ('|')", 7),
        ("p a\0b", "a NUL character can't be in a command", 3),
    ],
)
def test_bad_templates_are_pointed_at(text: str, message: str, at: int) -> None:
    with pytest.raises(UsageError) as caught:
        Template.parse(text, COLUMNS)
    problem, shown, mark = str(caught.value).split("\n")
    assert message in problem
    assert shown == f"    {text}"
    assert mark.index("^") - 4 == at


def test_pointing_into_a_long_text_of_many_lines() -> None:
    with pytest.raises(UsageError) as caught:
        Template.parse("p \\\n" + "x" * 200 + " {read}" + " y" * 100 + "\nlast", COLUMNS)
    _, shown, mark = str(caught.value).split("\n")
    assert len(shown) < 120
    assert shown[mark.index("^")] == "{"


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_command(text: str) -> None:
    with pytest.raises(UsageError, match="the command is empty"):
        Template.parse(text, COLUMNS)


def test_a_spec_that_does_not_fit_the_columns() -> None:
    with pytest.raises(UsageError, match="there is no column 'id'"):
        Template(("p", "{id}"), ("x",))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", "a"),
        (None, ""),
        (True, "true"),
        (False, "false"),
        (7, "7"),
        (0.1, "0.1"),
        (1e-7, "1e-07"),
        (2**70, str(2**70)),
        ([1, "ä", None], '[1,"ä",null]'),
        ({"a": [True]}, '{"a":[true]}'),
    ],
)
def test_values_as_text(value: Any, text: str) -> None:
    assert text_of(value) == text
    assert Template.parse("p {x} -{x}", ("x",)).argv([value]) == ["p", text, f"-{text}"]


# Programs


def test_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bin").mkdir()
    for name in ("blastn", "bin/run"):
        (tmp_path / name).write_text("#!/bin/sh\n")
    (tmp_path / "bin/align").write_text("#!/bin/sh\n")
    (tmp_path / "bin/align").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))

    def check(text: str) -> None:
        check_program(Template.parse(text, ("x",)))

    check("align {x}")
    check("./bin/align {x}")
    check("{x} whatever")
    check("no{x} whatever")
    for text, message in [
        ("aling {x}", "there is no program 'aling'; did you mean align? Looked in PATH: "),
        ("blastn", "there is a file of this name here: write ./blastn"),
        ("./bin/run", "'./bin/run' may not be executed: chmod +x ./bin/run"),
        ("./bin/ruin", f"there is no program './bin/ruin' (relative to {tmp_path})"),
        ("./bin", "is a directory, not a program"),
    ]:
        with pytest.raises(UsageError) as caught:
            check(text)
        assert message in str(caught.value)


# --shell


def test_shell_environment() -> None:
    environment = shell_environment(("id", "my_col", "n"))
    assert environment([1, "a b; $x", None]) == {"id": "1", "my_col": "a b; $x", "n": ""}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("my col", "can't be the name of an environment variable; rename it, to my_col"),
        ("1st", "rename it, to _1st"),
        ("a-b", "rename it, to a_b"),
        ("ä", "can't be the name"),
        ("id\n", "can't be the name"),
        *[
            (name, "would change how programs run")
            for name in [
                "PATH",
                "HOME",
                "SHELL",
                "IFS",
                "ENV",
                "BASH_ENV",
                "BASH_FUNC_x",
                "LD_PRELOAD",
                "LD_LIBRARY_PATH",
                "PYTHONPATH",
                "PYTHONSTARTUP",
                "MTASK_QUEUE",
                "TMPDIR",
                "TMP",
                "LANG",
                "LC_ALL",
                "PS4",
                "PERL5LIB",
                "NODE_OPTIONS",
                "GIT_SSH",
                "PERLLIB",
            ]
        ],
        *[(name, "the shell sets itself") for name in ("UID", "PPID", "_", "RANDOM", "OPTIND")],
    ],
)
def test_columns_that_must_not_become_variables(name: str, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        shell_environment(("id", name))
    assert text in str(caught.value)
    assert repr(name) in str(caught.value)


# Rows for commands


def chunk_of(*values: Any) -> Chunk:
    return Chunk(range(2, 2 + len(values)), [list(values)], "t.csv")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a\0b", "a NUL character can't be passed to a program: 'a\\x00b'"),
        (["a\0b"], ""),
        ("x" * (MOST_TEXT_BYTES + 1), "131,009 bytes can't be passed to a program (Linux takes 131,008)"),
        ("日" * (MOST_TEXT_BYTES // 3 + 1), "131,010 bytes"),
        (object(), "has no form as text"),
    ],
    ids=lambda value: repr(value)[:12],
)
def test_what_cannot_be_passed_to_a_program(value: Any, text: str) -> None:
    if not text:  # a NUL inside of JSON is escaped
        assert check_words(chunk_of(value), ("x",)).columns == [[value]]
        return
    with pytest.raises(InputError) as caught:
        check_words(chunk_of("good", value), ("x",))
    assert (caught.value.source, caught.value.line, caught.value.column) == ("t.csv", 3, "x")
    assert text in caught.value.problem


def test_the_longest_word_can_be_passed() -> None:
    value = "x" * MOST_TEXT_BYTES
    assert check_words(chunk_of(value), ("x",)).columns == [[value]]
    subprocess.run(["true", value], env={"V": value}, check=True)


def test_floats_that_json_does_not_have_go_as_text() -> None:
    chunk = check_words(chunk_of(math.nan, -math.inf, 0.5, None, True, 3), ("x",))
    assert encode_rows(chunk, ("x",)) == [b'["nan"]', b'["-inf"]', b"[0.5]", b"[null]", b"[true]", b"[3]"]


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("", "the command is empty"),
        (" \t", "the command is empty"),
        ("a 'b", "the quotes don't balance: \"a 'b\""),
        ("a \\", "the quotes don't balance"),
        ("'' a", "the program's name is empty"),
        (5, "expected a command line, got 5"),
        (None, "expected a command line, got None"),
    ],
)
def test_bad_command_lines(command: Any, text: str) -> None:
    with pytest.raises(InputError) as caught:
        check_command_lines(chunk_of("echo 'a b'", command), ("command",))
    assert (caught.value.line, caught.value.column) == (3, "command")
    assert text in caught.value.problem


def test_command_lines_need_their_column() -> None:
    with pytest.raises(UsageError, match="there is no column 'command'"):
        check_command_lines(chunk_of("x"), ("x",))
