"""What the benchmarks run: nothing, so that only mtask's own time is measured."""


def noop(number: int, name: str, weight: float) -> int:  # noqa: ARG001
    return number
