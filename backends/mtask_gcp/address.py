"""URLs of what lies at Google: `pubsub://PROJECT/NAME?option=value`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from mtask.errors import UsageError

__all__ = ["Address", "parse"]


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


def parse(url: str, scheme: str, options: Collection[str], *, longest: int) -> Address:
    """Raises UsageError for a URL that can't be used. `options`: those that there are; `longest`: of a name."""
    example = f"it should look like {scheme}://my-project/reads"
    parts = urlsplit(url)
    project, name = parts.netloc, unquote(parts.path.removeprefix("/"))
    if "@" in project:
        raise UsageError(
            f"{scheme}://…: credentials don't belong into a URL, where everybody sees them; use a service account of "
            "the machine, `gcloud auth application-default login`, or GOOGLE_APPLICATION_CREDENTIALS"
        )
    if parts.scheme != scheme or parts.fragment or not re.fullmatch(r"[a-z][a-z0-9.:-]*[a-z0-9]", project):
        raise UsageError(f"{url!r} is not the URL of a {scheme} queue or table; {example}")
    if not re.fullmatch(rf"[A-Za-z][A-Za-z0-9_-]{{2,{longest - 1}}}", name) or name.startswith("goog"):
        raise UsageError(
            f"{url!r}: a name has 3 to {longest} letters, digits, '-' and '_', begins with a letter, and not with "
            f"'goog', unlike {name!r}; {example}"
        )
    given = dict(parse_qsl(parts.query, keep_blank_values=True))
    for option in given:
        if option not in options:
            near = difflib.get_close_matches(option, options, 1)
            known = f"there are {', '.join(sorted(options))}" if options else "there are none"
            raise UsageError(
                f"{url!r}: unknown option {option!r}; {f'did you mean {near[0]!r}?' if near else known}"
            )
    return Address(scheme, project, name, given)
