"""Commands with a task's parameters in them: `--run`, `--shell`, and the column `command`.

Nothing here builds a shell string. `--run` is split into words once, before any parameter is known,
and a parameter never makes a second word out of one; `--shell` gets its parameters as environment
variables; a row's own `command` is split into words and started without a shell.
"""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from mtask.errors import UsageError

__all__ = [
    "Template",
    "shell_environment",
    "split_command",
    "text_of",
    "text_parts",
    "variable_problem",
]

_OPERATORS = re.compile(r"(?<!\S)(\||\|\||&|&&|;|[012]?>>?|<|2>&1|&>)(?!\S)")
_BLANKS = re.compile(r"[ \t\r\n]+")


class Template:
    """A command line whose words may have {column} in them.

    `words` are the words as they were written, braces and all: what a spec stores as its target.
    """

    __slots__ = ("_base", "_joined", "_single", "columns", "words")

    def __init__(self, words: Sequence[str], columns: Sequence[str]) -> None:
        self.words, self.columns = tuple(words), tuple(columns)
        self._base = list(self.words)
        self._single: list[tuple[int, int]] = []
        self._joined: list[tuple[int, list[str | int]]] = []
        for at, word in enumerate(self.words):
            try:
                parts = _parts(word, self.columns)
            except _BraceError as error:
                raise _pointing(word, error.at, str(error)) from None
            if len(parts) == 1 and isinstance(parts[0], int):
                self._single.append((at, parts[0]))
            elif any(isinstance(part, int) for part in parts):
                self._joined.append((at, parts))
            else:
                self._base[at] = "".join(map(str, parts))

    @classmethod
    def parse(cls, text: str, columns: Sequence[str]) -> Template:
        """Read a command line. Raises UsageError that points at what is wrong with it."""
        quoted = _quoted(text)
        if (match := next((m for m in _OPERATORS.finditer(text) if not quoted[m.start()]), None)) is not None:
            raise _pointing(
                text,
                match.start(),
                f"{match[0]} means something to a shell only, and --run starts the program without one; "
                f"use --shell, or quote it ('{match[0]}') to pass it to the program",
            )
        if "\0" in text:
            raise _pointing(text, text.index("\0"), "a NUL character can't be in a command")
        try:
            _parts(text, columns)
        except _BraceError as error:
            raise _pointing(text, error.at, str(error)) from None
        words = shlex.split(text)
        if not words:
            raise UsageError("the command is empty; write a program and its arguments: --run 'wc -c {file}'")
        for word in words:
            try:
                _parts(word, columns)
            except _BraceError:
                at = max(text.find(word), 0)
                raise _pointing(
                    text, at, f"{{…}} is split by a blank here; put the word in quotes: '{word} …}}'"
                ) from None
        return cls(words, columns)

    def argv(self, row: Sequence[Any]) -> list[str]:
        """The words with the values of a row: always as many as there are words."""
        argv = self._base.copy()
        for at, index in self._single:
            value = row[index]
            argv[at] = value if type(value) is str else text_of(value)
        for at, parts in self._joined:
            argv[at] = "".join([part if isinstance(part, str) else text_of(row[part]) for part in parts])
        return argv

    @property
    def program(self) -> str | None:
        """The first word; None when it has a column in it."""
        return None if any(at == 0 for at, _ in [*self._single, *self._joined]) else self._base[0]


def text_of(value: Any) -> str:
    """A parameter as text for a command: "" for None, true or false, compact JSON for lists and objects."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if value is True or value is False:
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    return msgspec.json.encode(value).decode()


def split_command(command: str) -> list[str]:
    """The words of a row's own command line. Raises ValueError for unbalanced quotes."""
    if '"' in command or "'" in command or "\\" in command:
        return shlex.split(command)
    return [word for word in _BLANKS.split(command) if word]


# Environment variables for --shell.

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_STEERING = re.compile(
    r"""PATH|HOME|SHELL|IFS|ENV|USER|LOGNAME|PWD|OLDPWD|CDPATH|TERM|TMPDIR|TMP|TEMP|LANG|LANGUAGE|LC_.*
    |BASH.*|LD_.*|DYLD_.*|PYTHON.*|MTASK_.*|GIT_.*|GLIBC_.*|MALLOC_.*|GCONV_PATH|LOCPATH|NLSPATH
    |PERL5?LIB|PERL5.*|RUBY(LIB|OPT)|NODE_(OPTIONS|PATH)|CLASSPATH|_?JAVA_.*|JDK_JAVA_OPTIONS|R_(HOME|LIBS.*|PROFILE.*|ENVIRON.*)
    |PS[0-4]|SHELLOPTS|POSIXLY_CORRECT|GLOBIGNORE|PROMPT_COMMAND|EDITOR|VISUAL|PAGER|CONDA_.*|VIRTUAL_ENV""",
    re.VERBOSE,
)
_SHELLS_OWN = re.compile(
    r"_|UID|EUID|PPID|GROUPS|RANDOM|SRANDOM|SECONDS|LINENO|EPOCH(SECONDS|REALTIME)|OPT(ARG|ERR|IND)"
    r"|SHLVL|FUNCNAME|DIRSTACK|PIPESTATUS|HISTCMD|COMP_.*|HOSTNAME|HOSTTYPE|MACHTYPE|OSTYPE|REPLY"
)


def shell_environment(columns: Sequence[str]) -> Callable[[Sequence[Any]], dict[str, str]]:
    """What makes a script's environment variables of a row: one a column, of its name.

    Raises UsageError for a column whose name can't be a variable's, or is one that changes how
    programs run, or that the shell itself sets.
    """
    for name in columns:
        if problem := variable_problem(name):
            raise UsageError(
                f"--shell gives each column to the script as an environment variable: {name!r} {problem}"
            )
    names = tuple(columns)
    return lambda row: dict(zip(names, map(text_of, row), strict=True))


def variable_problem(name: str) -> str:
    """Why a script can't have an environment variable of this name; empty when it can."""
    if not _NAME.fullmatch(name):
        fixed = re.sub(r"[^A-Za-z0-9_]", "_", name)
        return (
            f"can't be the name of an environment variable; rename it, to {'_' * fixed[:1].isdigit()}{fixed}"
        )
    if _STEERING.fullmatch(name):
        return f"would change how programs run, as the environment variable {name}; rename it"
    if _SHELLS_OWN.fullmatch(name):
        return "is a variable that the shell sets itself, so the script wouldn't see the value; rename it"
    return ""


# Reading a template.


def text_parts(text: str, columns: Sequence[str]) -> list[str | int]:
    """A text with {column}s in it, in pieces: literal, or the index of a column. Raises UsageError."""
    try:
        return _parts(text, columns)
    except _BraceError as error:
        raise _pointing(text, error.at, str(error)) from None


class _BraceError(ValueError):
    def __init__(self, problem: str, at: int) -> None:
        super().__init__(problem)
        self.at = at


def _parts(text: str, columns: Sequence[str]) -> list[str | int]:
    """The text in pieces: literal, or the index of a column."""
    parts: list[str | int] = []
    literal, at = "", 0
    while at < len(text):
        mark = text[at]
        if mark not in "{}":
            end = min(
                (found for found in (text.find("{", at), text.find("}", at)) if found >= 0), default=len(text)
            )
            literal, at = literal + text[at:end], end
        elif text[at + 1 : at + 2] == mark:
            literal, at = literal + mark, at + 2
        elif mark == "}":
            raise _BraceError("this } closes nothing; for a literal brace write }}", at)
        else:
            end = text.find("}", at)
            name = text[at + 1 : end]
            if end < 0 or "{" in name:
                raise _BraceError("this { is never closed; for a literal brace write {{", at)
            if name not in columns:
                raise _BraceError(_no_column(name, columns), at)
            if literal:
                parts.append(literal)
            parts.append(list(columns).index(name))
            literal, at = "", end + 1
    return [*parts, literal] if literal or not parts else parts


def _no_column(name: str, columns: Sequence[str]) -> str:
    known = f"columns: {', '.join(columns)}"
    if not name:
        return f"{{}} names no column; write {{column}}, or {{{{}}}} for literal braces ({known})"
    near = difflib.get_close_matches(
        name.strip().lower(), [column.strip().lower() for column in columns], 1, 0.5
    )
    alike = [column for column in columns if near and column.strip().lower() == near[0]]
    hint = f"; did you mean {{{alike[0]}}}?" if alike else ""
    return f"there is no column {name!r}{hint} ({known})"


def _quoted(text: str) -> list[bool]:
    """For each character, whether quotes or a backslash take its meaning from it. Raises UsageError."""
    quoted, mark, opened, escaped = [], "", 0, False
    for at, character in enumerate(text):
        quoted.append(bool(mark) or escaped)
        if escaped:
            escaped = False
        elif character == "\\" and mark != "'":
            escaped = True
        elif mark:
            mark = "" if character == mark else mark
        elif character in "'\"":
            mark, opened = character, at
    if mark:
        raise _pointing(text, opened, "this quote is never closed")
    if escaped:
        raise _pointing(text, len(text) - 1, "there is nothing after this backslash")
    return quoted


def _pointing(text: str, at: int, problem: str) -> UsageError:
    start = text.rfind("\n", 0, at) + 1
    line = text[start:].partition("\n")[0]
    at -= start
    # a long line is shown around the place
    left = max(0, at - 60)
    shown = ("…" if left else "") + line[left : at + 40] + ("…" if len(line) > at + 40 else "")
    return UsageError(f"{problem}\n    {shown}\n    {' ' * (at - left + bool(left))}^")
