"""The same work on mtask and on its peers, each in an environment of its own.

    python -m benchmarks.peers --install          # make the environments first: downloads, takes minutes
    python -m benchmarks.peers --json FILE        # measure all that can be had here
    python -m benchmarks.peers celery-redis mtask-run --tasks 1000 --repeats 1

A peer is one module with three things, of which `joblib.py` is the shortest example and `celery.py` one with
servers and workers:

- `PEERS`: what it needs, what is set and what is durable, once for each way to run it;
- `worker(name)`, if it has workers: one worker process, until it is told to stop;
- `client(name)`: a context manager that gives a `Run`, a function that does the tasks of a `Table` and
  returns their results.

It is named in `catalog.py`. These functions run in the peer's environment, where mtask's dependencies are not,
and its description is read where the peer's packages are not: import them inside the functions.

What is measured, how often, and when it is cut short is in `measuring.py`, the same for all.
"""
