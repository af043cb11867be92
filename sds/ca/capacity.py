"""How many connections the authority takes: what memory and descriptors are there for.

Owns one number. Invariant: with as many connections as this, each with a stream, and with
everything that strangers may make the authority hold, the process stays within the memory that
its control group allows, and descriptors stay free for its files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sds.control_group import memory_limit
from sds.operations.places import most_connections

if TYPE_CHECKING:
    from sds.ca.config import AuthorityConfig

_PER_CONNECTION: Final = 64 * 1024
"""Bytes of one TLS connection with one stream (measured: 47 KiB and 24 KiB)."""
_EVERYTHING_ELSE: Final = 208 * 1024 * 1024
"""The program itself, and what strangers may fill (``docs/exchange.md``, "Under attack")."""
_FEWEST: Final = 256
_OTHER_DESCRIPTORS: Final = 128
"""For files, listening sockets, the clients of the authority itself and gRPC's own."""
_BETWEEN_LOOKS: Final = 1_024


def connections(*, streams: int, memory: int | None, descriptors: int, listeners: int) -> int:
    """Return how many connections may be open at once.

    Args:
        streams: that the configuration allows; each agent needs one connection.
        memory: bytes that this process may use; None if nothing bounds it.
        descriptors: that this process may open.
        listeners: small listeners beside (health, metrics, collateral): anybody may fill them.
    """
    most = streams + 64
    if memory is not None:
        most = min(most, max(_FEWEST, (memory - _EVERYTHING_ELSE) // _PER_CONNECTION))
    free = descriptors - _OTHER_DESCRIPTORS - listeners * most_connections(descriptors)
    return max(1, min(most, max(free - _BETWEEN_LOOKS, free // 2)))


def connections_of(config: AuthorityConfig, descriptors: int) -> int:
    """Return how many connections may be open: as configured, or as many as there is room for.

    Args:
        config: the configuration.
        descriptors: that this process may open.
    """
    small = (config.health, config.metrics, config.collateral)
    return config.limits.connections or connections(
        streams=config.limits.streams,
        memory=memory_limit(),
        descriptors=descriptors,
        listeners=sum(one is not None for one in small),
    )


def between_looks(connections: int) -> int:
    """Return how many more there may be until :mod:`sds.ca.connections` has looked at them."""
    return min(_BETWEEN_LOOKS, connections)
