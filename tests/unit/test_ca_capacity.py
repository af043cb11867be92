"""How many connections an authority takes."""

from __future__ import annotations

import pytest

from sds.ca.capacity import connections
from sds.ca.connections import authority_budgets, server_limits
from sds.ca.server import ExchangeLimits
from sds.operations.listener_places import most_connections
from sds.settings.field_types import MOST

MIB = 1024 * 1024


@pytest.mark.parametrize(
    ("memory", "descriptors", "listeners", "expected"),
    [
        (None, 1_000_000, 3, 10_064),
        (256 * MIB, 1_000_000, 3, 731),
        (64 * MIB, 1_000_000, 0, 256),
        (512 * MIB, 1_000_000, 0, 5412),
        (8192 * MIB, 1_000_000, 0, 10_064),
        (None, 1024, 0, 896),
        (None, 1024, 3, 500),
        (None, 100, 3, 1),
    ],
)
def test_memory_and_descriptors_bound_connections(
    memory: int | None, descriptors: int, listeners: int, expected: int
) -> None:
    found = connections(streams=10_000, memory=memory, descriptors=descriptors, listeners=listeners)
    assert found == expected


@pytest.mark.parametrize("descriptors", [1024, 4096, 65_536])
def test_full_listeners_leave_descriptors_for_files(descriptors: int) -> None:
    """Connections, and three small listeners that somebody filled."""
    most = connections(streams=100_000, memory=None, descriptors=descriptors, listeners=3)
    full = most + 3 * most_connections(descriptors)
    assert descriptors - full >= 128


def test_limits_can_be_as_large_as_the_configuration_allows() -> None:
    limits = ExchangeLimits(streams=MOST, unproven=MOST, unproven_bytes=MOST, message_bytes=MOST)
    assert server_limits(limits).connection.concurrent_streams == 256
    assert authority_budgets(limits, MOST).strangers.share.held_bytes > MOST
