"""mtask: runs a CSV of independent tasks on a laptop, a pool or a cloud fleet, and loses none."""

__version__ = "0.1.0"
