"""`mtask doctor` at Google: who this is, then the queue, then the table."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence

import google.auth
from google.auth.exceptions import GoogleAuthError

from mtask.doctor import Finding
from mtask_gcp.connection import FIRESTORE, LOGIN, PUBSUB
from mtask_gcp.doctor_queue import queue_findings
from mtask_gcp.doctor_table import table_findings
from mtask_gcp.names import address_of
from mtask_gcp.place import place_of

__all__ = ["diagnose"]


def diagnose(urls: Sequence[str], roles: Collection[str]) -> Iterator[Finding]:
    """As mtask.registry says; what is found of both is told once."""
    told = set[Finding]()
    for finding in _findings(urls, roles):
        if finding not in told:
            told.add(finding)
            yield finding


def _findings(urls: Sequence[str], roles: Collection[str]) -> Iterator[Finding]:
    queue = next((address_of(url) for url in urls if url.startswith("pubsub:")), None)
    table = next((place_of(url) for url in urls if url.startswith("firestore:")), None)
    services = [(PUBSUB, queue.project)] if queue is not None else []
    services += [(FIRESTORE, table.project)] if table is not None else []
    for finding in _identity(services):
        yield finding
        if finding.stops:
            return
    if queue is not None:
        yield from queue_findings(queue, roles)
    if table is not None:
        yield from table_findings(table, roles)


def _identity(services: Sequence[tuple[str, str]]) -> Iterator[Finding]:
    """`services`: of each, the variable that names its emulator, and the project."""
    emulators = [(name, os.environ[name]) for name, _ in services if os.environ.get(name)]
    if emulators:
        where = " and ".join(f"{name}={host}" for name, host in emulators)
        text = (
            f"{where}: {'an emulator, which needs' if len(emulators) == 1 else 'emulators, which need'} none"
        )
        yield Finding("credentials", True, text)
    projects = list(dict.fromkeys(project for name, project in services if not os.environ.get(name)))
    if not projects:
        return
    try:
        credentials, own = google.auth.default()
    except GoogleAuthError as error:
        yield Finding("credentials", False, str(error).partition(". ")[0], LOGIN, True)
        return
    who = getattr(credentials, "service_account_email", None)
    who = who or type(credentials).__module__.rpartition(".")[2]
    other = f"; their own project is {own}" if own and own not in projects else ""
    yield Finding("credentials", True, f"{who}, for the project {' and '.join(projects)}{other}")
