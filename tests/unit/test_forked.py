"""A child that is a copy of its worker."""

from __future__ import annotations

import os
import resource

from mtask.worker.forked import _close_all_but


def test_it_inherits_nothing():
    """Not even what was opened while more files were allowed than now."""
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
    pid = os.fork()
    if not pid:
        kept = os.open(os.devnull, os.O_RDONLY)
        for number in (100, 600):
            os.dup2(kept, number)
        resource.setrlimit(resource.RLIMIT_NOFILE, (500, allowed[1]))
        _close_all_but(kept)
        os._exit(len([number for number in (100, 600) if os.path.exists(f"/proc/self/fd/{number}")]))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
