"""What the tests of the worker run in its children."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any


def double(x: int) -> int:
    return 2 * x


def whoami(x: int) -> int:
    return os.getpid()


def log(x: int, path: str, crash_at: int = -1) -> int:
    """Leave a line in a file; at one number, die."""
    with open(path, "a") as file:
        file.write(f"{x}\n")
    if x == crash_at:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def wait_for(x: int, path: str) -> int:
    """Until the file is there; leaves `path`.x when it has begun."""
    Path(f"{path}.{x}").touch()
    while not os.path.exists(path):
        time.sleep(0.005)
    return x


def sleep(x: float) -> float:
    time.sleep(x)
    return x


# -- raising ----------------------------------------------------------------------------------------


def raise_it(x: str) -> None:
    _raise_it(x)


def _raise_it(kind: str) -> None:
    if kind == "value":
        raise ValueError("no such thing")
    if kind == "cause":
        try:
            {}["key"]
        except KeyError as error:
            raise RuntimeError("outer") from error
    if kind == "context":
        try:
            {}["key"]
        except KeyError:
            raise RuntimeError("outer")  # noqa: B904
    if kind == "group":
        raise ExceptionGroup("several", [ValueError("one"), TypeError("two")])
    if kind == "exit":
        sys.exit("bye")
    if kind == "interrupt":
        raise KeyboardInterrupt
    if kind == "str":
        raise BadStrError
    if kind == "exiting str":
        raise ExitingStrError
    if kind == "any attribute":
        raise AnyAttributeError("no")
    if kind == "no attribute":
        raise NoAttributeError("no")
    if kind == "surrogate":
        raise FileNotFoundError(2, "no file", os.fsdecode(b"caf\xe9.txt"))
    if kind == "long":
        raise ValueError("x" * 1_000_000)
    if kind == "deep":
        _raise_it(kind)


class BadStrError(Exception):
    def __str__(self) -> str:
        raise ZeroDivisionError


class ExitingStrError(Exception):
    def __str__(self) -> str:
        raise SystemExit


class AnyAttributeError(Exception):
    def __getattr__(self, name: str) -> str:
        return name


class NoAttributeError(Exception):
    def __getattr__(self, name: str) -> str:
        raise AttributeError(name) if name.startswith("__") else ZeroDivisionError


def give(x: str) -> Any:
    return {"object": object(), "lock": threading.Lock(), "set": {1}, "bytes": b"1", "coroutine": _nothing}[x]


def nest(x: int) -> Any:
    value: Any = 'a "quoted" [[[[ \\'
    for level in range(x):
        value = [value] if level % 2 else {"key": value}
    return value


def _nothing() -> None: ...


# -- printing ---------------------------------------------------------------------------------------


def prints(x: int) -> None:
    print("print", x)
    os.write(1, b"write\n")
    subprocess.run(["sh", "-c", "echo subprocess; echo to stderr >&2"], check=True)
    print("no newline", end="", file=sys.stderr)
    print("end")


def prints_bytes(x: int) -> int:
    for _ in range(x // 65536):
        os.write(1, b"-" * 65535 + b"\n")
    os.write(1, b"end")
    return x


def prints_and_dies(x: int) -> None:
    print("last words")
    os._exit(3)


def closes(x: str) -> str:
    """Close something, or print."""
    if x == "fd":
        os.close(1)
        os.close(2)
    elif x == "fd, file":
        os.close(1)
        kept.append(tempfile.TemporaryFile())
    elif x == "stream":
        sys.stdout.close()
        sys.stderr.close()
    elif x == "none":
        sys.stdout = None  # type: ignore[assignment]
    elif x == "printed, fd":
        sys.stdout.write("lost")
        os.close(1)
    else:
        print(x)
        os.write(1, x.encode() + b"\n")
    return x


kept: list[Any] = []

# -- changing the process ---------------------------------------------------------------------------


def changes(x: int) -> str:
    """Leave all that a process can have in disorder."""
    before = os.getcwd()
    os.chdir("/")
    os.environ["TASK"] = "was here"
    sys.argv[:] = ["other"]
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
    threading.Thread(target=time.sleep, args=(0.05,)).start()
    sys.setrecursionlimit(500)
    return before


def forks(x: int, path: str) -> int:
    """The copy returns, too."""
    if os.fork() == 0:
        if x % 2:
            raise RuntimeError("in the copy")
        return -1
    os.wait()
    with open(path, "a") as file:
        file.write(f"{x}\n")
    return x


def pools(x: int) -> int:
    import multiprocessing

    with multiprocessing.get_context("fork").Pool(2) as pool:
        return sum(pool.map(double, range(x)))


def leaves_a_process(x: int, path: str) -> int:
    process = subprocess.Popen(["sleep", "600"])
    Path(path).write_text(str(process.pid))
    if x:
        os._exit(x)
    return process.pid


# -- dying ------------------------------------------------------------------------------------------


def dies(x: str) -> None:
    if x == "segfault":
        ctypes.string_at(0)
    elif x == "abort":
        os.abort()
    elif x == "exit 0":
        os._exit(0)
    elif x == "exit 7":
        os._exit(7)
    elif x == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif x == "thread":
        threading.Thread(target=os._exit, args=(9,)).start()
        time.sleep(60)


LISTENS = signal.SIGUSR2
"""Ignored by a task that has a handler for SIGTERM by now: others can see that."""


def stops(x: str) -> str:
    """Not end, in some way."""
    if x == "sleep":
        time.sleep(600)
    elif x == "holds the lock":
        ctypes.PyDLL(None).sleep(600)
    elif x == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif x == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    elif x == "raises":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to stop"))
        signal.signal(LISTENS, signal.SIG_IGN)
        time.sleep(600)
    elif x == "returns":
        told = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: told.set())
        signal.signal(LISTENS, signal.SIG_IGN)
        told.wait(600)
    elif x == "with a process":
        subprocess.run(["sh", "-c", "trap '' TERM; sleep 600"])
    return x


def loses_descriptors(x: int, path: str) -> int:
    """Everything but the standard ones is closed, as programs do that become daemons."""
    os.closerange(3, 256)
    while not os.path.exists(path):
        time.sleep(0.01)
    return x


def length(text: str) -> int:
    return len(text)
