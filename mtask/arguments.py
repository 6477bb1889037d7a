"""Can the values of a file be passed to commands, and is there such a command?"""

from __future__ import annotations

import difflib
import math
import os
import re
import shlex
import shutil
from collections.abc import Sequence
from typing import Any

from mtask.errors import UsageError
from mtask.model import COMMAND_COLUMN
from mtask.sources.base import Chunk, shorten
from mtask.template import Template, text_of

__all__ = ["MOST_TEXT_BYTES", "check_command_lines", "check_program", "check_words"]

MOST_TEXT_BYTES = 128 * 1024 - 64
"""Linux takes no argument or environment variable longer than 128 KiB (MAX_ARG_STRLEN)."""
_SPLITS = re.compile(r"""(?:[^'"\\]|'[^']*'|"(?:[^"\\]|\\.)*+"|\\.)*+""", re.DOTALL)


def check_program(template: Template) -> None:
    """Is there such a program on this machine? Raises UsageError; says nothing when a row names it."""
    program = template.program
    if program is None or shutil.which(program):
        return
    if os.sep in program:
        if os.path.isdir(program):
            raise UsageError(f"{program!r} is a directory, not a program")
        if os.path.exists(program):
            raise UsageError(f"{program!r} may not be executed: chmod +x {shlex.quote(program)}")
        raise UsageError(f"there is no program {program!r} (relative to {os.getcwd()})")
    hint = "."
    if os.path.exists(program):
        hint = f"; there is a file of this name here: write ./{program}."
    elif near := difflib.get_close_matches(program, _programs(), 3):
        hint = f"; did you mean {' or '.join(near)}?"
    raise UsageError(f"there is no program {program!r}{hint} Looked in PATH: {os.environ.get('PATH', '')}")


def check_words(chunk: Chunk, columns: Sequence[str]) -> Chunk:
    """The chunk as it goes over the wire to commands; raises InputError with line and column.

    Refuses what can't be passed to a program: NUL, and more than `MOST_TEXT_BYTES`. The floats that
    JSON doesn't have become text.
    """
    wired = [_words(chunk, column, name) for column, name in zip(chunk.columns, columns, strict=True)]
    return Chunk(chunk.lines, wired, chunk.source)


def check_command_lines(chunk: Chunk, columns: Sequence[str]) -> Chunk:
    """As `check_words`, and each row's `command` must split into words and not be empty."""
    if COMMAND_COLUMN not in columns:
        raise UsageError(f"there is no column {COMMAND_COLUMN!r} (columns: {', '.join(columns)})")
    chunk = check_words(chunk, columns)
    _check_commands(chunk, chunk.columns[list(columns).index(COMMAND_COLUMN)])
    return chunk


def _words(chunk: Chunk, column: Sequence[Any], name: str) -> Sequence[Any]:
    kinds = set(map(type, column))
    if kinds <= {int, bool}:
        return column
    if kinds == {str} and "\0" not in "".join(column) and max(map(len, column)) <= MOST_TEXT_BYTES // 4:
        return column
    checked = []
    for row, value in enumerate(column):
        if isinstance(value, float):
            checked.append(value if math.isfinite(value) else repr(value))
            continue
        try:
            text = text_of(value)
            size = len(text.encode())
        except (TypeError, ValueError):
            raise chunk.error(f"{shorten(value)} has no form as text", row, name) from None
        if "\0" in text:
            raise chunk.error(f"a NUL character can't be passed to a program: {shorten(text)}", row, name)
        if size > MOST_TEXT_BYTES:
            raise chunk.error(
                f"{size:,} bytes can't be passed to a program (Linux takes {MOST_TEXT_BYTES:,}); "
                f"write them to a file and pass its name: {shorten(text)}",
                row,
                name,
            )
        checked.append(value)
    return checked


def _check_commands(chunk: Chunk, column: Sequence[Any]) -> None:
    for row, command in enumerate(column):
        if not isinstance(command, str):
            raise chunk.error(f"expected a command line, got {shorten(command)}", row, COMMAND_COLUMN)
        if not command.strip(" \t\r\n"):
            raise chunk.error("the command is empty", row, COMMAND_COLUMN)
        if '"' in command or "'" in command or "\\" in command:
            if not _SPLITS.fullmatch(command):
                problem = f"the quotes don't balance: {shorten(command)}"
            elif command.lstrip()[0] in "'\"\\" and not shlex.split(command)[0]:
                problem = f"the program's name is empty: {shorten(command)}"
            else:
                continue
            raise chunk.error(problem, row, COMMAND_COLUMN)


def _programs() -> list[str]:
    names: set[str] = set()
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        try:
            names.update(os.listdir(folder or "."))
        except OSError:
            continue
    return sorted(names)
