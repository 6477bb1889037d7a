"""A folder of the user as whom the pool runs, and mtask's commands, given there: what root's jobs can't do, theirs can."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import uuid
from contextlib import closing
from pathlib import Path

from mtask.registry import open_table
from tests.servers.condor import ROOT, TASKS, CondorPool

sys.path.append(str(ROOT / "condor"))
from pool import runs_as

__all__ = ["Desk"]

LOCAL = "condor:///desk"


class Desk:
    """A folder of the pool's user, and mtask's commands, given there."""

    def __init__(self, pool: CondorPool, home: Path) -> None:
        self.pool, self.home = pool, home
        self.env: dict[str, str] = {}
        """Of the commands, beside this process's."""
        self.folder = pool.folder / f"desk-{uuid.uuid4().hex[:8]}"
        self.marks = self.folder / "marks"
        self.marks.mkdir(parents=True)
        shutil.copy(TASKS, self.folder)
        for path in (self.folder, *self.folder.rglob("*")):
            os.chown(path, runs_as().pw_uid, runs_as().pw_gid)

    def __call__(self, *args: str, queue: str = LOCAL) -> str:
        user = [] if os.getuid() else ["setpriv", f"--reuid={runs_as().pw_name}", "--clear-groups"]
        env = {"PYTHONPATH": str(self.home), "MTASK_QUEUE": queue, "HOME": str(self.folder)} | self.env
        done = subprocess.run(
            [*user, self.pool.python, "-m", "mtask", *args],
            cwd=self.folder, env=os.environ | env, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def submit(self, bag: str, call: str, rows: int, *args: str, queue: str = LOCAL, **params: object) -> str:
        names = ["x", *params]
        lines = [",".join(map(str, [x, *params.values()])) for x in range(rows)]
        (self.folder / f"{bag}.csv").write_text("\n".join([",".join(names), *lines, ""]))
        return self(
            "submit", f"{bag}.csv", "--call", f"condor_tasks:{call}", "--bag", bag, *args, queue=queue
        )

    def done(self, bag: str) -> int:
        """As the table says: mtask's own commands would collect."""
        with closing(open_table(f"sqlite:///{self.folder}/.mtask/mtask.db")) as table:
            return table.counts(bag).done

    def collectors(self) -> list[int]:
        """Their processes."""
        found, command = [], re.compile(rb"mtask_condor\.collecting\0" + str(self.folder).encode())
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if command.search(path.read_bytes()):
                    found.append(int(path.parent.name))
            except OSError:
                continue
        return found

    def jobs(self) -> list[str]:
        return self.pool.run("condor_q", "-af", "ClusterId", "MtaskCollects", "JobStatus").splitlines()
