"""How many connections an authority takes."""

from __future__ import annotations

import pytest

from sds.ca.app import _server
from sds.ca.capacity import between_looks, connections
from sds.ca.server import ExchangeLimits
from sds.operations.places import most_connections
from sds.settings.fields import MOST

MIB = 1024 * 1024


@pytest.mark.parametrize(
    ("memory", "descriptors", "listeners", "expected"),
    [
        (None, 1_000_000, 3, 10_064),
        (256 * MIB, 1_000_000, 3, 768),
        (64 * MIB, 1_000_000, 0, 256),
        (512 * MIB, 1_000_000, 0, 4864),
        (8192 * MIB, 1_000_000, 0, 10_064),
        (None, 1024, 0, 448),
        (None, 1024, 3, 250),
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
    """Connections, those between two looks, and three small listeners that somebody filled."""
    most = connections(streams=100_000, memory=None, descriptors=descriptors, listeners=3)
    full = most + between_looks(most) + 3 * most_connections(descriptors)
    assert descriptors - full >= 128


async def test_as_many_as_the_configuration_allows_can_be_given_to_grpc() -> None:
    _server(ExchangeLimits(streams=MOST, message_bytes=MOST), MOST)
