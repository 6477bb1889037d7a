"""On the path of a Python process, this makes its wall clock jump.

`time.time` is ahead of the true time by the seconds in the file `$CHAOS_CLOCK`; clocks that nobody can set
stay as they are. A program in C, and SQLite, see the true time; and so does gRPC, which reckons its deadlines in Python
and keeps them in C.
"""

import os
import sys
import time

_true_time, _file = time.time, os.environ["CHAOS_CLOCK"]
_ahead_s, _read_s = 0.0, 0.0


def _time() -> float:
    global _ahead_s, _read_s
    if sys._getframe(1).f_globals.get("__name__") == "grpc._channel":
        return _true_time()
    if time.monotonic() - _read_s > 0.05:
        _read_s = time.monotonic()
        try:
            with open(_file) as file:
                _ahead_s = float(file.read() or 0)
        except OSError:
            _ahead_s = 0.0
    return _true_time() + _ahead_s


time.time = _time
