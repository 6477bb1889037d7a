"""Packs what workers elsewhere need into one file: mtask, what it imports, and the user's modules.

The file is a tar archive, gzipped, of folders and modules for Python's search path. Compiled extensions are in it
(msgspec is one), so it runs only on the same version of Python and the same kind of machine: see `Shipped.python`.
"""

from __future__ import annotations

import gzip
import importlib
import io
import os
import platform
import re
import sys
import tarfile
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import NamedTuple

from mtask.errors import UsageError

__all__ = ["MOST_BYTES", "Shipped", "pack", "python_here"]

MOST_BYTES = 100 << 20
"""Of the user's own files, before they are packed."""
_NOT_OURS = ("__pycache__", "node_modules", "site-packages")


class Shipped(NamedTuple):
    """What is in the file."""

    python: str
    """As `python_here`: what the other side must have."""
    modules: tuple[str, ...]
    """The user's own files, relative."""
    size_bytes: int


def python_here() -> str:
    """As in `CPython-3.11-x86_64`."""
    return (
        f"{platform.python_implementation()}-{sys.version_info[0]}.{sys.version_info[1]}-{platform.machine()}"
    )


def pack(target: Path, folder: Path, *, packages: Iterable[str] = (), extras: Iterable[str] = ()) -> Shipped:
    """Write `target`: mtask, these packages (of backends), what they and these extras of mtask import, and the modules
    in `folder`. The same content makes the same bytes.

    Raises UsageError for what can't be packed, and says how to do without.
    """
    files = dict[str, Path | bytes]()
    for name in ("mtask", *packages):
        files.update(_of_package(name))
    files.update(_metadata("mtask"))
    for name in _needed("mtask", frozenset(extras)):
        files.update(_of_distribution(name))
    own = dict(_own(folder))
    files.update({name: path for name, path in own.items() if name not in files})
    _write(target, files)
    return Shipped(python_here(), tuple(sorted(own)), target.stat().st_size)


def _of_package(name: str) -> Iterator[tuple[str, Path]]:
    top = Path(importlib.import_module(name).__file__ or "").parent
    for path in sorted(top.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield f"{name}/{path.relative_to(top)}", path


def _needed(name: str, extras: frozenset[str]) -> list[str]:
    """All distributions that this one needs, itself left out, as far as they are installed."""
    found = dict[str, None]()
    todo = [(name, extras)]
    while todo:
        name, extras = todo.pop()
        for wanted, with_extras in _requirements(_distribution(name), extras):
            if wanted not in found and _installed(wanted):
                found[wanted] = None
                todo.append((wanted, with_extras))
    return sorted(found)


def _requirements(dist: Distribution, extras: frozenset[str]) -> Iterator[tuple[str, frozenset[str]]]:
    """Those of other platforms may be among them; they aren't installed here."""
    for line in dist.requires or ():
        requirement, _, marker = line.partition(";")
        chosen = re.findall(r"""extra\s*==\s*["']([^"']+)""", marker)
        if chosen and not extras & set(chosen):
            continue
        parts = re.match(r"\s*([\w.-]+)\s*(?:\[([^]]*)\])?", requirement)
        if parts:
            yield (
                _normal(parts[1]),
                frozenset(each.strip() for each in (parts[2] or "").split(",") if each.strip()),
            )


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def _distribution(name: str) -> Distribution:
    try:
        return distribution(name)
    except PackageNotFoundError:
        raise UsageError(
            f"{name} was not installed by pip in {sys.prefix}, so what it needs can't be shipped; install it, or do "
            "without --ship"
        ) from None


def _of_distribution(name: str) -> Iterator[tuple[str, Path]]:
    dist = _distribution(name)
    if dist.files is None:
        raise UsageError(
            f"{name} was not installed by pip, and doesn't say which files it has: install it into a virtual environment "
            "with pip, or do without --ship"
        )
    for file in dist.files:
        path = Path(str(dist.locate_file(file)))
        if ".." not in file.parts and not file.is_absolute() and file.suffix != ".pyc" and path.is_file():
            yield str(file), path


def _metadata(name: str) -> Iterator[tuple[str, bytes]]:
    """So that mtask can ship itself on from there, too."""
    dist = _distribution(name)
    for file in ("METADATA", "entry_points.txt"):
        if text := dist.read_text(file):
            yield f"{name}-{dist.version}.dist-info/{file}", text.encode()


def _own(folder: Path) -> Iterator[tuple[str, Path]]:
    """Modules, and whatever lies in packages."""
    total = 0
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".")
            and name not in _NOT_OURS
            and not Path(here, name, "pyvenv.cfg").exists()
        )
        package = "__init__.py" in names
        for name in sorted(names):
            path = Path(here, name)
            if name.startswith(".") or not path.is_file():  # as an editor's lock, which is a link to nowhere
                continue
            if name.endswith(".py") or package:
                total += path.stat().st_size
                if total > MOST_BYTES:
                    raise UsageError(
                        f"the modules below {folder} are more than {MOST_BYTES >> 20} MB (as {path}): go to a folder that "
                        "holds only what the tasks import, or do without --ship"
                    )
                yield str(path.relative_to(folder)), path


def _write(target: Path, files: dict[str, Path | bytes]) -> None:
    with (
        target.open("wb") as raw,
        gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for name in sorted(files):
            entry = tarfile.TarInfo(name)
            file = files[name]
            content = file if isinstance(file, bytes) else file.read_bytes()
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, io.BytesIO(content))
