"""The tree of errors is as its docstring draws it, with the exit codes that it gives."""

from __future__ import annotations

import inspect
import re

import pytest

from mtask import errors
from mtask.errors import InputError, MtaskError, SendError
from mtask.model import Message

LINE = re.compile(r"^    ([│ ]*)(?:[├└]── )?(\w+Error)\s+(?:exit code )?(\d)", re.MULTILINE)


def drawn() -> dict[str, tuple[str | None, int]]:
    """Name → (name of the base, exit code), as drawn."""
    tree, path = {}, []
    for match in LINE.finditer(errors.__doc__):
        depth = 0 if not path else len(match[1]) // 4 + 1
        del path[depth:]
        tree[match[2]] = (path[-1] if path else None, int(match[3]))
        path.append(match[2])
    return tree


def test_the_tree_is_as_drawn():
    real = {
        name: (None if each is MtaskError else each.__base__.__name__, each.exit_code)
        for name, each in inspect.getmembers(errors, inspect.isclass)
        if issubclass(each, MtaskError)
    }
    assert drawn() == real
    assert set(real) == set(errors.__all__)


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ({}, "is wrong"),
        ({"source": "t.csv"}, "t.csv: is wrong"),
        ({"source": "t.csv", "line": 3, "column": "x"}, "t.csv, line 3, column 'x': is wrong"),
        ({"line": 3}, "line 3: is wrong"),
    ],
)
def test_input_error_names_the_place(place, text):
    assert str(InputError("is wrong", **place)) == text


def test_send_error_keeps_what_was_not_sent():
    message = Message(bag="b", uid="u", block=0, first=0, count=1)
    error = SendError([(message, "too big"), (message, "throttled"), (message, "too big")])
    assert str(error) == "3 messages were not sent: throttled; too big"
    assert [reason for _, reason in error.unsent] == ["too big", "throttled", "too big"]
