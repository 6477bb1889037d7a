"""Message bodies as text that SQS takes, and back.

SQS refuses a message with any character but #x9, #xA, #xD, #x20 to #xD7FF, #xE000 to #xFFFD and #x10000 to
#x10FFFF (API reference of SendMessage). JSON in UTF-8 mostly has no other, and then travels as it is. The few
bodies that do begin with `MARK`, which no JSON begins with, and have `ESCAPE` and four hexadecimal digits in
place of each character that is not allowed, or of each byte that isn't UTF-8.
"""

from __future__ import annotations

import contextlib
import re

__all__ = ["ESCAPE", "MARK", "from_text", "to_text"]

MARK = "mtask-escaped:"
ESCAPE = "\U0010fffd"
"""Of the private use area, so that hardly any text has it."""

# Bytes that aren't UTF-8 show as lone surrogates (PEP 383), which aren't allowed either.
_REFUSED = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_TO_ESCAPE = re.compile(f"{_REFUSED.pattern}|{ESCAPE}")
_ESCAPED = re.compile(f"{ESCAPE}([0-9a-f]{{4}}|{ESCAPE})")


def to_text(body: bytes) -> str:
    """As SQS takes it; longer than the body only if something in it is not allowed."""
    text = body.decode("utf-8", "surrogateescape")
    if not _REFUSED.search(text) and not text.startswith(MARK):
        return text
    return MARK + _TO_ESCAPE.sub(_escape, text)


def from_text(text: str) -> bytes:
    """The body of which `to_text` made this; of anything else, its UTF-8."""
    if text.startswith(MARK):
        with contextlib.suppress(UnicodeEncodeError):
            body = _ESCAPED.sub(_unescape, text[len(MARK) :]).encode("utf-8", "surrogateescape")
            if to_text(body) == text:  # else somebody else has made it
                return body
    return text.encode("utf-8", "surrogatepass")


def _escape(found: re.Match[str]) -> str:
    return ESCAPE + (ESCAPE if found[0] == ESCAPE else f"{ord(found[0]):04x}")


def _unescape(found: re.Match[str]) -> str:
    return ESCAPE if found[1] == ESCAPE else chr(int(found[1], 16))
