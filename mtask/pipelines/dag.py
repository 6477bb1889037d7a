"""The DAG files of pegasus-mpi-cluster: tasks, and which must be done before which.

    TASK id [-m MB] [-c N] [-t TRIES] [-p PRIORITY] [-f VAR=FILE]* [-F SRC=DEST]* program argument…
    EDGE parent child
    #@ number transformation name      (of the next TASK: its number among those of the Pegasus job)
    # anything else

Source of the format: the manual page pegasus-mpi-cluster(1) of Pegasus 5. An EDGE may stand before its tasks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from mtask.errors import InputError
from mtask.pipelines.words import split_words

__all__ = ["Dag", "Task", "parse_dag", "refuse"]

MOST_SHOWN = 20
_BLANKS = re.compile(r"[ \t]+")
_DIGITS = re.compile(r"[+-]?\d{1,9}")
_DECIMAL = re.compile(r"\+?(\d{1,12}(\.\d*)?|\.\d+)")


@dataclass(slots=True)
class Task:
    """One line of a DAG: a command, what it takes of the host, and how often it is tried."""

    name: str
    line: int
    argv: list[str]
    memory_mb: int = 0
    """In MiB; 0: it doesn't matter."""
    cpus: int = 1
    tries: int = 1
    priority: int = 0
    """Higher ones start first."""
    pipes: dict[str, str] = field(default_factory=dict)
    """Environment variable with a descriptor's number → file to which what is written there is appended."""
    files: dict[str, str] = field(default_factory=dict)
    """File that the task writes → file to which it is appended when the task is done."""
    number: str = ""
    """In the job that Pegasus has made of several of its own; empty: it doesn't say."""


class Dag:
    """Tasks by their place in the file, and for each its children and the number of its parents."""

    def __init__(self, tasks: list[Task], edges: Iterable[tuple[int, int]]) -> None:
        self.tasks = tasks
        self.index = {task.name: at for at, task in enumerate(tasks)}
        self.children: list[list[int]] = [[] for _ in tasks]
        self.parents = [0] * len(tasks)
        for parent, child in edges:
            self.children[parent].append(child)
            self.parents[child] += 1

    def cycle(self) -> list[int]:
        """Tasks that wait for each other, in order; empty: there are none."""
        waits = list(self.parents)
        free = [at for at, parents in enumerate(waits) if not parents]
        for at in free:  # grows meanwhile
            for child in self.children[at]:
                waits[child] -= 1
                if not waits[child]:
                    free.append(child)
        stuck = {at for at, parents in enumerate(waits) if parents}
        if not stuck:
            return []
        # Whoever is stuck has a stuck parent: going back from one to the next must come to a cycle.
        parent_of = {child: at for at in stuck for child in self.children[at] if child in stuck}
        path, at = dict[int, None](), min(stuck)
        while at not in path:
            path[at] = None
            at = parent_of[at]
        steps = list(path)
        return steps[steps.index(at) :][::-1]


class _MalformedError(ValueError):
    """What is wrong with a line."""


def parse_dag(text: str, source: str, *, tries: int = 1) -> Dag:
    """The DAG in this text; `tries` of tasks that don't say it.

    Raises InputError, which names every malformed line (the first 20) by its number.
    """
    tasks: list[Task] = []
    lines: dict[str, int] = {}
    edges: list[tuple[int, str, str]] = []
    problems: list[tuple[int, str]] = []
    number = ""
    for at, raw in enumerate(text.split("\n"), 1):
        line = raw.strip(" \t\r\v\f")
        if not line:
            continue
        try:
            words = _BLANKS.split(line, 2)
            if words[0] == "TASK":
                task = _task(words, at, tries)
                if lines.setdefault(task.name, at) != at:
                    raise _MalformedError(f"task {task.name!r} is already in line {lines[task.name]}")
                task.number, number = number, ""
                tasks.append(task)
            elif words[0] == "EDGE":
                edges.append(_edge(words, at))
            elif words[0] == "#@":
                number = _annotation(line)
            elif not line.startswith("#"):
                raise _MalformedError(f"begins with {words[0][:40]!r}; must be TASK, EDGE or #")
        except _MalformedError as error:
            problems.append((at, str(error)))
    return _linked(tasks, edges, problems, source)


def refuse(source: str, problems: list[tuple[int, str]]) -> None:
    """Raises InputError with all of these (line, what is wrong), if there are any."""
    if not problems:
        return
    problems.sort()
    line, text = problems[0]
    shown = [f"\n{source}, line {at}: {said}" for at, said in problems[1:MOST_SHOWN]]
    left = len(problems) - MOST_SHOWN
    more = f"\nand {left:,} lines more" if left > 0 else ""
    raise InputError(text + "".join(shown) + more, source=source, line=line)


def _linked(
    tasks: list[Task], named: list[tuple[int, str, str]], problems: list[tuple[int, str]], source: str
) -> Dag:
    index = {task.name: at for at, task in enumerate(tasks)}
    edges: list[tuple[int, int]] = []
    for line, parent, child in named:
        if missing := [name for name in (parent, child) if name not in index]:
            problems.append((line, f"there is no task {missing[0]!r}"))
        else:
            edges.append((index[parent], index[child]))
    refuse(source, problems)
    dag = Dag(tasks, edges)
    if cycle := dag.cycle():
        shown = [tasks[at].name for at in cycle[:10]] + (["…"] if len(cycle) > 10 else [])
        steps = {(tasks[a].name, tasks[b].name) for a, b in zip(cycle, [*cycle[1:], cycle[0]], strict=True)}
        line = max(line for line, parent, child in named if (parent, child) in steps)
        raise InputError(
            f"these tasks wait for each other: {' → '.join([*shown, shown[0]])}", source=source, line=line
        )
    return dag


# -- one line ---------------------------------------------------------------------------------------


def _edge(words: list[str], line: int) -> tuple[int, str, str]:
    if len(words) < 3:
        raise _MalformedError("an EDGE needs two tasks: EDGE parent child")
    if _BLANKS.search(words[2]):
        raise _MalformedError("an EDGE has just two tasks: EDGE parent child")
    return line, words[1], words[2]


def _annotation(line: str) -> str:
    words = _BLANKS.split(line, 3)
    if len(words) < 4:
        raise _MalformedError("an annotation needs three words: #@ number transformation name")
    return words[1]


def _task(words: list[str], line: int, tries: int) -> Task:
    if len(words) < 3:
        raise _MalformedError("a TASK needs a name and a program: TASK id [options] program argument…")
    if "\0" in words[1] or "\0" in words[2]:
        raise _MalformedError("there is a NUL in it, which no program can be given")
    try:
        argv = split_words(words[2])
    except ValueError as error:
        raise _MalformedError(f"{error} in {words[2][:60]!r}") from None
    task = Task(words[1], line, argv, tries=tries)
    at = 0
    while at < len(argv) and argv[at].startswith("-"):
        if argv[at] not in _OPTIONS:
            raise _MalformedError(f"there is no option {argv[at]!r}; there are {', '.join(_OPTIONS)}")
        if at + 1 == len(argv):
            raise _MalformedError(f"{argv[at]} needs a value")
        _OPTIONS[argv[at]](task, argv[at], argv[at + 1])
        at += 2
    del argv[:at]
    if not argv or not argv[0]:
        raise _MalformedError("there is no program in it")
    return task


def _memory(task: Task, option: str, value: str) -> None:
    task.memory_mb = _round_up(option, value, "MB")


def _cpus(task: Task, option: str, value: str) -> None:
    task.cpus = _round_up(option, value, "CPUs")


def _tries(task: Task, option: str, value: str) -> None:
    task.tries = max(1, _whole(option, value))
    if value.startswith("-"):
        raise _MalformedError(f"{option} must not be negative: {value!r}")


def _priority(task: Task, option: str, value: str) -> None:
    task.priority = _whole(option, value)


def _pipe(task: Task, option: str, value: str) -> None:
    variable, path = _pair(option, value, "VAR=FILE")
    task.pipes[variable] = path


def _file(task: Task, option: str, value: str) -> None:
    source, destination = _pair(option, value, "SRC=DEST")
    task.files[source] = destination


def _round_up(option: str, value: str, unit: str) -> int:
    if not _DECIMAL.fullmatch(value):
        raise _MalformedError(f"{option} must be a number of {unit}, 0 or more, not {value!r}")
    return math.ceil(float(value))


def _whole(option: str, value: str) -> int:
    if not _DIGITS.fullmatch(value):
        raise _MalformedError(f"{option} must be a whole number, not {value!r}")
    return int(value)


def _pair(option: str, value: str, form: str) -> tuple[str, str]:
    left, equals, right = value.partition("=")
    if not (left and equals and right):
        raise _MalformedError(f"{option} must be {form}, not {value!r}")
    return left, right


_OPTIONS: dict[str, Callable[[Task, str, str], None]] = {
    "-m": _memory,
    "--request-memory": _memory,
    "-c": _cpus,
    "--request-cpus": _cpus,
    "-t": _tries,
    "--tries": _tries,
    "-p": _priority,
    "--priority": _priority,
    "-f": _pipe,
    "--pipe-forward": _pipe,
    "-F": _file,
    "--file-forward": _file,
}
