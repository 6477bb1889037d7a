"""What mkdocs puts into the pages from the code: public names, limits of the backends, changelog, colours."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import itertools
import math
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import msgspec
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pygments.formatters import HtmlFormatter

import mtask
from mtask import queue
from mtask.queue import QueueLimits
from mtask.registry import BUILTIN

ROOT = Path(__file__).resolve().parent.parent


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").replace("](docs/", "](")
    colours = HtmlFormatter(style="default").get_style_defs(".codehilite")
    files.append(File.generated(config, "changelog.md", content=changelog))
    files.append(File.generated(config, "code.css", content=colours))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    for marker, content in GENERATED.items():
        if marker in markdown:
            markdown = markdown.replace(marker, content())
    return markdown


def public_names() -> str:
    """What `import mtask` gives, each where it is defined; errors and words have sections of their own."""
    objects = [getattr(mtask, name) for name in mtask.__all__]
    defined = [item for item in objects if inspect.isclass(item) or inspect.isfunction(item)]
    return "\n".join(
        f"::: {item.__module__}.{item.__qualname__}\n    options:\n      heading_level: 3\n"
        for item in defined
        if item.__module__ not in {"mtask.errors", "mtask.model"}
    )


def limits_table() -> str:
    """One row a field of `QueueLimits`, one column a backend."""
    backends = queue_limits()
    rows = [["", *(f"`{schemes}`" for schemes in backends)], ["---"] * (1 + len(backends))]
    for field, meaning in meanings().items():
        values = (show(field, getattr(limits, field)) for limits in backends.values())
        rows.append([f"`{field}`<br>{meaning}", *values])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def queue_limits() -> dict[str, QueueLimits]:
    """The class attribute `limits` of each queue of a backend that is here, by the backend's schemes.

    Raises LookupError for a backend whose limits can't be found, so that none is left out silently.
    """
    schemes = defaultdict(list)
    for scheme, (module, _) in BUILTIN.items():
        if importlib.util.find_spec(module) is not None:
            schemes[module].append(f"{scheme}:")
    limits_by_names = {}
    for module, names in schemes.items():
        backend = importlib.import_module(module)
        if not hasattr(backend, "open_queue"):
            continue
        limits = [
            found
            for value in (getattr(backend, name) for name in backend.__all__)
            if inspect.isclass(value) and (found := limits_of(value)) is not None
        ]
        if len(limits) != 1:
            raise LookupError(
                f"{module} should export one class with QueueLimits as its attribute `limits`, or a property of this name "
                "and LIMITS beside it"
            )
        limits_by_names[" ".join(names)] = limits[0]
    return limits_by_names


def limits_of(queue: type) -> QueueLimits | None:
    """Of a queue that learns some of them from its server, those that it begins with."""
    limits = getattr(queue, "limits", None)
    if isinstance(limits, property):
        limits = getattr(sys.modules[queue.__module__], "LIMITS", None)
    return limits if isinstance(limits, QueueLimits) else None


def meanings() -> dict[str, str]:
    """The fields of `QueueLimits`, each with the docstring below it."""
    tree = ast.parse(inspect.getsource(queue))
    body = next(
        node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "QueueLimits"
    )
    texts = dict.fromkeys((field.name for field in msgspec.structs.fields(QueueLimits)), "")
    for node, following in itertools.pairwise(body):
        match node, following:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                texts[name] = " ".join(text.split())
    return texts


def show(field: str, value: Any) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case float() if math.isinf(value):
            return "no limit"
        case int() if field.endswith("_bytes"):
            return f"{value / 2**20:g} MiB" if value >= 2**20 else f"{value / 2**10:g} KiB"
        case float() | int() if field.endswith("_s"):
            return f"{value:,g} s"
        case _:
            return f"{value:,}"


GENERATED = {"<!-- limits -->": limits_table, "<!-- public names -->": public_names}
