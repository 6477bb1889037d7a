"""A worker on a node of HTCondor's, from the files that came along; this module comes alone, and imports no other.

pilot.json          what to call `mtask worker` with, and where Python finds it
environment.json    secrets: the URLs of queue and table among them
code.tar.gz         mtask and the user's modules, if they are shipped

It becomes `mtask worker`, in the same process: that is whom HTCondor sends SIGTERM.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tarfile
from pathlib import Path


def main() -> None:
    here = Path.cwd()
    order = json.loads((here / "pilot.json").read_text())
    secrets = here / "environment.json"
    os.environ.update(json.loads(secrets.read_text()))
    secrets.unlink()  # each start gets another; tasks have no use for it
    path = list(order["path"])
    if (here / "code.tar.gz").exists():
        _unpack(here / "code.tar.gz", here / "code")
        path.insert(0, str(here / "code"))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [*path, os.environ.get("PYTHONPATH", "")]))
    os.environ["PYTHONUNBUFFERED"] = "1"
    args = [*order["worker"], *(order["elastic"] if sys.argv[1:] != ["steady"] else [])]
    tags = [*order["tags"], *_tags_of_machine()]
    if tags:
        args += ["--tags", ",".join(dict.fromkeys(tags))]
    os.execv(sys.executable, [sys.executable, "-m", "mtask", "worker", *args])


def _unpack(archive: Path, target: Path) -> None:
    with tarfile.open(archive) as opened:
        if hasattr(tarfile, "data_filter"):
            opened.extractall(target, filter="data")
        else:
            opened.extractall(target)


def _tags_of_machine() -> list[str]:
    """What the machine's configuration says in MtaskTags."""
    try:
        text = Path(os.environ["_CONDOR_MACHINE_AD"]).read_text()
    except (KeyError, OSError):
        return []
    found = re.search(r'^MtaskTags = "([^"]*)"', text, re.MULTILINE)
    return [tag for tag in re.split(r"[,\s]+", found[1]) if tag] if found else []


if __name__ == "__main__":
    main()
