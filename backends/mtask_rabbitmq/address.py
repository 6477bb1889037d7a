"""URLs of what lies at a RabbitMQ broker: `amqp://USER@HOST:PORT/VHOST/NAME?option=value`, and passwords.

A password is never in a URL. It comes from `MTASK_AMQP_PASSWORD`, or from a file in the form of netrc
(https://www.gnu.org/software/inetutils/manual/html_node/The-_002enetrc-file.html): `$NETRC`, or `~/.netrc`.
"""

from __future__ import annotations

import difflib
import math
import netrc
import os
import re
import ssl
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from mtask.errors import UsageError
from mtask.registry import shown

__all__ = ["PASSWORD", "Address", "Credentials", "parse"]

PASSWORD = "MTASK_AMQP_PASSWORD"
EXAMPLE = "it should look like amqp://me@rabbit.example.org/reads"
PORTS = {"amqp": 5672, "amqps": 5671}
LONGEST = 100
"""Characters of a name; RabbitMQ takes 255 bytes, and lanes and delays have more."""
GUEST = "guest"
"""The user, and its password, that a new broker has for connections from its own machine."""
CONSUMER_TIMEOUT_S = 1800.0
"""RabbitMQ's default (https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout)."""
HEARTBEAT_S = 30
"""The broker gives a connection up, and what it held to others, after two of these without a sign of life."""
OPTIONS = ("cafile", "certfile", "consumer_timeout_s", "heartbeat_s", "keyfile")
TLS_OPTIONS = ("cafile", "certfile", "keyfile")


class Credentials(NamedTuple):
    """Who asks for entry."""

    user: str
    password: str
    source: str
    """Where the password is from, for people."""

    def __repr__(self) -> str:
        return f"Credentials({self.user!r}, …, {self.source!r})"


class Address(NamedTuple):
    """Where a queue is."""

    scheme: str
    user: str
    """Empty: that of the netrc file, or guest."""
    host: str
    port: int
    vhost: str
    name: str
    consumer_timeout_s: float = CONSUMER_TIMEOUT_S
    """How long the broker lets a delivery go unacknowledged; infinite where that is switched off."""
    heartbeat_s: int = HEARTBEAT_S
    options: tuple[tuple[str, str], ...] = ()
    """Those about TLS."""

    @property
    def server(self) -> str:
        """For people."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    @property
    def url(self) -> str:
        """Without user and options; for people."""
        return self.shown(self.name)

    def shown(self, name: str) -> str:
        """The same of another queue there."""
        vhost = "" if self.vhost == "/" else f"/{quote(self.vhost, safe='')}"
        return f"{self.server}{vhost}/{name}"

    def credentials(self) -> Credentials:
        """Raises UsageError where no password is found, or its file can't be used."""
        if password := os.environ.get(PASSWORD):
            return Credentials(self.user or GUEST, password, PASSWORD)
        path, entry = _netrc_entry(self.host)
        if entry is not None:
            login, _, password = entry
            if password and self.user in ("", login):
                return Credentials(login or GUEST, password, str(path))
        if self.user in ("", GUEST):
            return Credentials(GUEST, GUEST, "the default of a new broker")
        raise UsageError(
            f"{self.server}: there is no password for the user {self.user!r}; set {PASSWORD}, or put it into {path} "
            f"(chmod 600) as a line `machine {self.host} login {self.user} password …`"
        )

    def tls(self) -> ssl.SSLContext | None:
        """None without TLS. Raises UsageError for files that can't be read."""
        if self.scheme != "amqps":
            return None
        options = {option: os.path.expanduser(path) for option, path in self.options}
        try:
            context = ssl.create_default_context(cafile=options.get("cafile"))
            if "certfile" in options:
                context.load_cert_chain(options["certfile"], options.get("keyfile"))
        except (OSError, ssl.SSLError) as error:
            paths = ", ".join(f"{option}={path}" for option, path in options.items())
            raise UsageError(
                f"{self.server}: the files of certificates can't be used ({paths}): {error}"
            ) from None
        return context


def parse(url: str) -> Address:
    """Raises UsageError for a URL that can't be used."""
    scheme, _, rest = url.partition(":")
    if re.search(
        ":.*@", rest, re.DOTALL
    ):  # whatever is in it: '/', '?' or '#' would end the host, for urlsplit
        raise UsageError(
            f"{scheme}://…: a password doesn't belong into a URL, where `ps` and histories show it; "
            f"set {PASSWORD}, or put it into ~/.netrc (an '@' elsewhere behind a ':' is written %40)"
        )
    whole, url = url, shown(url)
    try:
        parts = urlsplit(whole)
        port = parts.port
    except ValueError:  # its text may quote more than should be seen
        raise UsageError(f"{url!r} can't be read: look at its host and port; {EXAMPLE}") from None
    if parts.scheme not in PORTS or not parts.hostname or parts.fragment:
        raise UsageError(f"{url!r} is not the URL of a queue at RabbitMQ; {EXAMPLE}")
    *before, name = parts.path.removeprefix("/").split("/")
    if len(before) > 1:
        raise UsageError(
            f"{url!r} has too many parts: it is amqp://HOST/VHOST/NAME; a '/' in the name of a vhost is written %2F"
        )
    name = unquote(name)
    if not re.fullmatch(rf"[A-Za-z0-9_-]{{1,{LONGEST}}}", name):
        raise UsageError(
            f"{url!r}: a name has 1 to {LONGEST} letters, digits, '-' and '_', not {name!r}; {EXAMPLE}"
        )
    given = _options(url, parts.query)
    tls = tuple((option, given[option]) for option in TLS_OPTIONS if option in given)
    if tls and parts.scheme != "amqps":
        raise UsageError(f"{url!r}: {tls[0][0]} is for amqps://, which is amqp:// with TLS")
    if "keyfile" in given and "certfile" not in given:
        raise UsageError(f"{url!r}: keyfile is the key of a certfile, which isn't given")
    timeout_s = _number(url, "consumer_timeout_s", given, CONSUMER_TIMEOUT_S, least=10, most=1e9)
    return Address(
        parts.scheme,
        unquote(parts.username or ""),
        parts.hostname,
        port or PORTS[parts.scheme],
        unquote(before[0]) if before else "/",
        name,
        timeout_s or math.inf,
        int(_number(url, "heartbeat_s", given, HEARTBEAT_S, least=5, most=3600)),
        tls,
    )


def _options(url: str, query: str) -> dict[str, str]:
    given = dict(parse_qsl(query, keep_blank_values=True))
    for option in given:
        if option not in OPTIONS:
            near = difflib.get_close_matches(option, OPTIONS, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(OPTIONS)}"
            raise UsageError(f"{url.partition('?')[0]!r}: unknown option {option!r}; {hint}")
    return given


def _number(
    url: str, option: str, given: dict[str, str], default: float, *, least: float, most: float
) -> float:
    """0 is taken for what is switched off."""
    try:
        value = float(given.get(option, default))
    except ValueError:
        value = math.nan
    if value != 0 and not least <= value <= most:
        raise UsageError(
            f"{url!r}: {option} is a number of seconds from {least:g} on, or 0 for none, not {given[option]!r}"
        )
    return value


def _netrc_entry(host: str) -> tuple[Path, tuple[str, str | None, str | None] | None]:
    """The file, and what it says of this host. Raises UsageError for one that others can read, or nobody."""
    path = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    try:
        mode = path.stat().st_mode
        found = netrc.netrc(str(path)).authenticators(host)
    except FileNotFoundError:
        return path, None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: it can't be read: {error}") from None
    except netrc.NetrcParseError as error:  # its text may quote what it stumbled over
        raise UsageError(f"{path}, line {error.lineno}: it is not in the form of a netrc file") from None
    if found is not None and mode & 0o077:
        raise UsageError(f"{path}: others may read the passwords in it; do `chmod 600 {path}`")
    return path, found
