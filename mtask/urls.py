"""Places by URL: file systems of fsspec (`pip install 'mtask[urls]'`), imported when one is named.

A place without `://` is a path on this machine, and needs nothing.
"""

from __future__ import annotations

import re
from typing import Any

from mtask.errors import UsageError

__all__ = ["filesystem", "is_url", "require", "said_by", "scheme_of", "shown"]

PACKAGES = {
    "abfs": "adlfs",
    "abfss": "adlfs",
    "az": "adlfs",
    "gcs": "gcsfs",
    "gs": "gcsfs",
    "http": "aiohttp",
    "https": "aiohttp",
    "s3": "s3fs",
    "s3a": "s3fs",
}
"""What fsspec itself needs for them."""
_WHOLE = {"headers": {"Accept-Encoding": "identity"}}
"""Asked of web servers: a file as it is, so that it has the size that they say."""
_SECRETS = re.compile(r"(?<=://)[^/@\s'\"]+@|(?<=\?)[^\s'\")]+")


def is_url(place: str) -> bool:
    return "://" in place


def scheme_of(place: str) -> str:
    """Empty for a path."""
    return place.partition("://")[0].lower() if is_url(place) else ""


def filesystem(url: str) -> tuple[Any, str]:
    """An fsspec file system, and the path in it. Raises UsageError for what isn't installed, or is no URL."""
    scheme = scheme_of(url)
    require(scheme)
    import fsspec

    try:
        found, path = fsspec.core.url_to_fs(url, **(_WHOLE if scheme in ("http", "https") else {}))
    except ImportError as error:
        raise UsageError(_install(scheme, str(error))) from None
    return found, path


def require(scheme: str) -> None:
    """Raises UsageError when URLs of this scheme can't be used here, for want of a package or at all."""
    if not scheme:
        return
    try:
        import fsspec
    except ModuleNotFoundError:
        raise UsageError(_install(scheme, "fsspec is not installed")) from None
    try:
        fsspec.get_filesystem_class(scheme.rpartition("::")[2])
    except ImportError as error:
        raise UsageError(_install(scheme, str(error))) from None
    except ValueError as error:
        raise UsageError(f"{scheme}://: {error}") from None


def _install(scheme: str, why: str) -> str:
    package = PACKAGES.get(scheme, "")
    needed = "'mtask[urls]'" + (f" {package}" if package and package != "aiohttp" else "")
    return f"{scheme}:// can't be used: {why}; pip install {needed}"


def shown(text: str) -> str:
    """Without passwords and signatures, which URLs may hold."""
    return _SECRETS.sub("…", text)


def said_by(error: BaseException) -> str:
    """What a file system has to say, in one line: they raise what they like."""
    if isinstance(error, FileNotFoundError) and not error.strerror:
        cause = error.__cause__
        return "it is not there" + (f" ({shown(str(cause))})" if cause is not None and str(cause) else "")
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return shown(" ".join(said.split())) or type(error).__name__
