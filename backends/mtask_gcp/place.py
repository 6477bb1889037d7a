"""URLs of tables in Firestore: `firestore://PROJECT/NAME?database=NAME&bucket=NAME`."""

from __future__ import annotations

import re
from typing import NamedTuple

from mtask.errors import UsageError
from mtask_gcp.address import example, parse

__all__ = ["Place", "place_of"]

DEFAULT_DATABASE = "(default)"


class Place(NamedTuple):
    """Where a table is."""

    project: str
    name: str
    database: str = DEFAULT_DATABASE
    bucket: str = ""
    """As the URL names it; empty: as the table itself names it."""

    @property
    def url(self) -> str:
        """Without the bucket; for people."""
        option = "" if self.database == DEFAULT_DATABASE else f"?database={self.database}"
        return f"firestore://{self.project}/{self.name}{option}"


def place_of(url: str) -> Place:
    """Raises UsageError for a URL that can't be used."""
    _, project, name, given = parse(url, "firestore", ("bucket", "database"))
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,255}", name) or re.fullmatch(r"__.*__", name):
        raise UsageError(
            f"{url!r}: a name has 1 to 255 letters, digits, '-' and '_', and not '__' at both ends; {example('firestore')}"
        )
    database = given.get("database", DEFAULT_DATABASE)
    if database != DEFAULT_DATABASE and not re.fullmatch(r"[a-z][a-z0-9-]{2,61}[a-z0-9]", database):
        raise UsageError(
            f"{url!r}: {database!r} can't be the name of a database: it has 4 to 63 small letters, digits and '-'"
        )
    bucket = given.get("bucket", "")
    if "bucket" in given and not re.fullmatch(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]", bucket):
        raise UsageError(
            f"{url!r}: {bucket!r} can't be the name of a bucket: it has 3 to 63 small letters, digits, '-', '_' and '.'"
        )
    return Place(project, name, database, bucket)
