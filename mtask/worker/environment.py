"""What a task finds around it, by its share of the worker: variables, and the CPUs it runs on."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

from mtask.requirements import Capabilities
from mtask.worker.capabilities import cpus_of_machine
from mtask.worker.room import Share

__all__ = ["THREAD_LIMITS", "environment_of", "pinned"]

THREAD_LIMITS = (
    "BLIS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "RAYON_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
"""Libraries read these when they are loaded; without them, each task starts a thread for every CPU there is."""


def environment_of(share: Share | None, machine: Capabilities) -> dict[str, str]:
    """Variables to be added to the worker's own for a task with this share of what the worker has.

    A limit of threads that is in the worker's environment stays. On a worker with GPUs a task sees its
    own only, and none if it has asked for none.
    """
    if share is None:
        return {}
    gpus = ",".join(share.gpus)
    variables = {
        "MTASK_CPUS": f"{share.cpus:g}",
        "MTASK_GPUS": gpus,
        "MTASK_MEMORY": str(share.memory_bytes or ""),
    }
    if machine.gpus:
        # An empty list hides all from CUDA, but none from HIP. ROCR_VISIBLE_DEVICES stays: HIP counts
        # within what that one lets through, and would find nothing if both had the same numbers.
        variables |= {"CUDA_VISIBLE_DEVICES": gpus, "HIP_VISIBLE_DEVICES": gpus or "-1"}
    threads = str(_threads(share, machine))
    return variables | {name: threads for name in THREAD_LIMITS if name not in os.environ}


def _threads(share: Share, machine: Capabilities) -> int:
    """The task's part of all CPUs, which may be more or fewer than the worker says it has."""
    threads = int(cpus_of_machine() * share.cpus / machine.cpus + 1e-9)
    return max(1, min(threads, len(share.cores) or threads))


@contextmanager
def pinned(share: Share | None) -> Iterator[None]:
    """What this thread starts meanwhile runs on the share's cores, with all its threads and processes.

    It inherits them, and so has no moment without. Cores that the worker has lost by now are nobody's loss.
    """
    if share is None or not share.cores:
        yield
        return
    before = os.sched_getaffinity(0)
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, share.cores)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, before)
