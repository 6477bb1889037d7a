"""Message bodies as text, and back.

A message is text in an XML document of at most 64 KiB (REST API, "Put Message"), so some characters can't be in it, and
others grow as they are escaped. Base64 depends on no character: what fits, by its bytes alone, always fits. And it is what
Azure Functions expects unless told otherwise. What somebody else has sent is read as it is.
"""

from __future__ import annotations

import base64
import binascii

__all__ = ["BODY_BYTES", "TEXT_BYTES", "from_text", "to_text"]

TEXT_BYTES = 64 * 1024
BODY_BYTES = TEXT_BYTES // 4 * 3


def to_text(body: bytes) -> str:
    return base64.b64encode(body).decode()


def from_text(text: str) -> bytes:
    """The body of which `to_text` made this; of anything else, its UTF-8."""
    try:
        body = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        body = b""
    return body if body.startswith(b"{") else text.encode("utf-8", "surrogatepass")
