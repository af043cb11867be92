"""Computes how many connections the authority accepts, from memory and descriptors.

Owns one number. Invariant: with this many connections, each with a stream, and with everything that
strangers may make the authority keep, the process stays within the memory that its control group
allows, and descriptors stay free for its files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sds.control_group import memory_limit
from sds.operations.listener_places import most_connections

if TYPE_CHECKING:
    from sds.ca.config import AuthorityConfig

_PER_CONNECTION: Final = 56 * 1024
"""Bytes of memory of one connection, half of them agents' (measured: 30 KiB with a stream) and half
those of strangers who hold as much as they can (83 KiB: half a frame and half a TLS record)."""
_EVERYTHING_ELSE: Final = 216 * 1024 * 1024
"""The memory of the program (80 MiB), of what strangers may fill (``docs/exchange.md``): messages
that are read, and the windows of streams that wait."""
_FEWEST: Final = 256
_OTHER_DESCRIPTORS: Final = 128
"""The descriptors for files, listening sockets, the authority's own clients and their gRPC."""


def connections(*, streams: int, memory: int | None, descriptors: int, listeners: int) -> int:
    """Return how many connections may be open at once.

    Args:
        streams: how many streams the configuration allows; each agent needs one connection.
        memory: how many bytes this process may use; None if nothing bounds it.
        descriptors: how many descriptors this process may have.
        listeners: how many small listeners there are (health, metrics, collateral), which anybody
            may fill.
    """
    most = streams + 64
    if memory is not None:
        most = min(most, max(_FEWEST, (memory - _EVERYTHING_ELSE) // _PER_CONNECTION))
    free = descriptors - _OTHER_DESCRIPTORS - listeners * most_connections(descriptors)
    return max(1, min(most, free))


def connections_of(config: AuthorityConfig, descriptors: int) -> int:
    """Return how many connections may be open: as configured, or as many as there is room for.

    Args:
        config: the configuration.
        descriptors: how many descriptors this process may have.
    """
    small = (config.health, config.metrics, config.collateral)
    return config.limits.connections or connections(
        streams=config.limits.streams,
        memory=memory_limit(),
        descriptors=descriptors,
        listeners=sum(one is not None for one in small),
    )
