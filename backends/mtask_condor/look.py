"""How the jobs of a bag stand, and why some of them wait, for `mtask status`."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from mtask.model import Bag
from mtask.queue import Standing
from mtask.requirements import Requirements, size_text
from mtask.table import Table
from mtask_condor.batch import Batch
from mtask_condor.jobs import Jobs, quoted
from mtask_condor.removed import Removed

__all__ = ["offers", "standing"]

_STATES = {1: "idle", 2: "running", 5: "held", 6: "running", 7: "held"}
_ATTRIBUTES = (
    "JobStatus",
    "HoldReason",
    "MtaskBatch",
    "RequestCpus",
    "RequestMemory",
    "RequestDisk",
    "RequestGPUs",
    "TotalSubmitProcs",
    "JobMaterializeNextProcId",
)
MOST_REASONS = 5


def standing(
    jobs: Jobs, bag: Bag, batches: Mapping[str, Batch], removed: Sequence[Removed], table: Table
) -> Standing:
    """Raises BackendError when the schedd doesn't answer."""
    ads = jobs.ads(f"MtaskBag == {quoted(bag.uid)}", _ATTRIBUTES)
    counts = Counter[str]()
    for ad in ads:
        if "ProcId" in ad:
            counts[_STATES.get(ad["JobStatus"], "leaving")] += 1
        else:
            left = int(ad.get("TotalSubmitProcs", 0)) - int(ad.get("JobMaterializeNextProcId", 0))
            counts["not yet in the queue"] += max(0, left)
    order = ("running", "idle", "held", "not yet in the queue", "leaving")
    text = ", ".join(f"{counts[name]:,} {name}" for name in order if counts[name]) or "none"
    troubles = [*_held(ads, batches), *_unmatched(jobs, bag, ads, batches), *_removed(bag, removed, table)]
    return Standing(f"jobs in HTCondor: {text}", tuple(troubles))


def _held(ads: Sequence[dict[str, Any]], batches: Mapping[str, Batch]) -> list[str]:
    groups = defaultdict[str, list[dict[str, Any]]](list)
    for ad in ads:
        if ad.get("JobStatus") == 5 and "ProcId" in ad:
            groups[re.sub(r"\d+", "#", str(ad.get("HoldReason", "")))].append(ad)
    found = []
    for group in sorted(groups.values(), key=len, reverse=True)[:MOST_REASONS]:
        first = group[0]
        name = f"{first['ClusterId']}.{first['ProcId']}"
        batch = batches.get(str(first.get("MtaskBatch")))
        complaint = batch.complaint(first["ProcId"]) if batch is not None else ""
        said = f"; it said: {complaint.splitlines()[-1]}" if complaint else ""
        jobs = f"job {name} is held" if len(group) == 1 else f"{len(group):,} jobs are held (as {name})"
        why = str(first.get("HoldReason", "for no reason that is known")).rstrip(". ")
        found.append(f"{jobs}: {why}{said}. When that is mended, `condor_release {first['ClusterId']}`")
    return found


def _unmatched(
    jobs: Jobs, bag: Bag, ads: Sequence[dict[str, Any]], batches: Mapping[str, Batch]
) -> list[str]:
    """Why idle jobs will never start on any machine that the pool has now."""
    idle = [ad for ad in ads if ad.get("JobStatus") == 1 and "ProcId" in ad]
    if not idle:
        return []
    machines = jobs.machines()
    if not machines:
        return [f"{len(idle):,} jobs wait, and the pool has no machine at all (`condor_status`)"]
    waiting = Counter[tuple[str, int, int, int, int]]()
    for ad in idle:
        batch = batches.get(str(ad.get("MtaskBatch")))
        lane = batch.head.lane if batch is not None and batch.is_sound else ""
        wanted = [ad.get(f"Request{what}", 0) for what in ("Cpus", "Memory", "Disk", "GPUs")]
        waiting[(lane, *(each if isinstance(each, int) else 0 for each in wanted))] += 1  # type: ignore[index]
    found = []
    for (lane, cpus, memory, disk, gpus), count in waiting.items():
        requires = bag.lane(lane).requires
        if not any(_fits(machine, requires, cpus, memory, disk, gpus) for machine in machines):
            needs = f"cpus={cpus} memory={size_text(memory * 2**20)} disk={size_text(disk * 1024)}"
            needs += f" gpus={gpus}" if gpus else ""
            tags = [*requires.tags, *(f"one of {', '.join(requires.only_on)}" for _ in requires.only_on[:1])]
            needs += f" tags={','.join(tags)}" if tags else ""
            verb = "1 job needs" if count == 1 else f"{count:,} jobs need"
            found.append(f"{verb} {needs}: no machine of the pool has that; {offers(machines)}")
    return found


def _fits(
    machine: dict[str, Any], requires: Requirements, cpus: int, memory: int, disk: int, gpus: int
) -> bool:
    has = set(re.split(r"[\s,]+", str(machine.get("MtaskTags", ""))))
    enough = all(
        machine.get(f"TotalSlot{name}", 0) >= wanted
        for name, wanted in (("Cpus", cpus), ("Memory", memory), ("Disk", disk), ("GPUs", gpus))
    )
    tags = all((tag.removeprefix("!") in has) != tag.startswith("!") for tag in requires.tags)
    return enough and tags and (not requires.only_on or bool(has & set(requires.only_on)))


def offers(machines: Sequence[Any]) -> str:
    """The most that there is, for people."""

    def most(name: str) -> int:
        return max(int(machine.get(f"TotalSlot{name}", 0)) for machine in machines)

    tags = sorted({tag for m in machines for tag in re.split(r"[\s,]+", str(m.get("MtaskTags", ""))) if tag})
    offers = (
        f"the most that one of its {len(machines):,} offers is"
        if len(machines) > 1
        else "its only one offers"
    )
    gpus = f", gpus={most('GPUs')}" if most("GPUs") else ", no GPU"
    return (
        f"{offers} cpus={most('Cpus')}, memory={size_text(most('Memory') * 2**20)}, "
        f"disk={size_text(most('Disk') * 1024)}{gpus}, {'tags ' + ', '.join(tags) if tags else 'no tag'}"
    )


def _removed(bag: Bag, removed: Sequence[Removed], table: Table) -> list[str]:
    by_why = Counter[str]()
    for each in removed:
        indexes = range(each.first, each.first + each.count)
        by_why[re.sub(r"\d+", "#", each.why)] += each.count - len(table.recorded(bag.name, indexes))
    return [
        f"{'1 task was' if count == 1 else f'{count:,} tasks were'} taken out of HTCondor ({why}); "
        f"`mtask repair {bag.name}` sends what has no result again"
        for why, count in by_why.most_common(MOST_REASONS)
        if count
    ]
