"""Why pilots of a fleet don't work."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mtask.fleet import FleetSpec
from mtask.requirements import size_text
from mtask_condor.look import offers
from mtask_condor.schedd import Schedd

__all__ = ["troubles"]

MOST_REASONS = 5
_WHOLE = ("Cpus", "Memory", "Disk", "GPUs")


def troubles(schedd: Schedd, constraint: str, folder: Path, spec: FleetSpec) -> Iterator[str]:
    """Raises BackendError when the schedd doesn't answer."""
    yield from _held(schedd.ads(f"({constraint}) && JobStatus == 5", ["HoldReason"]), folder)
    waiting = schedd.ads(f"({constraint}) && JobStatus == 1")
    if waiting:
        yield from _unmatched(waiting, schedd.machines(), spec)


def _held(ads: Sequence[Any], folder: Path) -> Iterator[str]:
    groups = defaultdict[tuple[str, str], list[tuple[str, str]]](list)
    for ad in ads:
        name = f"{ad['ClusterId']}.{ad['ProcId']}"
        why = str(ad.get("HoldReason", "for no reason that is known")).rstrip(". ")
        said = _said(folder / "errors" / name)
        groups[_alike(why), _alike(said)].append((name, why + said))
    for group in sorted(groups.values(), key=len, reverse=True)[:MOST_REASONS]:
        name, text = group[0]
        workers = (
            f"worker {name} is held" if len(group) == 1 else f"{len(group):,} workers are held (as {name})"
        )
        again = "starts it again" if len(group) == 1 else "starts them again"
        yield f"{workers}: {text}. When that is mended, `mtask fleet up` with the same options {again}"


def _alike(text: str) -> str:
    return re.sub(r"\d+", "#", text)


def _said(path: Path) -> str:
    try:
        lines = path.read_text(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return f"; it said: {lines[-1][:500]}" if lines else ""


def _unmatched(waiting: Sequence[Any], machines: Sequence[Any], spec: FleetSpec) -> Iterator[str]:
    """Only what no machine could run, even if it were free."""
    if not machines:
        yield f"{len(waiting):,} workers wait, and the pool has no machine at all (`condor_status`)"
        return
    whole = [_when_free(machine) for machine in machines]
    # `matches` is the other way round: it evaluates the requirements of its argument.
    unfit = [ad for ad in waiting if not any(machine.matches(ad) for machine in whole)]
    if not unfit:
        return
    wait = "1 worker waits" if len(unfit) == 1 else f"{len(unfit):,} workers wait"
    yield f"{wait} in vain: no machine of the pool has {_needs(unfit[0], spec)}; {offers(machines)}"


def _when_free(machine: Any) -> Any:
    for name in _WHOLE:
        if f"TotalSlot{name}" in machine:
            machine[name] = machine[f"TotalSlot{name}"]
    return machine


def _needs(ad: Any, spec: FleetSpec) -> str:
    def of(name: str) -> int:
        value = ad.eval(f"Request{name}") if f"Request{name}" in ad else 0
        return int(value) if isinstance(value, int | float) else 0

    text = f"cpus={of('Cpus')} memory={size_text(of('Memory') * 2**20)} disk={size_text(of('Disk') * 1024)}"
    text += f" gpus={of('GPUs')}" if of("GPUs") else ""
    return text + (f" and {spec.require}" if spec.require else "")
