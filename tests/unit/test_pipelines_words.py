"""Words of command lines: a shell's, but for a backslash within double quotes."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtask.pipelines.words import split_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        (" a  b\t", ["a", "b"]),
        ("'a b' \"c d\" ''", ["a b", "c d", ""]),
        (r"""a\ b "\$HOME \"x\" \\" '\$'""", ["a b", '$HOME "x" \\', r"\$"]),
        ("""pre"mid dle"'post'""", ["premid dlepost"]),
        ("'it'\"'\"'s'", ["it's"]),
    ],
)
def test_words(text, words):
    assert split_words(text) == words


@pytest.mark.parametrize("text", ["'a", 'a "b', 'a "b\\', "a \\", "\"'"])
def test_without_an_end(text):
    with pytest.raises(ValueError, match=r"quotation|backslash"):
        split_words(text)


@given(st.text(alphabet=" \t'\"ab$#é"))
def test_without_backslashes_it_is_a_shells(text):
    try:
        expected = shlex.split(text)
    except ValueError:
        with pytest.raises(ValueError):
            split_words(text)
    else:
        assert split_words(text) == expected


@given(st.lists(st.text()))
def test_what_a_shell_would_quote_comes_back(words):
    assert split_words(shlex.join(words)) == words
