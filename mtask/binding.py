"""A function, and how a row becomes a call of it."""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.util
import inspect
import os
import pkgutil
import sys
import traceback
import types
import typing
from collections.abc import Callable, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import msgspec

from mtask.codec import CONVERSION_ERRORS, Codec, float_back
from mtask.convert import UnsupportedAnnotationError, codec_of
from mtask.errors import UsageError
from mtask.model import ID_COLUMN
from mtask.requirements import REQUIREMENT_COLUMNS
from mtask.sources.base import Chunk, shorten

__all__ = ["Binder", "hints_of", "resolve", "scope_of", "user_traceback"]

Function = Callable[..., Any]


# Finding the function.


def resolve(target: str) -> Function:
    """Import the function that "module:function" or "path/to/file.py:function" names.

    The current folder is put first in sys.path if it isn't there; of a file, the file's folder, as
    `python file.py` does. `function` may be dotted: "module:Class.method". Raises UsageError.
    """
    place, colon, name = target.rpartition(":")
    if not colon or not place or not name:
        dotted, _, last = target.rpartition(".")
        hint = f"; did you mean {dotted}:{last}?" if dotted and last != "py" else ""
        raise UsageError(
            f"{target!r} doesn't name a function; write module:function or file.py:function{hint}"
        )
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    is_file = place.endswith(".py") or os.sep in place
    module = _load_file(place) if is_file else _load_module(place)
    found: Any = module
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise UsageError(_no_function(place, found, part)) from None
    if not callable(found):
        raise UsageError(f"{target} is not a function, but {shorten(found)} ({type(found).__name__})")
    return typing.cast(Function, found)


def user_traceback(error: BaseException) -> str:
    """The traceback without the frames of mtask and of Python's import machinery."""
    ours = tuple(os.path.dirname(file) + os.sep for file in (__file__, importlib.__file__))
    lines = ["Traceback (most recent call last):\n"]
    for frame in traceback.extract_tb(error.__traceback__):
        if not frame.filename.startswith((*ours, "<frozen importlib")):
            lines += traceback.format_list([frame])
    return "".join([*lines[: len(lines) if len(lines) > 1 else 0], *traceback.format_exception_only(error)])


def _load_module(name: str) -> types.ModuleType:
    try:
        module: types.ModuleType = _imported(name, lambda: importlib.import_module(name))
        return module
    except ModuleNotFoundError as error:
        missing = error.name or name
        entries = "\n".join(f"    {entry or os.getcwd()}" for entry in sys.path)
        raise UsageError(f"no module {missing!r}{_near_module(missing)} Looked in:\n{entries}") from None


def _load_file(place: str) -> types.ModuleType:
    path = Path(place).resolve()
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [each.name for each in path.parent.glob("*.py")], 1)
        hint = f"; did you mean {os.path.join(os.path.dirname(place), near[0])}?" if near else ""
        raise UsageError(f"no file {place!r}{hint}")
    # Its own name, so that what it defines can be found again; but never that of another module.
    loaded = sys.modules.get(path.stem)
    if loaded is not None and getattr(loaded, "__file__", None) == str(path):
        return loaded
    taken = loaded is not None or path.stem in sys.stdlib_module_names or not path.stem.isidentifier()
    name = f"mtask_file_{path.stem}" if taken else path.stem
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{place!r} can't be imported; its name should end in .py")
    module, loader = importlib.util.module_from_spec(spec), spec.loader
    sys.modules[name] = module
    try:
        _imported(place, lambda: loader.exec_module(module))
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _imported(name: str, load: Callable[[], Any]) -> Any:
    """Runs `load`; an error in the module becomes UsageError, but not that there is no such module."""
    try:
        return load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            raise
        hint = ""
        if isinstance(error, SystemExit):
            hint = '\nPut what should run only as a script below: if __name__ == "__main__":'
        elif isinstance(error, ModuleNotFoundError):
            hint = f"\nIs {error.name!r} installed in this environment? ({sys.executable})"
        raise UsageError(f"{name} can't be imported: {user_traceback(error).rstrip()}{hint}") from None


def _near_module(missing: str) -> str:
    parent, _, last = missing.rpartition(".")
    where = getattr(sys.modules.get(parent), "__path__", None) if parent else None
    if parent and where is None:
        return f" ({parent} is a module, not a package)."
    names = {each.name for each in pkgutil.iter_modules(where)}
    near = difflib.get_close_matches(last, names, 1)
    return f"; did you mean {parent + '.' if parent else ''}{near[0]}?" if near else "."


def _no_function(place: str, holder: Any, name: str) -> str:
    names = [
        each for each in dir(holder) if not each.startswith("_") and callable(getattr(holder, each, None))
    ]
    own = [
        each
        for each in names
        if getattr(getattr(holder, each), "__module__", "") == getattr(holder, "__name__", "")
    ]
    near = difflib.get_close_matches(name, names, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    where = (
        place if isinstance(holder, types.ModuleType) else f"{place}:{getattr(holder, '__name__', holder)}"
    )
    defines = f"{'' if near else '.'} It defines {', '.join(own[:10])}" if own else ""
    return f"{where} has no function {name!r}{hint}{defines}"


# Calling it.


class Binder:
    """Checks once that a function can take the columns, then turns rows into calls.

    The column `id` names the task; a function gets it only if it has a parameter `id` or takes
    `**kwargs`. So it is with columns that say what a task needs. Parameters with defaults need no column. Of an `async` function, each call runs in
    an event loop of its own (asyncio.run).

    Raises UsageError when the function can't take the columns.
    """

    def __init__(
        self, function: Function, columns: Sequence[str], textual: bool = False, *, spare: Sequence[str] = ()
    ) -> None:
        """`spare`: columns that the function needn't take."""
        self.spare = {ID_COLUMN, *REQUIREMENT_COLUMNS, *spare}
        self.function, self.columns, self.textual = function, tuple(columns), textual
        self._name = getattr(function, "__qualname__", type(function).__qualname__)
        try:
            self.signature = inspect.signature(function)
        except (TypeError, ValueError):
            raise UsageError(f"{self._name} has no signature; call it from a function of your own") from None
        self._positional: list[tuple[int, Any]] = []
        """(index of the column, or -1 for a constant; the constant)"""
        self._keywords: list[tuple[str, int]] = []
        self._match()
        self._codecs = self._choose_codecs()

    def wire(self, chunk: Chunk) -> Chunk:
        """The chunk as it goes over the wire, each value checked and converted by its annotation.

        Raises InputError with line and column.
        """
        columns = [
            self._wire_column(chunk, at, codec, name)
            for at, (codec, name) in enumerate(zip(self._codecs, self.columns, strict=True))
        ]
        return Chunk(chunk.lines, columns, chunk.source)

    def call_with(self, row: list[Any]) -> Any:
        """Call the function with one row from the wire; `caller` is faster for many."""
        return self.caller()(row)

    def caller(self) -> Callable[[list[Any]], Any]:
        """What calls the function with a row from the wire (the values in the order of the columns)."""
        call = self._arranged()
        used = {at for at, _ in self._positional} | {at for _, at in self._keywords}
        decodes = [
            (at, codec.decode)
            for at, codec in enumerate(self._codecs)
            if at in used and codec.decode is not None
        ]
        if not decodes:
            return call
        if all(decode is float_back for _, decode in decodes):
            floats = [at for at, _ in decodes]

            def call_with_floats(row: list[Any]) -> Any:
                for at in floats:
                    if type(row[at]) is str:
                        row = row.copy()
                        row[at] = float(row[at])
                return call(row)

            return call_with_floats

        def call_decoded(row: list[Any]) -> Any:
            row = row.copy()
            for at, decode in decodes:
                row[at] = decode(row[at])
            return call(row)

        return call_decoded

    def _arranged(self) -> Callable[[list[Any]], Any]:
        function, order, keywords = self._synchronous(), self._positional, self._keywords
        indexes = [at for at, _ in order]
        if keywords or -1 in indexes:

            def call_by_name(row: list[Any]) -> Any:
                arguments = [constant if at < 0 else row[at] for at, constant in order]
                return function(*arguments, **{name: row[at] for name, at in keywords})

            return call_by_name
        if indexes == list(range(len(self.columns))):
            return lambda row: function(*row)
        if len(indexes) < 2:
            at = indexes[0] if indexes else 0
            return (lambda row: function(row[at])) if indexes else (lambda _: function())
        pick = itemgetter(*indexes)
        return lambda row: function(*pick(row))

    def _synchronous(self) -> Function:
        function = self.function
        called = getattr(function, "__call__", None)  # noqa: B004
        if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called):
            import asyncio

            return lambda *args, **kwargs: asyncio.run(function(*args, **kwargs))
        return function

    def _match(self) -> None:
        at_of = {name: at for at, name in enumerate(self.columns)}
        parameters = list(self.signature.parameters.values())
        missing, taken, gap, takes_all = [], set(), False, False
        for number, parameter in enumerate(parameters):
            name, kind = parameter.name, parameter.kind
            if kind is parameter.VAR_POSITIONAL:
                gap = True
            elif kind is parameter.VAR_KEYWORD:
                takes_all = True
            elif name not in at_of:
                if parameter.default is parameter.empty:
                    missing.append(name)
                elif kind is parameter.POSITIONAL_ONLY and any(
                    later.kind is kind and later.name in at_of for later in parameters[number + 1 :]
                ):
                    self._positional.append((-1, parameter.default))
                else:
                    gap = True
            else:
                taken.add(name)
                if kind is parameter.KEYWORD_ONLY or (gap and kind is parameter.POSITIONAL_OR_KEYWORD):
                    self._keywords.append((name, at_of[name]))
                else:
                    self._positional.append((at_of[name], None))
        extra = [name for name in self.columns if name not in taken]
        if takes_all:
            clash = {each.name for each in parameters if each.kind is each.POSITIONAL_ONLY}
            self._keywords += [(name, at_of[name]) for name in extra if name not in clash]
            extra = []
        extra = [name for name in extra if name not in self.spare]
        if missing or extra:
            raise UsageError(self._mismatch(missing, extra))

    def _mismatch(self, missing: list[str], extra: list[str]) -> str:
        lines = [f"{self._name} can't be called with the columns of the tasks"]
        for name in missing:
            near = difflib.get_close_matches(name.lower(), [each.lower().strip() for each in extra], 1)
            alike = [each for each in extra if near and each.lower().strip() == near[0]]
            lines.append(
                f"    no column for the parameter {name!r}"
                + (f"; rename the column {alike[0]!r}?" if alike else "")
            )
            if name in ("self", "cls"):
                lines[-1] += "; a method needs an object: name a function, or make it a staticmethod"
        if extra:
            lines.append(
                f"    no parameter for the column{'s' * (len(extra) > 1)} {', '.join(map(repr, extra))}"
            )
        lines.append(f"    the function:  {self._name}{self.signature}")
        lines.append(f"    the columns:   {', '.join(self.columns)}")
        return "\n".join(lines)

    def _choose_codecs(self) -> list[Codec]:
        hints = hints_of(self.function, self.signature)
        codecs = []
        rest = next(
            (each.name for each in self.signature.parameters.values() if each.kind is each.VAR_KEYWORD), ""
        )
        for name in self.columns:
            parameter = self.signature.parameters.get(name)
            if parameter is None or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                # id, which the function doesn't take, stays as it is
                annotation = hints.get(rest, Any) if rest else Any
            else:
                annotation = hints.get(name, Any)
                if parameter.default is None and annotation is not Any:
                    annotation = typing.Union[annotation, None]  # noqa: UP007
            try:
                codecs.append(codec_of(annotation))
            except UnsupportedAnnotationError as error:
                raise UsageError(
                    f"{self._name}: the parameter {name!r} can't come from a file: {error}. Annotate what "
                    "the file holds (str, float, list[float], a dataclass, …), or nothing, and convert inside"
                ) from None
        return codecs

    def _wire_column(self, chunk: Chunk, at: int, codec: Codec, name: str) -> Sequence[Any]:
        column = chunk.columns[at]
        convert_all, convert = (
            (codec.parse_all, codec.parse) if self.textual else (codec.check_all, codec.check)
        )
        if convert_all is not None:
            try:
                return convert_all(column)
            except CONVERSION_ERRORS:
                pass  # the loop below finds the row, or converts what needs more care
        converted = []
        for row, value in enumerate(column):
            try:
                converted.append(convert(value))
            except CONVERSION_ERRORS as error:
                raise chunk.error(_complaint(value, codec, error), row, name) from None
        return converted


def _complaint(value: Any, codec: Codec, error: Exception) -> str:
    problem = f"expected {codec.expected}, got {shorten(value)}"
    if value == "" or value is None:
        return f"{problem}; annotate the parameter `… | None` if there may be nothing"
    if isinstance(error, msgspec.MsgspecError):
        return f"{problem}: {error}"
    if isinstance(error, OverflowError):
        return f"{problem}, which is too large"
    if codec.expected.startswith("a number") and isinstance(value, str) and value.count(",") == 1:
        return f"{problem}; write a decimal point, not a comma"
    return problem


def scope_of(function: Function) -> dict[str, Any]:
    """The names of the module in which it was written."""
    while isinstance(function, functools.partial):
        function = function.func
    owner: Any = inspect.unwrap(function)
    if isinstance(owner, type):
        owner = getattr(owner, "__init__" if "__init__" in vars(owner) else "__new__")
    elif not inspect.isroutine(owner):
        owner = type(owner).__call__
    scope: dict[str, Any] = getattr(inspect.unwrap(getattr(owner, "__func__", owner)), "__globals__", {})
    return scope


def hints_of(function: Function, signature: inspect.Signature) -> dict[str, Any]:
    """The parameters' annotations; one that can't be resolved counts as none."""
    scope = scope_of(function)
    hints: dict[str, Any] = {}
    for name, parameter in signature.parameters.items():
        if parameter.annotation is parameter.empty:
            continue
        holder = types.SimpleNamespace(__annotations__={name: parameter.annotation})
        try:
            hints |= typing.get_type_hints(holder, globalns=scope, include_extras=True)
        except Exception:
            continue
    return hints
