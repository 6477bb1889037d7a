"""Conditions on results, as `mtask retry --where` takes them: `error like "%Timeout%" and attempt > 2`."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import Any

from mtask.errors import UsageError
from mtask.model import Result

__all__ = ["FIELDS", "parse_where"]

FIELDS: dict[str, Callable[[Result], Any]] = {
    "attempt": lambda r: r.attempt,
    "error": lambda r: f"{r.error.type}: {r.error.message}" if r.error else "",
    "exit_code": lambda r: r.exit_code,
    "host": lambda r: r.host,
    "id": lambda r: r.id,
    "index": lambda r: r.index,
    "message": lambda r: r.error.message if r.error else "",
    "reason": lambda r: r.error.reason.value if r.error else "",
    "state": lambda r: r.state.value,
    "stderr": lambda r: r.stderr,
    "stdout": lambda r: r.stdout,
    "type": lambda r: r.error.type if r.error else "",
    "wall_s": lambda r: r.wall_s,
    "worker": lambda r: r.worker,
}
_ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_CONDITION = re.compile(
    r"""\s*(?P<field>\w+)\s*(?P<op>not\s+like|like|!=|<=|>=|=|<|>)\s*
        (?:"(?P<double>[^"]*)"|'(?P<single>[^']*)'|(?P<bare>\S+))\s*(?P<and>and\b|$)""",
    re.VERBOSE | re.IGNORECASE,
)


def parse_where(text: str) -> Callable[[Result], bool]:
    """Conditions FIELD OPERATOR VALUE, joined by `and`.

    Operators: = != < <= > >= like, not like. In a pattern, `%` is any text and `_` any character, as
    in SQL, in either case of letters; a pattern without either may be anywhere in the text. Raises
    UsageError.
    """
    conditions, at = [], 0
    while True:
        match = _CONDITION.match(text, at)
        if match is None:
            raise UsageError(
                f'can\'t read the condition {text[at:]!r}; it should look like: error like "%Timeout%" and attempt > 2'
            )
        conditions.append(_condition(match))
        at = match.end()
        if not match["and"]:
            return lambda result: all(condition(result) for condition in conditions)


def _condition(match: re.Match[str]) -> Callable[[Result], bool]:
    field = match["field"].lower()
    if field not in FIELDS:
        raise UsageError(f"a result has no field {match['field']!r}; it has {', '.join(FIELDS)}")
    value = next(found for found in (match["double"], match["single"], match["bare"]) if found is not None)
    get, op = FIELDS[field], " ".join(match["op"].lower().split())
    if op.endswith("like"):
        pattern = _pattern(value)
        return lambda result: (pattern.search(str(get(result))) is None) is op.startswith("not")
    compare = _ORDER[op]

    def holds(result: Result) -> bool:
        found = get(result)
        if not isinstance(found, int | float):
            return compare("" if found is None else str(found), value)
        try:
            return compare(found, float(value))
        except ValueError:
            raise UsageError(f"{field} is a number, and {value!r} is none") from None

    return holds


def _pattern(like: str) -> re.Pattern[str]:
    parts = {"%": ".*", "_": "."}
    body = "".join(parts.get(character, re.escape(character)) for character in like)
    anchored = "%" in like or "_" in like
    return re.compile(f"^{body}$" if anchored else body, re.IGNORECASE | re.DOTALL)
