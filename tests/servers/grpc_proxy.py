"""A gRPC server between a client and Google's emulators, which can answer in their place; messages stay as they are, in bytes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

Rule = Callable[[str, bytes], Any]
"""Is asked with the method, as `Publisher/Publish`, and the request: None to pass it on, bytes to answer, or a Refusal."""


class Refusal(NamedTuple):
    """An error, as Google's servers send it."""

    code: grpc.StatusCode
    text: str
    reason: str = ""
    metadata: dict[str, str] | None = None


class Proxy(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Passes each unary call on, unless a rule says otherwise; notes the methods."""

    def __init__(self, place: str) -> None:
        self.place = ""
        self._channel = grpc.insecure_channel(place)
        self._lock = threading.Lock()
        self._rules: list[Rule] = []
        self.called: list[str] = []

    @contextmanager
    def rule(self, rule: Rule) -> Iterator[None]:
        with self._lock:
            self._rules.append(rule)
        try:
            yield
        finally:
            with self._lock:
                self._rules.remove(rule)

    def service(self, details: Any) -> Any:
        method = details.method
        return grpc.unary_unary_rpc_method_handler(
            lambda request, context: self._serve(method, request, context)
        )

    def _serve(self, method: str, request: bytes, context: Any) -> bytes:
        short = method.rpartition(".")[2]
        with self._lock:
            self.called.append(short)
            rules = list(self._rules)
        for rule in rules:
            answer = rule(short, request)
            if isinstance(answer, Refusal):
                context.abort_with_status(rpc_status.to_status(_status(answer)))
            if answer is not None:
                return bytes(answer)
        try:
            passed: bytes = self._channel.unary_unary(method)(request, timeout=context.time_remaining())
        except grpc.RpcError as error:
            context.abort(error.code(), error.details())
        return passed


@contextmanager
def grpc_proxy_to(place: str) -> Iterator[Proxy]:
    """`proxy.place` is where it listens."""
    proxy = Proxy(place)
    server = grpc.server(
        ThreadPoolExecutor(32),
        handlers=[proxy],
        options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)],
    )
    proxy.place = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield proxy
    finally:
        server.stop(None).wait()
        proxy._channel.close()


def _status(refusal: Refusal) -> Status:
    details = AnyMessage()
    details.Pack(
        ErrorInfo(reason=refusal.reason, domain="pubsub.googleapis.com", metadata=refusal.metadata or {})
    )
    return Status(code=refusal.code.value[0], message=refusal.text, details=[details])
