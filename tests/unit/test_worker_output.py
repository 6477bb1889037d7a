from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtask.spec import TAIL_BYTES
from mtask.worker import output
from mtask.worker.output import new_output, size_of, take_tail, trim


@pytest.fixture
def fd() -> Iterator[int]:
    fd = new_output()
    yield fd
    os.close(fd)


def test_what_was_printed_is_taken_once(fd: int) -> None:
    os.write(fd, b"one\n")
    os.write(fd, "zwölf\n".encode())
    assert take_tail(fd) == "one\nzwölf\n"
    assert take_tail(fd) == ""
    assert size_of(fd) == 0


def test_only_the_tail_is_taken(fd: int) -> None:
    os.write(fd, b"a" * TAIL_BYTES + b"end")
    text = take_tail(fd)
    assert len(text) == TAIL_BYTES
    assert text.endswith("aend")


@pytest.mark.parametrize("letter", ["ä", "€", "𝄞"])
def test_a_letter_that_the_cut_goes_through_is_left_out(fd: int, letter: str) -> None:
    size = len(letter.encode())
    for more in range(1, size + 1):
        os.write(fd, (letter * 10).encode() + b"x" * more)
        assert take_tail(fd, 5 * size) in {letter * n + "x" * more for n in range(6)}


def test_bytes_that_are_no_text_are_shown_as_such(fd: int) -> None:
    os.write(fd, b"\xff\xfe a \xc3")
    assert take_tail(fd) == "\ufffd\ufffd a \ufffd"
    os.write(fd, b"\x80" * 100)  # nowhere the beginning of a letter
    assert take_tail(fd, 10) == "\ufffd" * 10


@given(st.binary(max_size=200), st.integers(1, 50))
def test_any_bytes_have_a_tail(data: bytes, tail_bytes: int) -> None:
    fd = new_output()
    os.write(fd, data)
    text = take_tail(fd, tail_bytes)
    os.close(fd)
    assert len(text) <= tail_bytes
    text.encode()
    if len(data) <= tail_bytes:
        assert text == data.decode("utf-8", "replace")


def test_who_has_it_open_writes_behind_the_cut(fd: int) -> None:
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=fd)
    assert process.stdin is not None
    process.stdin.write(b"before\n")
    process.stdin.flush()
    while size_of(fd) < 7:
        pass
    take_tail(fd)
    process.stdin.write(b"after\n")
    process.stdin.close()
    process.wait()
    assert take_tail(fd) == "after\n"


def test_an_output_that_grew_too_large_is_cut(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "MOST_BYTES", 100_000)
    os.write(fd, b"a" * 100_000)
    trim(fd)
    assert size_of(fd) == 100_000
    os.write(fd, b"b")
    trim(fd)
    assert size_of(fd) == TAIL_BYTES
    assert take_tail(fd) == "a" * (TAIL_BYTES - 1) + "b"
