"""How long tasks take."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["Seconds", "task_times"]

Seconds = NDArray[np.float64]


def task_times(text: str, tasks: int, seed: int) -> Seconds:
    """Seconds of so many tasks: `constant:S`, `uniform:LOW:HIGH`, `lognormal:MEAN:SIGMA`, or `pareto:MEAN:ALPHA`
    with ALPHA > 1. Raises ValueError for anything else."""
    kind, *numbers = text.split(":")
    values = [float(number) for number in numbers]
    random = np.random.default_rng(seed)
    match kind, values:
        case "constant", [seconds]:
            return np.full(tasks, seconds)
        case "uniform", [low, high]:
            return random.uniform(low, high, tasks)
        case "lognormal", [mean, sigma]:
            return random.lognormal(math.log(mean) - sigma**2 / 2, sigma, tasks)
        case "pareto", [mean, alpha] if alpha > 1:
            return (random.pareto(alpha, tasks) + 1) * (mean * (alpha - 1) / alpha)
    raise ValueError(
        f"{text!r} is not constant:S, uniform:LOW:HIGH, lognormal:MEAN:SIGMA or pareto:MEAN:ALPHA"
    )
