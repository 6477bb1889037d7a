"""What this machine has for its worker, as far as the worker wasn't told."""

from __future__ import annotations

import functools
import os
import re
import shutil
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

from mtask.requirements import Capabilities
from mtask.worker.options import Options

__all__ = ["cpus_of_machine", "found", "memory_of_machine"]

ASK_GPUS_S = 2.0
"""A driver that takes longer to say which GPUs there are doesn't work."""
_ROOT = Path("/")
_GPU = re.compile(r"\d{1,3}|(GPU|MIG)-\S+")
"""An id. Others stand for no GPU: batch systems write `-1`, `10000` or `NoDevFiles` where a job has none."""


def found(options: Options, *, root: Path = _ROOT) -> Capabilities:
    """Each slot stands for one CPU, so that `-j` says how many ordinary tasks run at a time."""
    return Capabilities(
        cpus=float(options.slots) if options.cpus is None else options.cpus,
        memory_bytes=memory_of_machine(root) if options.memory_bytes is None else options.memory_bytes,
        gpus=_gpus() if options.gpus is None else options.gpus,
        tags=tuple(dict.fromkeys((*options.tags, *(options.roles or ())))),
    )


@functools.cache
def cpus_of_machine(root: Path = _ROOT) -> int:
    """How many this process may keep busy: by its affinity, and by the quota of its container; 1 or more."""
    quotas = [quota for group in _groups(root, "cpu") if (quota := _quota(group)) is not None]
    return max(1, int(min([len(os.sched_getaffinity(0)), *quotas])))


def _quota(group: Path) -> float | None:
    """Of a control group, in CPUs."""
    quota, _, period = _read(group / "cpu.max").partition(" ")
    if not period:
        quota, period = _read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() and int(period) else None


def memory_of_machine(root: Path = _ROOT) -> int:
    """In bytes, of the machine, or of the smallest container around this process; 0 where nothing tells."""
    total = re.search(r"^MemTotal:\s+(\d+) kB", _read(root / "proc/meminfo"), re.MULTILINE)
    sizes = [int(total[1]) * 1024] if total else []
    for group in _groups(root, "memory"):
        limits = (_read(group / name) for name in ("memory.max", "memory.limit_in_bytes"))
        sizes += [int(limit) for limit in limits if limit.isdecimal()]
    return min(sizes, default=0)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of this process's control groups, of both versions, each with all that it is in.

    In a container, /proc may name them as they are outside of it: then only the outermost folder is there.
    """
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / (controller if controllers else "")
        group = top / path.strip("/")
        groups = [group, *group.parents]
        yield from groups[: groups.index(top) + 1]


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _gpus() -> tuple[str, ...]:
    """Ids of the GPUs that this process may use, as CUDA and HIP understand them."""
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        if name in os.environ:
            return _ids(os.environ[name].split(","))
    if "ROCR_VISIBLE_DEVICES" in os.environ:  # HIP counts anew those that this one lets through
        return tuple(map(str, range(len(_ids(os.environ["ROCR_VISIBLE_DEVICES"].split(","))))))
    return _ids(_nvidia_indexes().splitlines())


def _ids(words: list[str]) -> tuple[str, ...]:
    """Up to the first that is none, as CUDA reads them."""
    return tuple(dict.fromkeys(takewhile(_GPU.fullmatch, (word.strip() for word in words))))


def _nvidia_indexes() -> str:
    if shutil.which("nvidia-smi") is None:  # a process that can't be started costs 5 ms
        return ""
    import subprocess

    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        asked = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=ASK_GPUS_S, check=True
        )
    except (OSError, subprocess.SubprocessError, UnicodeError):
        return ""
    return asked.stdout
