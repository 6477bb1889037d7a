"""URLs of what lies at AWS: `sqs://REGION/NAME?option=value`."""

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
    region: str
    name: str
    options: dict[str, str]

    @property
    def url(self) -> str:
        """Without the options; for people."""
        return f"{self.scheme}://{self.region}/{self.name}"


def parse(url: str, scheme: str, options: Collection[str], *, longest: int) -> Address:
    """Raises UsageError for a URL that can't be used. `options`: those that there are; `longest`: of a name."""
    example = f"it should look like {scheme}://us-east-1/reads"
    parts = urlsplit(url)
    region, name = parts.netloc, unquote(parts.path.removeprefix("/"))
    if "@" in region:
        raise UsageError(
            f"{scheme}://…: credentials don't belong into a URL, where everybody sees them; "
            "use a role, a profile (AWS_PROFILE) or the environment"
        )
    if parts.scheme != scheme or parts.fragment or not re.fullmatch(r"[a-z0-9-]+", region):
        raise UsageError(f"{url!r} is not the URL of a {scheme} queue or table; {example}")
    if not re.fullmatch(rf"[A-Za-z0-9_-]{{1,{longest}}}", name):
        raise UsageError(
            f"{url!r}: a name has 1 to {longest} letters, digits, '-' and '_', not {name!r}; {example}"
        )
    given = dict(parse_qsl(parts.query, keep_blank_values=True))
    for option in given:
        if option not in options:
            near = difflib.get_close_matches(option, options, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(options))}"
            raise UsageError(f"{url!r}: unknown option {option!r}; {hint}")
    return Address(scheme, region, name, given)
