"""What `import mtask` gives: exactly the names in `__all__`, each where its type checker finds it."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

import mtask
from mtask import errors


def test_all_is_the_public_surface():
    assert set(mtask.__all__) == set(mtask._HOMES)
    assert len(mtask.__all__) == len(set(mtask.__all__))
    public = {
        name
        for name in dir(mtask)
        if not name.startswith("_") and getattr(getattr(mtask, name), "__module__", "").startswith("mtask")
    }
    assert public == set(mtask.__all__)


def test_an_interpreter_that_is_too_old_is_told_so():
    """As on an execute node, where mtask may be on the path of any."""
    program = "import sys; sys.version_info = (3, 10, 13); import mtask_condor.node"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stderr.splitlines()[-1].startswith("ImportError: mtask needs Python 3.11 or newer; ")


def test_all_errors_are_public():
    assert set(errors.__all__) <= set(mtask.__all__)


def test_type_checkers_see_the_same():
    with open(mtask.__file__, encoding="utf-8") as file:
        tree = ast.parse(file.read())
    imported = {
        alias.name: node.module.removeprefix("mtask.")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mtask.")
        for alias in node.names
    }
    assert imported == mtask._HOMES


@pytest.mark.parametrize("name", mtask.__all__)
def test_each_has_a_docstring(name):
    assert getattr(mtask, name).__doc__


def test_unknown_name():
    with pytest.raises(AttributeError, match="module 'mtask' has no attribute 'nothing'"):
        mtask.nothing  # noqa: B018


def test_importing_it_imports_nothing_else():
    program = "import sys, mtask; print(sorted(m for m in sys.modules if m.startswith(('mtask.', 'msgspec', 'click'))))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n"
