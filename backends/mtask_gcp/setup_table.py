"""What `mtask init` makes for a table: its document, settings of fields, and the bucket for what is too big.

The database itself isn't made: where it lies can never be changed, so that is for people to say.
Firestore's emulator has no settings of fields: neither a time to live nor exemptions from indexes. Google's own were not
tried here: the requests are as the reference of `google.firestore.admin.v1` has them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from typing import Any

import google.auth
from google.api_core.exceptions import Conflict, GoogleAPICallError, NotFound
from google.auth.exceptions import GoogleAuthError

from mtask.errors import UnusableError
from mtask.meter import Meter
from mtask.registry import CHANGED, MADE, THERE
from mtask_gcp import objects
from mtask_gcp.connection import STORAGE
from mtask_gcp.database import SCOPES, Database
from mtask_gcp.documents import COLLECTIONS, create, integer, text, update
from mtask_gcp.place import Place, place_of
from mtask_gcp.table import VERSION

__all__ = ["bucket_name", "expires", "make_table", "set_field"]

_LONGEST_BUCKET = 63
_CLOUD = "https://www.googleapis.com/auth/cloud-platform"


def make_table(url: str) -> list[tuple[str, str]]:
    """Make the table at `url` and what goes with it; see `mtask.registry`.

    Raises UsageError for a URL that can't be used, UnusableError where there is no database, or no right to make it.
    """
    place = place_of(url)
    db = Database(place, Meter())
    try:
        there = db.get(db.root)  # and so, is there a database?
        done = list(_settings(db))
        named = "" if there is None else there.fields["bucket"].string_value
        bucket, how = _bucket(db, named)
        done.append(
            (f"bucket gs://{bucket}" if bucket else "bucket: none, STORAGE_EMULATOR_HOST isn't set", how)
        )
        fields = {"version": integer(VERSION), "bucket": text(bucket)}
        if there is None and db.write([create(db.root, fields)]) != [None]:
            return [(f"table {place.url}", MADE), *done]
        there = there or db.get(db.root)
        if there is not None and there.fields["bucket"].string_value != bucket:
            db.write([update(db.root, {"bucket": text(bucket)}, ["bucket"], at=there.changed_at)])
            return [(f"table {place.url}", CHANGED), *done]
        return [(f"table {place.url}", THERE), *done]
    finally:
        db.close()


# -- settings of fields ---------------------------------------------------------------------------------


def _settings(db: Database) -> Iterator[tuple[str, str]]:
    """That `ttl` is when a document expires, and that neither it nor `body` are in an index."""
    what = "time to live, and fields without an index"
    if db.emulator:
        yield f"{what}: the emulator has neither", THERE
        return
    from google.cloud.firestore_admin_v1 import FirestoreAdminClient

    changed = False
    try:
        credentials, _ = google.auth.default(scopes=[*SCOPES, _CLOUD])
        with FirestoreAdminClient(credentials=credentials) as admin:
            for collection in COLLECTIONS:
                for name in ("body", "ttl"):
                    field = f"{db.name}/collectionGroups/{collection}/fields/{name}"
                    changed = set_field(admin, field, expiring=name == "ttl") or changed
    except (GoogleAPICallError, GoogleAuthError) as error:
        raise UnusableError(
            f"{db.place.url}: the settings of its fields can't be made: {error}; the role roles/datastore.indexAdmin has "
            "the right to do it"
        ) from None
    yield what, CHANGED if changed else THERE


def set_field(admin: Any, name: str, *, expiring: bool) -> bool:
    """Was anything to be done? It takes effect after some minutes; nobody waits for it."""
    from google.cloud.firestore_admin_v1.types import Field

    there = admin.get_field(name=name)
    exempt = not there.index_config.indexes and not there.index_config.uses_ancestor_config
    if exempt and (expires(there) or not expiring):
        return False
    wanted = Field(name=name, index_config=Field.IndexConfig(indexes=[]))
    paths = ["index_config"]
    if expiring:
        wanted.ttl_config = Field.TtlConfig()
        paths.append("ttl_config")
    admin.update_field(request={"field": wanted, "update_mask": {"paths": paths}})
    return True


def expires(field: Any) -> bool:
    """Has this field of the Admin API a time-to-live policy, or will it have one?"""
    kind = type(field).TtlConfig.State
    return field.ttl_config.state in (kind.ACTIVE, kind.CREATING)


# -- the bucket -----------------------------------------------------------------------------------------


def bucket_name(place: Place) -> str:
    """The bucket that goes with a table when none is named."""
    name = f"{place.project}-mtask-{place.name}".lower().replace(":", "-").replace(".", "-")
    plain = f"{place.project}-mtask-{place.name}"
    if len(name) > _LONGEST_BUCKET or name != plain or place.database != "(default)":
        digest = hashlib.sha256(f"{plain}/{place.database}".encode()).hexdigest()[:8]
        name = f"{name[: _LONGEST_BUCKET - 9].rstrip('-_')}-{digest}"
    return name


def _bucket(db: Database, named: str) -> tuple[str, str]:
    """Its name, and what became of it. `named`: as the table says now. A name that nobody chose can be foretold by anybody, so a bucket of that name counts only
    if it is this project's."""
    place, chosen = db.place, db.place.bucket or named
    if db.emulator and not os.environ.get(STORAGE):
        return chosen, THERE
    name = chosen or bucket_name(place)
    client = objects.storage_client(place.project)
    try:
        with objects.errors("storage.buckets.get, storage.buckets.create", f"gs://{name}"):
            bucket = client.lookup_bucket(name)
            if bucket is None:
                bucket = client.bucket(name)
                bucket.iam_configuration.uniform_bucket_level_access_enabled = True
                bucket.iam_configuration.public_access_prevention = "enforced"
                _expire(bucket)
                try:
                    client.create_bucket(bucket, location=_location(db))
                except Conflict:  # by somebody at the same moment, or it is somebody else's
                    bucket = client.bucket(name)
                else:
                    return name, MADE
            if not chosen and name not in {each.name for each in client.list_buckets(prefix=name)}:
                raise UnusableError(
                    f"the bucket {name!r} is another project's: name one: {place.url} with bucket=NAME"
                )
            bucket.reload()
            if not os.environ.get(STORAGE) and _expire(bucket):  # the emulator keeps no rules
                bucket.patch()
                return name, CHANGED
            return name, THERE
    except NotFound as error:
        raise UnusableError(f"gs://{name}: {error.message}") from None
    finally:
        client.close()


def _expire(bucket: Any) -> bool:
    """Have what is due removed; was that to be set?"""
    if any("daysSinceCustomTime" in rule.get("condition", {}) for rule in bucket.lifecycle_rules):
        return False
    bucket.add_lifecycle_delete_rule(days_since_custom_time=0)
    return True


def _location(db: Database) -> str:
    """Where the database is."""
    if db.emulator:
        return "US"
    from google.cloud.firestore_admin_v1 import FirestoreAdminClient

    with FirestoreAdminClient() as admin:
        location: str = admin.get_database(name=db.name).location_id
    return {"nam5": "US", "nam7": "US", "eur3": "EU"}.get(location, location)
