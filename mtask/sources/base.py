"""What a source is, and what all of them share: chunks, opened files, encoded rows."""

from __future__ import annotations

import gzip
import io
import math
import os
import stat
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import msgspec

from mtask.errors import InputError, UsageError
from mtask.values import has_nonfinite, to_json_able

__all__ = ["CHUNK_ROWS", "Bytes", "Chunk", "Source", "check_columns", "encode_rows", "open_bytes", "shorten"]

CHUNK_ROWS = 4096
CHUNK_BYTES = 8 << 20
"""Rows so large that `CHUNK_ROWS` of them would take more than this are read fewer at a time."""
_READ_BYTES = 256 * 1024
_ZSTD_READ_BYTES = 32 * 1024


@dataclass(frozen=True, slots=True)
class Chunk:
    """A few thousand rows, column by column."""

    lines: Sequence[int]
    """1-based line of the file on which each row begins; the number of the row where there are no lines."""
    columns: Sequence[Sequence[Any]]
    """One for each column of the source, all as long as `lines`."""
    source: str = ""
    """The source's name, for errors."""

    def __len__(self) -> int:
        return len(self.lines)

    def error(self, problem: str, row: int, column: str | None = None) -> InputError:
        """An error about the row with this offset in the chunk, ready to be raised."""
        return InputError(problem, source=self.source, line=self.lines[row], column=column)


class Source(Protocol):
    """Rows of parameters. Reading holds a few thousand rows at a time, however many there are."""

    @property
    def name(self) -> str:
        """For people."""

    @property
    def columns(self) -> tuple[str, ...]: ...

    @property
    def textual(self) -> bool:
        """Every value is text, as in CSV, whatever it stands for."""

    @property
    def repeatable(self) -> bool:
        """`chunks` may be called again, and begins again. Not so for standard input and pipes."""

    def chunks(self) -> Iterator[Chunk]:
        """All rows. Raises InputError at the first that can't be read."""


def encode_rows(chunk: Chunk, columns: Sequence[str]) -> list[bytes]:
    """Each row of the chunk as a JSON array, the form in which a block holds it.

    Raises InputError, with line and column, for a value that JSON can't say; a nan that nothing
    has turned into text is one, because JSON encoders make a silent null of it.
    """
    encode = _ENCODER.encode
    try:
        rows = list(map(encode, zip(*chunk.columns, strict=True)))
    except (TypeError, ValueError, RecursionError, OverflowError):
        rows = None
    if rows is not None and b"null" not in b"".join(rows):
        return rows
    for offset, row in enumerate(zip(*chunk.columns, strict=True)):
        if rows is not None and b"null" not in rows[offset]:
            continue
        for name, value in zip(columns, row, strict=True):
            if value is not None and (problem := _unsayable(value)):
                raise chunk.error(problem, offset, name)
    assert rows is not None
    return rows


def _unsayable(value: Any) -> str:
    try:
        encoded = _ENCODER.encode(value)
    except UnicodeEncodeError:
        return f"{shorten(value)} has half of a surrogate pair in it, which is not text"
    except (TypeError, ValueError, RecursionError, OverflowError):
        return f"a value of type {type(value).__name__} can't be sent: {shorten(value)}"
    if b"null" in encoded and has_nonfinite(value):
        if isinstance(value, float) and not math.isfinite(value):
            return f"{value!r} has no JSON form: annotate the function's parameter `float`, or give None"
        return f"there is a nan or inf inside {shorten(value)}, which has no JSON form"
    return ""


_ENCODER = msgspec.json.Encoder(enc_hook=to_json_able)


def check_columns(columns: Sequence[str], source: str, line: int | None = 1) -> tuple[str, ...]:
    """The columns as a tuple; raises InputError for an empty or a repeated name."""
    seen: dict[str, int] = {}
    for number, name in enumerate(columns, 1):
        if not name.strip():
            hint = "; if pandas wrote it: to_csv(…, index=False)" if number == 1 else ""
            raise InputError(
                f"column number {number} has no name{hint}; the first line names the columns: "
                f"{shorten(','.join(columns))}",
                source=source,
                line=line,
            )
        if name in seen:
            raise InputError(
                f"columns {seen[name]} and {number} have the same name; rename one of them",
                source=source,
                line=line,
                column=name,
            )
        seen[name] = number
    return tuple(columns)


def shorten(value: Any, most: int = 60) -> str:
    """The value's repr, for an error: the beginning of it where it is long."""
    if isinstance(value, (str, bytes)):
        return repr(value) if len(value) <= most else f"{value[:most]!r}…"
    try:
        text = repr(value)
    except Exception:
        text = object.__repr__(value)
    return text if len(text) <= most else f"{text[:most]}…"


class Bytes(io.RawIOBase):
    """A byte stream that knows its line, refuses NUL bytes, and turns a broken file into InputError."""

    def __init__(self, stream: BinaryIO, read: Callable[[], bytes], name: str, *, refuse_nul: bool) -> None:
        self._stream, self._read, self._name, self._refuse_nul = stream, read, name, refuse_nul
        self._lines_before = self._lines_after = 0
        self._held = b""
        self._after_cr = False
        self.total = 0
        """Bytes that were handed out."""

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closed:
            super().close()
            if self._stream is not sys.stdin.buffer:
                self._stream.close()

    def read1(self, size: int = -1) -> bytes:
        """The next bytes; io.TextIOWrapper reads with this."""
        data = self._held or self._next()
        if 0 <= size < len(data):
            data, self._held = data[:size], data[size:]
        else:
            self._held = b""
        self.total += len(data)
        self._lines_before = self._lines_after
        self._lines_after += self._breaks(data)
        if self._refuse_nul and b"\0" in data:
            line = self.line_of(data, data.index(b"\0"))
            raise InputError("a NUL byte; this is not a text file", source=self._name, line=line)
        return data

    def readinto(self, buffer: Any) -> int:
        data = self.read1(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def line_of(self, data: bytes, offset: int) -> int:
        """1-based line of an offset in the piece that was read last."""
        return self._lines_before + _breaks(data[:offset]) + 1

    def _next(self) -> bytes:
        try:
            return self._read()
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            problem = (
                "cut off in the middle" if isinstance(error, EOFError) else f"can't be decompressed ({error})"
            )
            raise InputError(f"the compressed file is {problem}", source=self._name) from None
        except OSError as error:
            raise InputError(f"can't be read: {error.strerror or error}", source=self._name) from None

    def _breaks(self, data: bytes) -> int:
        count = _breaks(data)
        if self._after_cr and data.startswith(b"\n"):
            count -= 1
        self._after_cr = data.endswith(b"\r")
        return count


def _breaks(data: bytes) -> int:
    count = data.count(b"\n")
    if b"\r" in data:
        count += data.count(b"\r") - data.count(b"\r\n")
    return count


def open_bytes(path: str | os.PathLike[str], *, refuse_nul: bool = False) -> Bytes:
    """Open a file, decompressing it if its name ends in .gz or .zst. Raises InputError, UsageError."""
    name = os.fspath(path)
    try:
        stream = open(path, "rb", buffering=0)
    except FileNotFoundError:
        raise InputError(f"no such file{_near(Path(path))}", source=name) from None
    except IsADirectoryError:
        raise InputError("is a directory; give a file", source=name) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"can't be opened: {reason}", source=name) from None
    if name.endswith(".gz"):
        unzipped = gzip.GzipFile(fileobj=io.BufferedReader(stream, _READ_BYTES), mode="rb")
        return Bytes(stream, lambda: unzipped.read1(_READ_BYTES), name, refuse_nul=refuse_nul)
    if name.endswith(".zst"):
        try:
            read = _zstd_reader(stream, name)
        except UsageError:
            stream.close()
            raise
        return Bytes(stream, read, name, refuse_nul=refuse_nul)
    return Bytes(stream, lambda: stream.read(_READ_BYTES) or b"", name, refuse_nul=refuse_nul)


def stream_bytes(stream: BinaryIO, name: str, *, refuse_nul: bool = False) -> Bytes:
    """The same for a stream that is open already."""
    read1 = getattr(stream, "read1", stream.read)
    return Bytes(stream, lambda: read1(_READ_BYTES), name, refuse_nul=refuse_nul)


def is_regular(path: str | os.PathLike[str]) -> bool:
    """Can the file be read twice? A pipe can't."""
    return stat.S_ISREG(os.stat(path).st_mode)


def _zstd_reader(stream: io.FileIO, name: str) -> Callable[[], bytes]:
    # zstandard's own stream reader takes a file that was cut off for a shorter one.
    try:
        import zstandard
    except ModuleNotFoundError:
        raise UsageError(
            f"{name}: reading .zst files needs the package zstandard: pip install 'mtask[files]'"
        ) from None
    decompressor = zstandard.ZstdDecompressor(max_window_size=2**31)
    frame = None
    rest = b""

    def read() -> bytes:
        nonlocal frame, rest
        while True:
            data = rest or stream.read(_ZSTD_READ_BYTES) or b""
            rest = b""
            if not data:
                if frame is not None:
                    raise EOFError
                return b""
            if frame is None:
                frame = decompressor.decompressobj()
            try:
                out = frame.decompress(data)
            except zstandard.ZstdError as error:
                raise InputError(
                    f"the compressed file can't be decompressed ({error})", source=name
                ) from None
            if frame.eof:
                rest, frame = frame.unused_data, None
            if out:
                return out

    return read


def _near(path: Path) -> str:
    import difflib

    try:
        names = os.listdir(path.parent)
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, names, 1)
    return f"; did you mean {str(path.parent / near[0])!r}?" if near else ""
