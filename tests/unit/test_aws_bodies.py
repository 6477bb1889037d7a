from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mtask_aws.bodies import ESCAPE, MARK, from_text, to_text

# Of the API reference of SendMessage.
ALLOWED = re.compile("[\x09\x0a\x0d\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]*")
ODD = st.lists(
    st.sampled_from(["\ufffe", "\uffff", "\x00", "\x1f", "a", "0", ESCAPE, "é", "\U0001f9a0", MARK])
).map("".join)


@given(st.one_of(st.binary(), st.text().map(str.encode), ODD.map(str.encode)))
@example(MARK.encode())
@example(f"{MARK}{ESCAPE}0000".encode())
@example(f"{ESCAPE}fffe\ufffe".encode())
def test_every_body_comes_back(body: bytes) -> None:
    text = to_text(body)
    assert ALLOWED.fullmatch(text)
    text.encode()
    assert from_text(text) == body


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cn"])))
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    if not text.startswith(MARK):
        assert to_text(text.encode()) == text


@given(st.text() | ODD.map(lambda text: MARK + text))
@example(f"{MARK}{ESCAPE}d800")
@example(f"{MARK}{ESCAPE}0041")
@example("\ud800")
def test_whatever_others_send_comes_out(text: str) -> None:
    body = from_text(text)
    if body != text.encode("utf-8", "surrogatepass"):
        assert to_text(body) == text


@pytest.mark.parametrize("text", ["", "hello", '{"v": 99}', "\n"])
def test_foreign_text_is_its_utf8(text: str) -> None:
    assert from_text(text) == text.encode()
