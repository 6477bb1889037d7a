"""Files at a place, which is a folder or any URL of fsspec: s3://bucket/lambda, az://container/lambda, …"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path


def put(at: str, files: Mapping[str, bytes]) -> None:
    """Write each file, by its name below `at`."""
    if (folder := _folder(at)) is None:
        store, root = _store(at)
        store.pipe({f"{root}/{name}": content for name, content in files.items()})
        return
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def get(at: str, names: Iterable[str]) -> dict[str, bytes]:
    """The content of each file. Raises FileNotFoundError."""
    if (folder := _folder(at)) is None:
        store, root = _store(at)
        paths = {name: f"{root}/{name}" for name in names}
        found = store.cat(list(paths.values()), on_error="return")
        if lost := [name for name, path in paths.items() if isinstance(found[path], Exception)]:
            raise FileNotFoundError(f"{at}/{lost[0]} can't be read: {found[paths[lost[0]]]!r}")
        return {name: found[path] for name, path in paths.items()}
    return {name: (folder / name).read_bytes() for name in names}


def _folder(at: str) -> Path | None:
    path = at.removeprefix("file://")
    return None if "://" in path else Path(path)


def _store(at: str):
    import fsspec

    return fsspec.core.url_to_fs(at)
