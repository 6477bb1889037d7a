"""The words of a command line, as pegasus-cluster and pegasus-mpi-cluster take them apart.

Like a shell, but that nothing is replaced, and that a backslash within double quotes makes any character stand for itself.
"""

from __future__ import annotations

import re

__all__ = ["split_words"]

_BLANKS = re.compile(r"[ \t\r\v\f\n]+")
_PIECE = re.compile(
    r"""(?P<blank>[ \t\r\v\f\n]+) | (?P<plain>[^ \t\r\v\f\n'"\\]+) | \\(?P<escaped>.)
    | '(?P<single>[^']*)' | "(?P<double>(?:[^"\\]|\\.)*)" """,
    re.VERBOSE | re.DOTALL,
)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


def split_words(text: str) -> list[str]:
    """Raises ValueError for a quote without its end, and a backslash with nothing behind it."""
    if "'" not in text and '"' not in text and "\\" not in text:
        return [word for word in _BLANKS.split(text) if word]
    words: list[str] = []
    pieces: list[str] = []
    at = 0
    while at < len(text):
        found = _PIECE.match(text, at)
        if found is None:
            raise ValueError("no closing quotation" if text[at] in "'\"" else "nothing behind the backslash")
        at, kind = found.end(), found.lastgroup or ""
        if kind == "blank":
            if pieces:
                words.append("".join(pieces))
                pieces = []
        else:
            piece = found[kind]
            pieces.append(_ESCAPED.sub(r"\1", piece) if kind == "double" else piece)
    return [*words, "".join(pieces)] if pieces else words
