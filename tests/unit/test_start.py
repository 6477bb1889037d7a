"""How quickly a process of mtask starts is a matter of what it imports."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


def imported(program: str) -> set[str]:
    """The modules that are there in a new interpreter after this program."""
    program += "\nimport sys; print(*sys.modules)"
    unmeasured = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, env=unmeasured
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("before", ["", "import msgspec"])
def test_msgspec_works_and_typing_extensions_can_be_imported_afterwards(before: str) -> None:
    pytest.importorskip("typing_extensions")
    program = f"""
{before}
from mtask.start import import_msgspec
import_msgspec()
import msgspec, sys
class Point(msgspec.Struct):
    x: int
    y: list[float] | None = None
assert msgspec.json.decode(b'{{"x": 1}}', type=Point) == Point(1)
{"" if before else "assert 'typing_extensions' not in sys.modules"}
import typing_extensions
typing_extensions.TypedDict
"""
    assert "typing_extensions" in imported(program)


def test_who_has_it_already_keeps_it() -> None:
    kept = pytest.importorskip("typing_extensions")
    program = "import typing_extensions as t; from mtask.start import import_msgspec; import_msgspec(); "
    assert kept.__name__ in imported(program + "import typing_extensions; assert t is typing_extensions")


@pytest.mark.parametrize("kind", ["functions", "commands"])
def test_a_child_imports_no_more_than_it_needs(kind: str) -> None:
    modules = imported(
        "from mtask.start import import_msgspec; import_msgspec(); from mtask.worker.child.loop import main; "
        f"import mtask.worker.child.{kind}"
    )
    unwanted = {
        "typing_extensions",
        "click",
        "rich",
        "sqlite3",
        "subprocess",
        "asyncio",
        "multiprocessing",
        "inspect",
    }
    assert not modules & unwanted
