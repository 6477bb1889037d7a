"""A cloud says that it will take the machine: what hasn't started is elsewhere at once."""

from __future__ import annotations

import os

import pytest

from tests.chaos.harness import Site, check, wait_for
from tests.unit.test_notices import Metadata, announce, service

__all__ = ["service"]


@pytest.mark.parametrize("cloud", ["ec2", "google", "azure"])
def test_a_notice_drains_the_worker(site: Site, service: type[Metadata], cloud: str) -> None:
    service.cloud = cloud
    names = ("AWS_EC2_METADATA_SERVICE_ENDPOINT", "GCE_METADATA_HOST", "MTASK_AZURE_METADATA_ENDPOINT")
    site.env |= {name: os.environ[name] for name in names}
    bag = site.submit("wait", 4, gate=str(site.gate), per_message=1, lease_s=60.0)
    first = site.start_worker("-j", "2", "--grace", "0.5", "--notices", cloud)
    wait_for(lambda: len(site.begun(first)) == 2, "two tasks run")

    announce(service)
    assert first.exit_code() == 0
    assert service.posted == ([{"StartRequests": [{"EventId": "mine"}]}] if cloud == "azure" else [])
    second = site.start_worker("-j", "4")
    wait_for(
        lambda: site.begun(second) == {0, 1, 2, 3}, "another worker has them all, long before the lease ends"
    )
    site.open_gate()
    wait_for(bag.finished, "the bag is finished")
    assert [result.attempt for result in check(bag)] == [1] * 4
