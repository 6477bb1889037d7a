"""`mtask doctor` at Firestore: is the table there, and is each thing allowed?

Each permission is tried in a way that can change nothing: with a precondition that can't hold, or in a collection that nobody has.
What remains is an object of a few bytes in the bucket, for a day.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

import google.auth
from google.api_core.exceptions import GoogleAPICallError
from google.auth.exceptions import GoogleAuthError

from mtask.doctor import Finding, clock_finding
from mtask.errors import MtaskError, UnusableError
from mtask.meter import Meter
from mtask_gcp.connection import STORAGE
from mtask_gcp.database import SCOPES, Database, Snapshot
from mtask_gcp.documents import create, delete, integer, update
from mtask_gcp.objects import Objects
from mtask_gcp.place import Place
from mtask_gcp.setup_table import expires

__all__ = ["table_findings"]

_NOBODYS = "mtask-doctor"
"""A collection in which there is nothing."""
_DAY_S = 86400.0


def table_findings(place: Place, roles: Collection[str]) -> Iterator[Finding]:
    """About the table. Managers and workers need the same: `roles` make no difference."""
    del roles
    db = Database(place, Meter())
    try:
        began_s = time.time()
        try:
            there = db.get(db.root)
        except MtaskError as error:
            yield Finding.problem("database", error, stops=True)
            return
        took_s = time.time() - began_s
        where = f", at the emulator {db.emulator}" if db.emulator else ""
        yield Finding("database", True, f"{db.place.database} of the project {db.place.project}{where}")
        if there is None:
            text = f"there is no table {db.place.name!r} in it"
            yield Finding("table", False, text, "`mtask init` makes it", True)
            return
        # It was read at any moment between.
        off_s = began_s + took_s / 2 - there.read_at / 1e6
        sure_s = max(0.0, abs(off_s) - took_s / 2)
        yield clock_finding(sure_s if off_s > 0 else -sure_s, "Google")
        yield from _permissions(db)
        yield _expiry(db)
        yield from _bucket(db, there)
    finally:
        db.close()


def _permissions(db: Database) -> Iterator[Finding]:
    nothing = f"{db.root}/{_NOBODYS}/nothing"
    calls: dict[str, Callable[[], Any]] = {
        "datastore.entities.get": lambda: db.get(nothing),
        "datastore.entities.list": lambda: list(db.stream(db.root, _NOBODYS)),
        "datastore.entities.create": lambda: db.write([create(db.root, {})]),
        "datastore.entities.update": lambda: db.write([update(nothing, {"n": integer(1)}, ["n"], at=1)]),
        "datastore.entities.delete": lambda: db.write([delete(nothing, at=1)]),
        "sums": lambda: db.sums(db.root, _NOBODYS, ["done"]),
    }
    for permission, call in calls.items():
        yield _tried(permission, db.place.url, call, "the role roles/datastore.user has it")


def _tried(what: str, on: str, call: Callable[[], Any], todo: str) -> Finding:
    try:
        call()
    except UnusableError as error:
        return Finding(what, False, f"denied on {on}: {error}", todo)
    except MtaskError as error:
        return Finding(what, None, f"can't be told: {error}")
    return Finding(what, True, f"allowed on {on}")


def _expiry(db: Database) -> Finding:
    what = "time to live"
    if db.emulator:
        return Finding(what, None, "the emulator has none: nothing is ever removed from it")
    from google.cloud.firestore_admin_v1 import FirestoreAdminClient

    try:
        credentials, _ = google.auth.default(scopes=SCOPES)
        with FirestoreAdminClient(credentials=credentials) as admin:
            field = admin.get_field(name=f"{db.name}/collectionGroups/mtask-pages/fields/ttl")
    except (GoogleAPICallError, GoogleAuthError) as error:
        return Finding(what, None, f"can't be told: {error}")
    if expires(field):
        return Finding(what, True, "by the field 'ttl'")
    return Finding(what, False, "off", "`mtask init` has results expire that are not to be kept")


def _bucket(db: Database, there: Snapshot) -> Iterator[Finding]:
    named = there.fields["bucket"].string_value if "bucket" in there.fields else ""
    name = db.place.bucket or named
    if not name:
        text = "none: what is larger than 1 MB can't be stored"
        first = f"set {STORAGE}, then " if db.emulator and not os.environ.get(STORAGE) else ""
        yield Finding("bucket", None, text, f"{first}`mtask init` makes one, or name one: ?bucket=NAME")
        return
    objects = Objects(db.place, db.meter, lambda: named)
    todo = "the role roles/storage.objectUser on the bucket has it"
    put: list[str] = []
    try:
        expires_at = time.time() + _DAY_S
        yield _tried(
            "storage.objects.create",
            f"gs://{name}",
            lambda: put.append(objects.put(b"mtask", "doctor", expires_at)),
            todo,
        )
        if put:
            yield _tried("storage.objects.get", f"gs://{name}", lambda: objects.get(put[0]), todo)
    finally:
        objects.close()
