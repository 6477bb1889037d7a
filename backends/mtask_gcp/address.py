"""URLs of what lies at Google: `pubsub://PROJECT/NAME`, `firestore://PROJECT/NAME?option=value`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from mtask.errors import UsageError

__all__ = ["Address", "example", "parse"]


class Address(NamedTuple):
    """Where a queue or a table is."""

    scheme: str
    project: str
    name: str
    options: dict[str, str]

    @property
    def url(self) -> str:
        """Without the options; for people."""
        return f"{self.scheme}://{self.project}/{self.name}"


def parse(url: str, scheme: str, options: Collection[str]) -> Address:
    """What the name may be is left to the caller. `options`: those that there are. Raises UsageError."""
    parts = urlsplit(url)
    project, name = parts.netloc, unquote(parts.path.removeprefix("/"))
    if "@" in project:
        raise UsageError(
            f"{scheme}://…: credentials don't belong into a URL, where everybody sees them; use a service account of "
            "the machine, `gcloud auth application-default login`, or GOOGLE_APPLICATION_CREDENTIALS"
        )
    # Older projects may be called example.com:my-project.
    right = re.fullmatch(r"[a-z]([a-z0-9.:-]*[a-z0-9])?", project)
    if parts.scheme != scheme or parts.fragment or not right:
        raise UsageError(f"{url!r} is not the URL of a {scheme} queue or table; {example(scheme)}")
    given = dict(parse_qsl(parts.query, keep_blank_values=True))
    for option in given:
        if option not in options:
            near = difflib.get_close_matches(option, options, 1)
            known = f"there are {', '.join(sorted(options))}" if options else "there are none"
            raise UsageError(
                f"{url!r}: unknown option {option!r}; {f'did you mean {near[0]!r}?' if near else known}"
            )
    return Address(scheme, project, name, given)


def example(scheme: str) -> str:
    return f"it should look like {scheme}://my-project/reads"
