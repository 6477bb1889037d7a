"""From the scheme of a URL to the backend that serves it.

A backend is a module with `open_queue(url)` or `open_table(url)`, or both, each taking the URL as
text. It may have more:

    table_beside(url)                 which table goes with the queue, if its URL is another one
    make_queue(url), make_table(url)  make what isn't there yet; return [(what, MADE | THERE | CHANGED), …]
    diagnose(urls, roles)             findings (`mtask.doctor.Finding`) about those of its URLs that are in use, and about
                                      what somebody in these roles (of ROLES) must be allowed
    open_fleet(place, folder)         a fleet of workers (`mtask.fleet.Fleet`) whose files are in `folder`
    WORKER_ENVIRONMENT                names of the variables by which its client finds credentials; a fleet takes them along

Ours are listed here, so that opening one costs no search; anybody else's is found by its entry
point in the group `mtask.backends`, whose name is the scheme.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Collection, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, cast

from mtask.errors import UsageError
from mtask.queue import Queue
from mtask.table import Table

if TYPE_CHECKING:
    from pathlib import Path

    from mtask.doctor import Finding
    from mtask.fleet import Fleet

__all__ = [
    "BUILTIN",
    "CHANGED",
    "MADE",
    "ROLES",
    "THERE",
    "backend",
    "diagnose",
    "make",
    "open_fleet",
    "open_queue",
    "open_table",
    "scheme_of",
    "shown",
    "table_beside",
    "worker_environment",
]

ROLES = ("manager", "worker")
"""Who submits and looks at results, and who runs the tasks: they may have different rights."""
MADE, THERE, CHANGED = "made", "was there", "changed"
"""What became of a thing that a queue or a table needs."""

BUILTIN = {
    "amqp": ("mtask_rabbitmq", "rabbitmq"),
    "amqps": ("mtask_rabbitmq", "rabbitmq"),
    "azureq": ("mtask_azure", "azure"),
    "azuretable": ("mtask_azure", "azure"),
    "condor": ("mtask_condor", "condor"),
    "dynamodb": ("mtask_aws", "aws"),
    "firestore": ("mtask_gcp", "gcp"),
    "postgresql": ("mtask_postgres", "postgres"),
    "pubsub": ("mtask_gcp", "gcp"),
    "sqlite": ("mtask_sqlite", ""),
    "sqs": ("mtask_aws", "aws"),
}
"""Scheme → (module, pip extra), in alphabetical order."""
FLEETS = ("condor",)
"""Those of them that start workers."""


def open_queue(url: str) -> Queue:
    """Open the queue at `url`.

    Raises UsageError for a URL that can't be used, BackendError when the backend can't be reached.
    """
    return cast(Queue, _factory(url, "open_queue", "queue")(url))


def open_table(url: str) -> Table:
    """Open the table at `url`; raises as `open_queue` does."""
    return cast(Table, _factory(url, "open_table", "table")(url))


def table_beside(url: str) -> str | None:
    """The URL of the table that goes with the queue at `url` when none is named; None: its backend has none."""
    found = backend(url)
    if not hasattr(found, "open_table"):
        return None
    return cast(str, found.table_beside(url)) if hasattr(found, "table_beside") else url


def make(queue: str, table: str) -> Iterator[tuple[str, str]]:
    """Make what queue and table need, and isn't there; for each thing (what, MADE or THERE or CHANGED).

    Raises as `open_queue` does. After an error, the same again goes on.
    """
    done = set[str]()
    for url, kind in ((queue, "queue"), (table, "table")):
        maker = getattr(backend(url), f"make_{kind}", None)
        if maker is not None:
            made = cast(list[tuple[str, str]], maker(url))
        else:  # one that makes everything when it is opened
            _factory(url, f"open_{kind}", kind)(url).close()
            made = [(f"{kind} {shown(url)}", THERE)]
        yield from ((what, how) for what, how in made if what not in done)
        done |= {what for what, _ in made}


def diagnose(queue: str, table: str, roles: Collection[str] = ROLES) -> Iterator[Finding]:
    """What the backends of both find out about them; a backend of both is asked once. Raises as `open_queue` does."""
    urls = list(dict.fromkeys((queue, table)))
    for found in dict.fromkeys(map(backend, urls)):
        if hasattr(found, "diagnose"):
            own = [url for url in urls if backend(url) is found]
            yield from cast("Iterator[Finding]", found.diagnose(own, roles))


def open_fleet(place: str, folder: Path) -> Fleet:
    """The fleet at a place: the scheme of a backend, or a URL. Raises UsageError."""
    url = place if ":" in place else f"{place}:"
    if scheme_of(url) not in BUILTIN and ":" not in place:
        known = ", ".join(sorted(FLEETS))
        raise UsageError(f"there are no fleets on {place!r}; there are on {known}")
    return cast("Fleet", _factory(url, "open_fleet", "fleet")(place, folder))


def worker_environment(queue: str, table: str) -> list[str]:
    """Names of variables that workers of these need, where they are set here: credentials, mostly."""
    names = (getattr(backend(url), "WORKER_ENVIRONMENT", ()) for url in (queue, table))
    return list(dict.fromkeys(name for each in names for name in each))


def shown(url: str) -> str:
    """The URL without its password, for people and logs."""
    url = re.sub(r"([?&]\w*password=)[^&]*", r"\1…", url)
    return re.sub(r"(://[^/@:]*):.*@", r"\1:…@", url)


def scheme_of(url: str) -> str:
    """The part of a URL before `:`; raises UsageError when there is none."""
    scheme, colon, _ = url.partition(":")
    if not colon or not scheme:
        raise UsageError(
            f"{url!r} is not the URL of a queue or table; it should look like sqlite:///tasks.db or sqs://us-east-1/tasks"
        )
    return scheme


def _factory(url: str, function: str, what: str):  # type: ignore[no-untyped-def]
    factory = getattr(backend(url), function, None)
    if factory is None:
        raise UsageError(f"{shown(url)!r}: the backend of {scheme_of(url)}:// has no {what}")
    return factory


def backend(url: str) -> ModuleType:
    """The module that serves this URL. Raises UsageError when there is none, or it isn't installed."""
    scheme = scheme_of(url)
    if scheme in BUILTIN:
        module, extra = BUILTIN[scheme]
        try:
            return importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise UsageError(
                f"the backend of {scheme}:// is not installed (no module {error.name!r}): pip install 'mtask[{extra}]'"
            ) from None
    from importlib.metadata import entry_points

    found = entry_points(group="mtask.backends", name=scheme)
    if not found:
        known = sorted({*BUILTIN, *(entry.name for entry in entry_points(group="mtask.backends"))})
        raise UsageError(f"{shown(url)!r}: unknown scheme {scheme!r}; there are {', '.join(known)}")
    return cast(ModuleType, next(iter(found)).load())
