"""What an outcome says, in words and units."""

from __future__ import annotations

from benchmarks.simulate.setup import Outcome, Setup

__all__ = ["summary"]


def summary(setup: Setup, out: Outcome) -> dict[str, str]:
    """Lines to be shown: what, and its value with unit."""
    count, cloud, tasks = out.count, setup.cloud, len(setup.times_s)
    queue, table = cloud.queue_dollars(count), cloud.table_dollars(count)
    parts = ("sends", "receives", "deletes", "extends", "releases")
    marks = ", ".join(f"{share:.0%} at {at_s:,.0f} s" for share, at_s in out.marks_s.items())
    lines = {
        "makespan": f"{out.makespan_s:,.2f} s ({marks})",
        "longest task": f"{out.longest_s:,.1f} s",
        "bound, slots taken counted out": f"{out.bound_s:,.1f} s: {out.bound_s / out.makespan_s:.1%} reached",
        "the same from the notice on": (
            f"{out.notice_bound_s:,.1f} s: {out.notice_bound_s / out.makespan_s:.1%} reached"
        ),
        "of the pace, until 99 % of the tasks": f"{0.99 * out.work_bound_s / out.marks_s[0.99]:.1%}",
        "preempted workers": f"{out.preempted:,}",
        "lost, running when taken": f"{out.lost_running_s / out.work_s:.3%} of the work",
        "lost beyond that": f"{out.lost_share:.3%} of the work ({out.twin_tasks:,} tasks in two messages)",
        "messages": f"{count.messages:,}, at most {out.most_in_flight:,} held at a time",
        "queue requests a task": f"{count.requests / tasks:.4f} ("
        + ", ".join(f"{part} {getattr(count, part) / tasks:.4f}" for part in parts)
        + ")",
        "queue requests a second, on average": f"{count.requests / out.makespan_s:,.0f}",
        "dollars a million tasks": (
            f"{queue * 1e6 / tasks:.2f} queue + {table * 1e6 / tasks:.2f} table"
            f" = {(queue + table) * 1e6 / tasks:.2f}"
        ),
    }
    if out.most_in_flight > cloud.in_flight:
        lines["over a limit"] = f"{cloud.name} has at most {cloud.in_flight:,.0f} messages in flight"
    if count.requests / out.makespan_s > cloud.requests_a_s:
        lines["over a limit "] = f"{cloud.name} takes at most {cloud.requests_a_s:,.0f} requests a second"
    return lines
