"""Roles: tags that bags ask for, and that a worker can be given and given another of while it runs.

Workers that take their role from the table are of one of two pools, `auto` and `by-backlog`. Each pool has a document in
the table, a `Split`, which is changed by compare-and-swap: how many workers each role is to have, and which role each
worker has. There is no leader: whoever sees that the second doesn't follow from the first mends it (`assign`), so that
all read the same. Who starts enters itself; who has died is taken out by any other (`mtask.worker.roles`).
"""

from __future__ import annotations

import difflib
import math
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Literal

import msgspec

from mtask.errors import SchemaError, UsageError
from mtask.heartbeat import WorkerStatus
from mtask.model import Bag, BagState
from mtask.requirements import Requirements, parse_tags
from mtask.table import Skipped, Table

__all__ = [
    "AUTO",
    "BY_BACKLOG",
    "POOLS",
    "Roles",
    "Split",
    "asked_roles",
    "assign",
    "change",
    "check_roles",
    "follow",
    "open_by_role",
    "parse_roles",
    "read",
    "roles_in",
    "roles_of",
    "set_roles",
    "shares",
    "swap",
    "unasked",
]

AUTO: Literal["auto"] = "auto"
BY_BACKLOG: Literal["by-backlog"] = "by-backlog"
POOLS = (AUTO, BY_BACKLOG)
MOST = 1_000_000
UNEVEN = 1.5
"""A worker changes its role only if another has so many times as many open tasks a worker, also after that."""
LARGER = 2.0
"""And, where there are fewer workers than roles, if another has so many times as many open tasks."""
RUNNING = (BagState.OPEN, BagState.SEALED, BagState.RESENDING)


class Split(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The document of a pool."""

    want: dict[str, int] = {}
    """Role → how many workers, or parts of all, it is to have."""
    held: dict[str, str] = {}
    """Worker → its role; empty: none."""

    def among(self, workers: Iterable[str]) -> Split:
        """The same with these workers, and roles for them."""
        return Split(want=self.want, held=assign(self.want, self.held, workers))


class Roles(msgspec.Struct, frozen=True, kw_only=True):
    """How roles are split, and who serves them now."""

    wanted: dict[str, int]
    """As it was set for workers with `--roles auto`; empty: it wasn't."""
    workers: dict[str, tuple[str, ...]]
    """Living workers that serve roles only → those they serve now."""
    taking: dict[str, str]
    """From where such a worker has its roles: `auto`, `by-backlog`, or empty: it was started with them."""
    open_tasks: dict[str, int]
    """Role → tasks without a result, of the bags that ask for it."""

    @property
    def serving(self) -> dict[str, int]:
        """Role → how many workers serve it now."""
        return dict(Counter(role for roles in self.workers.values() for role in roles))


# -- who gets which role: pure functions -------------------------------------------------------------


def shares(want: Mapping[str, int], workers: int, now: Mapping[str, int] | None = None) -> dict[str, int]:
    """How many of so many workers each role gets: what it wants if that comes out even, else its part.

    None that wants some goes without while there are as many workers as roles; with fewer, those that want most
    are served. Of equals, those that have most `now`.
    """
    now = now or {}
    wanted = {role: number for role, number in want.items() if number > 0}
    total = sum(wanted.values())
    if not wanted or workers < 1:
        return {}
    exact = {role: workers * number / total for role, number in wanted.items()}
    by_want = sorted(wanted, key=lambda role: (-wanted[role], -now.get(role, 0), role))
    counts = dict.fromkeys(by_want[:workers], 1)
    for _ in range(workers - len(counts)):
        # Largest deficit first; what a role got in advance, it doesn't get again.
        counts[max(by_want, key=lambda role: (exact[role] - counts[role], now.get(role, 0)))] += 1
    return counts


def assign(want: Mapping[str, int], held: Mapping[str, str], workers: Iterable[str]) -> dict[str, str]:
    """A role for each of these workers, with as few changes of what they hold as can be."""
    living = sorted(set(workers))
    left = shares(want, len(living), Counter(held[worker] for worker in living if worker in held))
    if not left:
        return dict.fromkeys(living, "")
    found: dict[str, str] = {}
    for worker in living:
        role = held.get(worker, "")
        if left.get(role):
            found[worker] = role
            left[role] -= 1
    open_roles = iter([role for role in sorted(left) for _ in range(left[role])])
    for worker in living:
        if worker not in found:
            found[worker] = next(open_roles)
    return found


def follow(open_tasks: Mapping[str, float], serving: Mapping[str, int], workers: int) -> dict[str, int]:
    """How many of the workers each role is to have, by its open tasks, beginning with how many serve it now.

    No role with open tasks goes without while there are as many workers as such roles. A worker changes only if that
    makes the load clearly more even, so that numbers that go up and down by a little change nothing.
    """
    wants = sorted(role for role, count in open_tasks.items() if count > 0)
    counts = Counter({role: count for role, count in serving.items() if count > 0})
    if not wants:
        return dict(counts)

    def load(role: str, count: int) -> float:
        tasks = open_tasks.get(role, 0)
        return tasks / count if count else (math.inf if tasks > 0 else 0.0)

    def neediest() -> str:
        return max(wants, key=lambda role: (load(role, counts[role]), open_tasks[role]))

    for _ in range(workers - counts.total()):
        counts[neediest()] += 1
    for _ in range(workers):
        taker = neediest()
        givers = [role for role in sorted(counts) if counts[role] and role != taker]
        if not givers:
            break
        giver = min(givers, key=lambda role: (load(role, counts[role] - 1), open_tasks.get(role, 0)))
        after = load(giver, counts[giver] - 1)
        if after == math.inf:
            if counts[taker] or open_tasks[taker] < LARGER * open_tasks[giver]:
                break
        elif load(taker, counts[taker]) < UNEVEN * after:
            break
        counts[giver] -= 1
        counts[taker] += 1
    return {role: count for role, count in counts.items() if count}


# -- the document -----------------------------------------------------------------------------------


def read(table: Table, pool: str) -> tuple[Split, int]:
    """A pool's document, and its version for `swap`."""
    raw, version = table.shared(f"roles/{pool}")
    return (msgspec.json.decode(raw, type=Split) if raw else Split()), version


def swap(table: Table, pool: str, split: Split, version: int) -> bool:
    """False: somebody else was quicker."""
    return table.swap(f"roles/{pool}", msgspec.json.encode(split), version)


def change(table: Table, pool: str, want: Mapping[str, int]) -> Split:
    """Have it wanted so from now on; those who hold a role of the pool are given theirs at once."""
    while True:
        before, version = read(table, pool)
        split = Split(want=dict(want), held=before.held).among(before.held)
        if split == before or swap(table, pool, split, version):
            return split


# -- which roles there are --------------------------------------------------------------------------


def parse_roles(text: str) -> tuple[str, ...]:
    """What `--roles` says: the name of a pool alone, or roles separated by commas. Raises ValueError."""
    roles = tuple(dict.fromkeys(parse_tags(text)))
    if not roles:
        raise ValueError("names no role")
    for role in roles:
        if role.startswith("!"):
            raise ValueError(f"{role!r} can't be a role")
        if role in POOLS and len(roles) > 1:
            raise ValueError(f"{role} stands alone")
    return roles


def check_roles(want: Mapping[str, int]) -> None:
    """Raises UsageError for a split that can't be wanted."""
    for role, number in want.items():
        try:
            if parse_roles(role) != (role,) or role in POOLS:
                raise ValueError(f"{role!r} can't be a role")
        except ValueError as error:
            raise UsageError(str(error)) from None
        if type(number) is not int or not 0 <= number <= MOST:
            raise UsageError(f"{role}: {number!r} is not a whole number from 0 to {MOST:,}")
    if not any(want.values()):
        raise UsageError(
            "a split gives at least one role some workers; `mtask roles unset` gives none to any"
        )


def asked_roles(requires: Requirements) -> set[str]:
    """Tags that a task can have from a role of its worker."""
    return {tag for tag in requires.tags if not tag.startswith("!")} | set(requires.only_on)


def roles_in(bags: Iterable[Bag]) -> set[str]:
    """All tags that these ask for."""
    return {
        role
        for bag in bags
        for requires in (bag.spec.requires, *(lane.requires for lane in bag.lanes))
        for role in asked_roles(requires)
    }


def unknown_roles(roles: Iterable[str], known: Collection[str]) -> str:
    """What is to be said of roles that nobody knows; empty: all are known."""
    unknown = [role for role in roles if role not in known]
    if not unknown:
        return ""
    near = difflib.get_close_matches(unknown[0], known, 1)
    hint = f"did you mean {near[0]!r}? There" if near else "there"
    there = f"{hint} are {', '.join(sorted(known))}" if known else "none is known"
    names = ", ".join(map(repr, unknown))
    return f"no bag asks for the role{'s' * (len(unknown) > 1)} {names}; {there}"


def unasked(table: Table, roles: Iterable[str]) -> str:
    """The same of roles that no bag of this table asks for. A bag that only a newer version can read may ask for any."""
    skipped: list[SchemaError] = []
    known = roles_in(table.bags(skipped=skipped.append))
    return "" if skipped else unknown_roles(roles, known)


def set_roles(table: Table, want: Mapping[str, int], *, new: bool = False) -> None:
    """As `Manager.set_roles`. Raises UsageError."""
    if not want:
        change(table, AUTO, {})
        return
    check_roles(want)
    if not new:
        skipped: list[SchemaError] = []
        known = roles_in(table.bags(skipped=skipped.append)) | read(table, AUTO)[0].want.keys()
        known |= {role for worker in table.workers() for role in worker.roles or ()}
        if problem := unknown_roles(want, known):
            problem = "; ".join([problem, *map(str, skipped[:1])])
            raise UsageError(f"{problem}. If it is meant for bags to come, say --new (in Python: new=True)")
    change(table, AUTO, want)


def offered(workers: Iterable[WorkerStatus]) -> set[str]:
    """Tags that these have by `--tags`: what a worker is or has, which no other can take as a role."""
    return {tag for worker in workers for tag in worker.can.tags if tag not in (worker.roles or ())}


def open_by_role(table: Table, bags: Iterable[Bag], offered: Collection[str]) -> dict[str, int]:
    """Role → tasks without a result of these bags. A lane that asks for several roles at a time asks for none; of a bag
    that asks for several by row, each has its part."""
    found: Counter[str] = Counter()
    for bag in bags:
        roles = {role for lane in bag.lanes if (role := role_of(lane.requires, offered))}
        if roles and bag.state in RUNNING:
            left = table.counts(bag.name).left
            found.update(dict.fromkeys(roles, math.ceil(left / len(roles))))
    return dict(found)


def role_of(requires: Requirements, offered: Collection[str]) -> str:
    """The role that a worker needs for such tasks; empty: none, or more than one."""
    tags = {tag for tag in requires.tags if not tag.startswith("!")} - set(offered)
    return tags.pop() if len(tags) == 1 else ""


def roles_of(table: Table, skipped: Skipped | None) -> Roles:
    """As `Manager.roles`."""
    now, workers = time.time(), table.workers()
    bags = table.bags(skipped=skipped)
    living = [each for each in workers if each.alive(now)]
    alive = [each for each in living if each.roles is not None]
    open_tasks = Counter(dict.fromkeys(sorted(roles_in(bags)), 0))
    open_tasks.update(open_by_role(table, bags, offered(living)))
    return Roles(
        wanted=read(table, AUTO)[0].want,
        workers={each.worker: each.roles or () for each in alive},
        taking={each.worker: each.takes for each in alive},
        open_tasks=dict(open_tasks),
    )
