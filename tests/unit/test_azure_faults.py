"""What Azure's client says is told without what nobody else may see."""

from __future__ import annotations

import pytest
from azure.core.exceptions import ServiceRequestError, ServiceResponseError

from mtask.errors import UnavailableError
from mtask_azure.address import queue_address
from mtask_azure.faults import QUEUE, told

SAID = (
    "HTTPSConnectionPool(host='x', port=443): Max retries exceeded with url: /reads?sv=2024&sig=c2VjcmV0%3D (Caused by "
    "SSLError(SSLEOFError(8, 'EOF occurred')))"
)


@pytest.mark.parametrize("kind", [ServiceRequestError, ServiceResponseError])
def test_a_signature_is_in_no_error(kind: type[Exception]) -> None:
    address = queue_address("azureq://mystorage/reads")
    with (
        pytest.raises(UnavailableError) as caught,
        told(address, None, "read", QUEUE, "azureq://mystorage/reads"),
    ):
        raise kind(SAID)
    assert "c2Vj" not in str(caught.value)
    assert "/reads?…" in str(caught.value)
    assert "SSLError" in str(caught.value)
