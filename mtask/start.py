"""For processes that are mtask's own, before they import anything else."""

from __future__ import annotations

import sys

__all__ = ["import_msgspec"]


def import_msgspec() -> None:
    """Without typing_extensions, of which it wants only what `typing` has, and which takes longer than all the rest.

    Only while there is one thread: another one would not find typing_extensions meanwhile.
    """
    name = "typing_extensions"
    if name in sys.modules:
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        import msgspec  # noqa: F401
    finally:
        del sys.modules[name]
