"""The scratch directory of a command."""

from __future__ import annotations

import contextlib
import os
import shutil

__all__ = ["Sandbox"]


class Sandbox:
    """For one command after the other; each finds it empty."""

    def __init__(self, path: str) -> None:
        """`path`: of a folder that isn't there yet. The names of others begin with it."""
        self._first, self._path, self._number = path, path, 0
        self._made = False

    def scratch(self) -> str:
        """An empty directory. Raises OSError."""
        if not self._made:
            os.makedirs(self._path, 0o700)
            self._made = True
        return self._path

    def clean(self) -> None:
        """Of what is in the directory; it stays itself, if the command kept it empty."""
        try:
            if not os.path.islink(self._path) and not os.listdir(self._path):
                return
        except OSError:
            pass  # it was removed, or may not be read any more
        self.remove()

    def remove(self) -> None:
        if not self._made:
            return
        self._made = False
        with contextlib.suppress(OSError):
            os.unlink(self._path)  # a link, or a file, in its place
        with contextlib.suppress(OSError):
            os.chmod(self._path, 0o700)
        shutil.rmtree(self._path, ignore_errors=True)
        if os.path.lexists(self._path):  # it can't be removed by this user
            self._number += 1
            self._path = f"{self._first}.{self._number}"
