"""Where a command may leave something: its outputs, and its scratch directory."""

from __future__ import annotations

import os
import shutil
import tempfile

from mtask.worker.orphans import scratch_prefix
from mtask.worker.output import new_output

__all__ = ["Sandbox"]


class Sandbox:
    """For one command after the other; each finds it empty."""

    def __init__(self, worker: str) -> None:
        self.outputs = new_output(), new_output()
        """Descriptors of what is printed to stdout and stderr; who takes it empties them."""
        self._prefix, self._scratch = scratch_prefix(worker), ""

    def scratch(self) -> str:
        """An empty directory. Raises OSError."""
        if not self._scratch:
            self._scratch = tempfile.mkdtemp(prefix=self._prefix)
        return self._scratch

    def clean(self) -> None:
        """Of what is in the directory; it stays itself, if the command kept it empty."""
        try:
            if not os.path.islink(self._scratch) and not os.listdir(self._scratch):
                return
        except OSError:
            pass  # it was removed, or may not be read any more
        self._remove()

    def close(self) -> None:
        self._remove()
        for fd in self.outputs:
            os.close(fd)

    def _remove(self) -> None:
        if self._scratch:
            shutil.rmtree(self._scratch, ignore_errors=True)
        self._scratch = ""
