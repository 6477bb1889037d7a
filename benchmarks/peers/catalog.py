"""All peers, in the order of the table."""

from __future__ import annotations

import importlib
from typing import cast

from benchmarks.peers.peer import Module, Peer

__all__ = ["MODULES", "NOT_HERE", "load", "peers"]

MODULES = (
    "mtask",
    "futures",
    "joblib",
    "huey",
    "celery",
    "dramatiq",
    "rq",
    "procrastinate",
    "dask",
    "ray",
    "parsl",
    "taskiq",
    "litequeue",
    "taskqueue",
    "hyperqueue",
    "hypershell",
    "parallel",
)

NOT_HERE = {
    "work-queue": "its Python module, ndcctools, comes by conda only; Debian's coop-computing-tools runs commands by "
    "makeflow, which wants a file from each"
}
"""Peers that can't be had by pip or as a program of the system, and why."""


def load(module: str) -> Module:
    return cast(Module, importlib.import_module(f"benchmarks.peers.{module}"))


def peers() -> dict[str, tuple[str, Peer]]:
    """By name: the module and the description."""
    return {peer.name: (module, peer) for module in MODULES for peer in load(module).PEERS}
