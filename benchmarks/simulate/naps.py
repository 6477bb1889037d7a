"""What the real workers run; a module of its own, so that it takes nothing to import."""

import time


def nap(seconds: float) -> None:
    time.sleep(seconds)
