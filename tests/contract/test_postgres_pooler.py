"""PostgreSQL behind PgBouncer: what works in each of its modes."""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import psycopg
import pytest

from mtask.doctor import Finding
from mtask.errors import UnavailableError, UnusableError
from mtask.model import Counts
from mtask.testing.samples import a_bag, a_done, a_message, index_of, messages
from mtask_postgres import Database, PostgresQueue, PostgresTable, diagnose, open_queue
from mtask_postgres.address import address_of
from mtask_postgres.errors import translated
from tests.servers.postgres import Postgres, pooler

PATIENCE_S = 30.0


def notices(url: str) -> Finding:
    return next(finding for finding in diagnose([url], []) if finding.what == "notices")


def test_all_but_notices_works_when_each_transaction_has_another_connection(postgres: Postgres) -> None:
    schema = postgres.new().partition("?")[2]
    with pooler(postgres, "transaction") as place:
        url = f"{place}?{schema}&prepare=no"
        database = Database(address_of(url))
        with closing(PostgresQueue(database)) as queue, closing(PostgresTable(database.share())) as table:
            table.create_bag(a_bag(total=200))
            queue.send(messages(200))
            handled: Counter[int] = Counter()

            def work(_: int) -> None:
                while taken := queue.receive(max_messages=7, lease_s=60, wait_s=0):
                    held = [new for _, new in queue.extend(taken, lease_s=60).extended]
                    with table.transaction(queue):
                        table.record([a_done(index_of(each)) for each in held])
                        queue.delete(held)
                    handled.update(map(index_of, held))

            with ThreadPoolExecutor(6) as threads:
                list(threads.map(work, range(6)))
            assert handled == Counter(range(200))
            assert table.counts("bag") == Counts(total=200, done=200)
            threading.Timer(0.2, lambda: queue.send([a_message()])).start()
            began_s = time.monotonic()
            assert len(queue.receive(max_messages=1, lease_s=60, wait_s=PATIENCE_S)) == 1
            assert time.monotonic() - began_s < PATIENCE_S / 2
        found = notices(url)
        assert (found.ok, found.text) == (
            None,
            "none arrive, so an idle worker looks for messages once a second",
        )


def test_prepared_statements_need_a_pooler_that_passes_them_on(postgres: Postgres) -> None:
    schema = postgres.new().partition("?")[2]
    with pooler(postgres, "transaction") as place, closing(open_queue(f"{place}?{schema}")) as queue:

        def work(_: int) -> None:
            for _ in range(50):
                queue.send([a_message()])
                queue.receive(max_messages=1, lease_s=60, wait_s=0)

        with pytest.raises(UnusableError, match="prepare=no"), ThreadPoolExecutor(6) as threads:
            list(threads.map(work, range(6)))


@pytest.mark.parametrize(
    ("problem", "kind"),
    [
        (
            'bind message supplies 4 parameters, but prepared statement "_pg3_1" requires 5',
            UnusableError,
        ),
        ("query_wait_timeout", UnavailableError),
    ],
)
def test_a_statement_of_another_connection_is_told_from_other_troubles(
    problem: str, kind: type[Exception]
) -> None:
    address = address_of("postgresql://me@127.0.0.1/mtask")
    with pytest.raises(kind, match=problem), translated(address):
        raise psycopg.errors.ProtocolViolation(problem)


def test_all_works_in_session_mode(postgres: Postgres) -> None:
    schema = postgres.new().partition("?")[2]
    with pooler(postgres, "session") as place:
        url = f"{place}?{schema}"
        assert notices(url).ok
        with closing(open_queue(url)) as queue:
            queue.receive(max_messages=1, lease_s=60, wait_s=0.1)
            threading.Timer(0.2, lambda: queue.send([a_message()])).start()
            assert len(queue.receive(max_messages=1, lease_s=60, wait_s=PATIENCE_S)) == 1
