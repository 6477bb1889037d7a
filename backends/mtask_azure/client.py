"""Clients of a storage account: of its queues, of one table, of one container of blobs.

Who this is: the connection string in AZURE_STORAGE_CONNECTION_STRING, if it is set; else `DefaultAzureCredential`:
variables, workload identity, managed identity, `az login`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from contextvars import copy_context
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests
from azure.core.pipeline.transport import RequestsTransport
from azure.data.tables import TableClient, TableServiceClient
from azure.storage.blob import ContainerClient
from azure.storage.queue import LinearRetry, QueueClient, QueueServiceClient
from requests.adapters import HTTPAdapter

from mtask.errors import UsageError
from mtask.meter import Meter
from mtask_azure.address import Address
from mtask_azure.connection import CONNECTION, connection_to
from mtask_azure.faults import BLOB, QUEUE, TABLE, Service, told
from mtask_azure.prices import OPERATIONS

__all__ = ["CONNECTIONS", "Account", "Queues", "new_transport"]

CONNECTIONS = 16
"""At most so many requests at once."""
SIDE_BY_SIDE = 8
"""Of those to queues, which know no batches."""
TRIES, PAUSE_S = 3, 1
"""Of a request to a queue that failed by no fault of its own, and between them, up to twice as long; then the engine goes
on trying."""
SUFFIX = "core.windows.net"

_RETRIES: dict[str, Any] = {"retry_total": 2, "retry_backoff_factor": 0.2, "retry_backoff_max": 5}
"""Of requests to tables."""
_COMMON: dict[str, Any] = {"connection_timeout": 5, "read_timeout": 35, "user_agent": "mtask"}
"""The service itself gives up after 30 s."""

# What can't be helped is said once, as an error: Python would print Azure's warnings about it, page by page, as well.
logging.getLogger("azure").addHandler(logging.NullHandler())

Item = TypeVar("Item")
Answer = TypeVar("Answer")


def new_transport() -> Any:
    """With as many connections as are ever used at once."""
    session = requests.Session()
    for scheme in ("https://", "http://"):
        session.mount(scheme, HTTPAdapter(pool_connections=4, pool_maxsize=CONNECTIONS))
    return RequestsTransport(session=session)


class Account:
    """A storage account, as far as one queue or table is concerned. Any thread may use it; nothing is asked before it
    is used."""

    def __init__(self, address: Address) -> None:
        """`address`: of what is worked with. Raises UsageError for a connection string that makes no sense, or is
        another account's."""
        self.address = address
        self.connection = connection_to(address)
        self._lock = threading.Lock()
        self._credential: Any = None
        self._open: list[Any] = []

    @property
    def how(self) -> str:
        """By what it is who it is; for people."""
        if self.connection is None:
            return "DefaultAzureCredential: environment, managed identity or `az login`"
        return (
            f"by {CONNECTION}, {'an account key' if self.connection.by_key else 'a shared access signature'}"
        )

    def token(self) -> str:
        """Of the identity that is used, for those who want to know who it is. Raises as `errors`."""
        with self.errors("sign in", QUEUE):
            token: str = self._identity().get_token("https://storage.azure.com/.default").token
            return token

    def queues(self, saw: Callable[[Any], None]) -> QueueServiceClient:
        """`saw` is called with each answer, also with those after which the client tries again."""
        retries = LinearRetry(backoff=PAUSE_S, retry_total=TRIES - 1, random_jitter_range=PAUSE_S)
        client: QueueServiceClient = self._client(
            QueueServiceClient, QUEUE, retry_policy=retries, raw_response_hook=saw
        )
        return client

    def table(self, saw: Callable[[Any], None]) -> TableClient:
        """`saw`: see `queues`."""
        options = {"table_name": self.address.name, "raw_response_hook": saw, **_RETRIES}
        client: TableClient = self._client(TableClient, TABLE, **options)
        return client

    def tables(self) -> TableServiceClient:
        client: TableServiceClient = self._client(TableServiceClient, TABLE, **_RETRIES)
        return client

    def container(self) -> ContainerClient:
        options = {"container_name": self.address.container, "retry_total": 2}
        client: ContainerClient = self._client(ContainerClient, BLOB, **options)
        return client

    def errors(self, action: str, service: Service, on: str = "") -> AbstractContextManager[None]:
        """Raise what goes wrong within as an error of mtask. `action`: for people; `on`: on what, the address by
        default."""
        return told(self.address, self.connection, action, service, on or self.address.url)

    def close(self) -> None:
        with self._lock:
            clients, self._open, self._credential = self._open, [], None
        for client in clients:
            client.close()

    def _client(self, kind: Any, service: Service, **options: Any) -> Any:
        options |= {"transport": new_transport(), **_COMMON}
        try:
            if self.connection is not None:
                client = kind.from_connection_string(self.connection.text, **options)
            else:
                endpoint = f"https://{self.address.account}.{service.name}.{SUFFIX}"
                first = {"endpoint" if service is TABLE else "account_url": endpoint}
                client = kind(**first, credential=self._identity(), **options)
        except ValueError as error:
            problem = str(error).partition("\n")[0]
            raise UsageError(f"{CONNECTION} can't be used for {self.address.url}: {problem}") from None
        with self._lock:
            self._open.append(client)
        return client

    def _identity(self) -> Any:
        from azure.identity import DefaultAzureCredential

        with self._lock:
            if self._credential is None:
                self._credential = DefaultAzureCredential()
                self._open.append(self._credential)
            return self._credential


class Queues:
    """The queues of an account, for one of them and its lanes; any thread may use it."""

    def __init__(self, address: Address, meter: Meter) -> None:
        """Raises as `Account`."""
        self.address, self.meter, self.account = address, meter, Account(address)
        self._lock = threading.Lock()
        self._users = 1
        self._pool: ThreadPoolExecutor | None = None
        self._service = self.account.queues(lambda _: meter.add(OPERATIONS, 1))

    @property
    def host(self) -> str:
        return urlsplit(self._service.url).netloc

    def queue(self, name: str) -> QueueClient:
        """It shares the connections."""
        return self._service.get_queue_client(name)

    def each(self, items: Sequence[Item], ask: Callable[[Item], Answer]) -> list[Answer]:
        """`ask` for each, some at a time; answers in the same order. `ask` raises nothing."""
        if len(items) < 2:
            return [ask(item) for item in items]
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(SIDE_BY_SIDE, thread_name_prefix="mtask-azureq")
            pool = self._pool
        futures = [
            pool.submit(copy_context().run, ask, item) for item in items
        ]  # on the account of this thread
        return [future.result() for future in futures]

    def errors(self, action: str, on: str = "") -> AbstractContextManager[None]:
        """As `Account.errors`."""
        return self.account.errors(action, QUEUE, on)

    def share(self) -> Queues:
        """The same for one more use, with a `close` of its own."""
        with self._lock:
            self._users += 1
        return self

    def close(self) -> None:
        """Give up one use; the last one closes the connections."""
        with self._lock:
            self._users -= 1
            if self._users:
                return
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown()
        self.account.close()
