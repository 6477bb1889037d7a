"""The settings of fields that `mtask init` makes: Google's emulator has none, so a server that speaks the protocol of the
Admin API keeps them here. Google's own was not tried."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.cloud.firestore_admin_v1 import FirestoreAdminClient
from google.cloud.firestore_admin_v1.services.firestore_admin.transports import FirestoreAdminGrpcTransport
from google.cloud.firestore_admin_v1.types import Field, GetFieldRequest, UpdateFieldRequest
from google.longrunning.operations_pb2 import Operation

from mtask_gcp.setup_table import expires, set_field

NAME = "projects/p/databases/(default)/collectionGroups/mtask-pages/fields/"


class Settings(grpc.GenericRpcHandler):
    """`get_field` and `update_field`; a field that nobody has set is indexed as all are."""

    def __init__(self) -> None:
        self.fields: dict[str, Field] = {}
        self.updates: list[UpdateFieldRequest] = []

    def service(self, details: Any) -> Any:
        if details.method.endswith("/GetField"):
            return grpc.unary_unary_rpc_method_handler(
                lambda request, _: self.get(request.name),
                request_deserializer=GetFieldRequest.deserialize,
                response_serializer=Field.serialize,
            )
        assert details.method.endswith("/UpdateField")
        return grpc.unary_unary_rpc_method_handler(
            lambda request, _: self.update(request),
            request_deserializer=UpdateFieldRequest.deserialize,
            response_serializer=Operation.SerializeToString,
        )

    def get(self, name: str) -> Field:
        index = Field.IndexConfig(uses_ancestor_config=True, indexes=[{"query_scope": "COLLECTION"}])
        return self.fields.get(name, Field(name=name, index_config=index))

    def update(self, request: UpdateFieldRequest) -> Operation:
        self.updates.append(request)
        field = self.get(request.field.name)
        if "index_config" in request.update_mask.paths:
            field.index_config = request.field.index_config
        if "ttl_config" in request.update_mask.paths:
            field.ttl_config = Field.TtlConfig(state=Field.TtlConfig.State.CREATING)
        self.fields[request.field.name] = field
        return Operation(name="projects/p/databases/(default)/operations/1")


@pytest.fixture
def settings() -> Settings:
    return Settings()


@pytest.fixture
def admin(settings: Settings) -> Iterator[FirestoreAdminClient]:
    server = grpc.server(ThreadPoolExecutor(2))
    port = server.add_insecure_port("127.0.0.1:0")
    server.add_generic_rpc_handlers([settings])
    server.start()
    channel = grpc.insecure_channel(f"127.0.0.1:{port}")
    with FirestoreAdminClient(transport=FirestoreAdminGrpcTransport(channel=channel)) as client:
        yield client
    server.stop(None).wait()


def test_fields_are_set_once(settings: Settings, admin: FirestoreAdminClient) -> None:
    assert set_field(admin, NAME + "body", expiring=False)
    assert set_field(admin, NAME + "ttl", expiring=True)
    assert [list(each.update_mask.paths) for each in settings.updates] == [
        ["index_config"],
        ["index_config", "ttl_config"],
    ]
    body, ttl = settings.fields[NAME + "body"], settings.fields[NAME + "ttl"]
    assert not body.index_config.indexes
    assert (expires(body), expires(ttl)) == (False, True)
    assert not set_field(admin, NAME + "body", expiring=False)
    assert not set_field(admin, NAME + "ttl", expiring=True)
    assert len(settings.updates) == 2


def test_a_field_without_an_index_that_does_not_expire_is_set(
    settings: Settings, admin: FirestoreAdminClient
) -> None:
    settings.fields[NAME + "ttl"] = Field(name=NAME + "ttl", index_config=Field.IndexConfig())
    assert set_field(admin, NAME + "ttl", expiring=True)
    assert expires(settings.fields[NAME + "ttl"])
