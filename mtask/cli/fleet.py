"""`mtask fleet`: workers that something else starts and stops."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mtask.cli.common import Duration, Whole, places
from mtask.cli.types import Cpus, Memory, Size, Tags

if TYPE_CHECKING:
    from mtask.fleet import Fleet, FleetStatus
    from mtask.settings import Urls

__all__ = ["fleet"]

PLACE_FILE = "place"


@click.group()
def fleet() -> None:
    """Have a pool start workers, as many as there is work for.

    A fleet takes tasks from any queue that its machines can reach. It is kept until `mtask fleet down`: workers come
    when tasks are submitted, and end when there are none.
    """


def name_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--name", default="fleet", show_default=True, help="Of the fleet.")(command)


@fleet.command()
@click.argument("place", metavar="PLACE")
@click.option(
    "--workers", "--max", "most", type=Whole(1), required=True, metavar="N", help="At most N workers."
)
@click.option(
    "--min", "least", type=Whole(0), default=0, show_default=True, metavar="N", help="N, also without tasks."
)
@click.option(
    "-j", "--slots", type=Whole(1), metavar="N", help="Tasks of a worker at a time.  [default: CPUs]"
)
@click.option("--cpus", type=Cpus(), default="1", show_default=True, metavar="N", help="CPUs of a worker.")
@click.option("--memory", "memory_bytes", type=Memory(), metavar="SIZE", help="For a worker's tasks, as 8GB.")
@click.option("--disk", "disk_bytes", type=Size(), metavar="SIZE", help="Scratch disk of a worker.")
@click.option("--gpus", type=Whole(0), default=0, metavar="N", help="GPUs of a worker.")
@click.option("--tag", "--tags", "tags", type=Tags(), metavar="TAG,…", help="What its workers say they have.")
@click.option("--require", default="", metavar="EXPR", help="Only on such machines, as HTCondor writes it.")
@click.option(
    "--max-runtime", "max_runtime_s", type=Duration(positive=True), metavar="TIME", help="Of a worker."
)
@click.option(
    "--idle-exit", "idle_exit_s", type=Duration("1s"), default="60s", show_default=True, metavar="TIME",
    help="A worker ends after TIME without a task, unless --min keeps it.",
)  # fmt: skip
@click.option(
    "--grace", "grace_s", type=Duration(), default="30s", show_default=True, metavar="TIME",
    help="How long running tasks may go on when a worker is told to stop.",
)  # fmt: skip
@click.option(
    "--every", "every_s", type=Duration("1s"), default="30s", show_default=True, metavar="TIME",
    help="How often the number of workers is adjusted.",
)  # fmt: skip
@click.option("--lost-after", "lost_after_s", type=Duration("20s"), default="300s", hidden=True)
@click.option("--checkpoints", default="", metavar="PLACE", help="Folder all machines see, or fsspec URL.")
@click.option(
    "--env", "names", multiple=True, metavar="NAME", help="Take this variable along; a secret will do."
)
@click.option("--ship", is_flag=True, help="Take mtask and the modules in this folder along.")
@click.option("--python", default="", metavar="PROGRAM", help="The interpreter on the machines.")
@click.option("--image", default="", help="The container image to work in, with mtask in it.")
@name_option
@places
def up(
    place: str,
    queue: str | None,
    table: str | None,
    name: str,
    names: Sequence[str],
    ship: bool,
    **asked: Any,
) -> int:
    """Start a fleet, or change the one of this name.

    PLACE is condor, or condor://SCHEDD. The same command again mends what is missing, and lets workers that were held
    try once more; with other options, or new code to ship, workers that come from then on have these.

    \b
    Example:
    mtask fleet up condor --workers 100 --cpus 4 --memory 8GB --queue sqs://us-west-2/reads --ship
    mtask fleet status
    """
    from mtask.errors import UsageError
    from mtask.fleet import FOLDER, FleetSpec, check_name
    from mtask.registry import open_fleet, shown
    from mtask.settings import find_urls

    folder = Path(FOLDER, check_name(name)).absolute()
    opened = open_fleet(place, folder)
    urls = find_urls(queue, table)
    if ship and asked["image"]:
        raise UsageError("an image has mtask in it already: leave out --ship, or --image")
    asked["slots"] = asked["slots"] or max(1, int(asked["cpus"]))
    asked["memory_bytes"] = asked["memory_bytes"] or 0
    asked["disk_bytes"] = asked["disk_bytes"] or 0
    asked["tags"] = asked["tags"] or ()
    asked["python"] = asked["python"] or ("" if ship or asked["image"] else sys.executable)
    try:
        spec = FleetSpec(name=name, queue=shown(urls.queue), path=_path_here(), shipped=ship, **asked)
    except ValueError as error:
        raise UsageError(str(error)) from None
    _warn(urls)
    environment = _environment(urls, names)
    with _place_noted(folder, place), tempfile.TemporaryDirectory(prefix="mtask-ship-") as scratch:
        code = _packed(Path(scratch, "code.tar.gz"), urls, place) if ship else None
        opened.up(spec, environment, code)
    click.echo(_line(opened.status()))
    click.echo("`mtask fleet status` shows how it stands, `mtask fleet down` ends it", err=True)
    return 0


@fleet.command()
@name_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON, and nothing else.")
def status(name: str, as_json: bool) -> int:
    """Show how a fleet stands, and why its workers don't work."""
    found = _open(name).status()
    if as_json:
        from mtask.cli.render import print_json

        print_json(found)
        return 0
    click.echo(_line(found))
    for trouble in found.troubles:
        click.secho(trouble, fg="yellow")
    return 0


@fleet.command()
@name_option
@click.option("--now", is_flag=True, help="Kill them; their tasks run again when the leases are over.")
def down(name: str, now: bool) -> int:
    """Start no more workers, and stop those there are.

    They drain: what hasn't started goes back to the queue at once, what runs may end within the fleet's grace.
    Called again, it does no harm.
    """
    opened = _open(name)
    stopped = opened.down(now=now)
    workers = "1 worker" if stopped == 1 else f"{stopped:,} workers"
    click.echo(f"fleet {name}: {workers} {'killed' if now else 'told to stop'}")
    return 0


def _open(name: str) -> Fleet:
    from mtask.errors import UsageError
    from mtask.fleet import FOLDER, check_name
    from mtask.registry import open_fleet
    from mtask.start import import_msgspec

    import_msgspec()
    folder = Path(FOLDER, check_name(name)).absolute()
    try:
        place = (folder / PLACE_FILE).read_text()
    except OSError:
        others = sorted(path.parent.name for path in Path(FOLDER).glob(f"*/{PLACE_FILE}"))
        there = f"; there are {', '.join(others)}" if others else "; `mtask fleet up` starts one"
        raise UsageError(f"there is no fleet {name!r} in {os.getcwd()}{there}") from None
    return open_fleet(place, folder)


@contextmanager
def _place_noted(folder: Path, place: str) -> Iterator[None]:
    """Where the fleet is, for `status` and `down`; from before it is there, since this process may be killed.

    Raises UsageError if it is somewhere else.
    """
    from mtask.errors import UnusableError, UsageError

    file = folder / PLACE_FILE
    before = file.read_text() if file.exists() else place
    if before != place:
        raise UsageError(
            f"the fleet {folder.name!r} is on {before}: end it with `mtask fleet down` and remove {folder}, or take "
            "another --name"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(place)
    except OSError as error:
        raise UnusableError(f"{file} can't be written: {error.strerror}; work in another folder") from None
    try:
        yield
    except UsageError:
        if not (folder / "fleet.json").exists():
            file.unlink(missing_ok=True)
        raise


def _line(found: FleetStatus) -> str:
    counts = (
        ("running", found.running),
        ("waiting for a machine", found.waiting),
        ("held", found.held),
        ("stopping", found.leaving),
    )
    workers = ", ".join(f"{count:,} {what}" for what, count in counts if count) or "none"
    least = f"{found.least:,} to " if found.least else "at most "
    lines = [f"fleet {found.name} on {found.place}, for {found.queue}: {least}{found.most:,} workers"]
    if found.down:
        lines[0] = f"fleet {found.name} on {found.place}: told to stop"
    elif found.backlog is not None:
        lines.append(f"backlog  {found.backlog:,} messages, which ask for {found.wanted:,} workers")
    lines.append(f"workers  {workers}")
    return "\n".join(lines)


def _environment(urls: Urls, names: Sequence[str]) -> dict[str, str]:
    """What workers find in theirs. Raises UsageError."""
    from mtask.errors import UsageError
    from mtask.registry import worker_environment
    from mtask.settings import absolute

    taken = {name: os.environ[name] for name in worker_environment(*urls) if name in os.environ}
    for name in names:
        if "=" in name:
            raise UsageError(
                f"--env takes the name alone ({name.partition('=')[0]}): others see what stands in a command"
            )
        if name not in os.environ:
            raise UsageError(f"--env {name}: that variable isn't set here")
        taken[name] = os.environ[name]
    return taken | {"MTASK_QUEUE": absolute(urls.queue), "MTASK_TABLE": absolute(urls.table)}


def _packed(target: Path, urls: Urls, place: str) -> Path:
    from mtask.registry import BUILTIN, backend, scheme_of
    from mtask.shipping import pack

    modules = {backend(url).__name__.partition(".")[0] for url in (*urls, f"{place}:")}
    extras = {BUILTIN[scheme_of(url)][1] for url in urls if scheme_of(url) in BUILTIN}
    shipped = pack(target, Path.cwd(), packages=sorted(modules), extras=extras - {""})
    click.echo(
        f"shipping mtask and {len(shipped.modules):,} files of {Path.cwd()}: {shipped.size_bytes / 1e6:.1f} MB, for "
        f"{shipped.python}",
        err=True,
    )
    return target


def _path_here() -> tuple[str, ...]:
    """The working folder, and where this interpreter has mtask and what it needs from."""
    import msgspec

    import mtask
    import mtask_sqlite

    modules = (mtask, mtask_sqlite, msgspec, click)
    found = [Path.cwd(), *(Path(module.__file__ or "").parents[1] for module in modules)]
    return tuple(dict.fromkeys(map(str, found)))


def _warn(urls: Urls) -> None:
    if any(url.startswith("sqlite:") for url in urls):
        click.echo(
            "mtask: a file of SQLite's is for workers of this machine alone; on others use a queue and a table that "
            "they can reach",
            err=True,
        )
