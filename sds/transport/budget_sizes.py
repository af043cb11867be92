"""How much each owner of connections may use: the numbers of :mod:`sds.transport.budget`.

Invariant: what all owners may use together, with what the process needs for itself, stays well
under the memory limit of the process (256 MiB for the agent).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_MIB: Final = 1024 * 1024
_CONNECTIONS: Final = 8_192
_SPARED_CONNECTIONS: Final = 512
_RESERVED: Final = 256
"""The descriptors that are left for everything but connections."""
FEW_STREAMS: Final = 8
"""The streams that each stranger may have in any case."""
FEW_BYTES: Final = 192 * 1024
"""The bytes that each stranger may have in any case: an Envoy that has just connected, with three
streams and two requests, has less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one owner may use.

    Attributes:
        connections: how many may be open at the same time.
        streams: how many may be open at the same time, on all connections.
        held_bytes: memory of connections, streams, messages, waiting output, and output
            that clients have not read, in bytes.
        processor: the part of the event loop's processor time, on average; 1.0 is all of it.
        processor_burst_seconds: how much of that time it may use at once.
        refusals_per_second: how many calls may be refused each second, on average.
        refusal_burst: how many calls may be refused at once.
        lines_per_second: how many log lines it may cause each second, on average.
        line_burst: how many log lines it may cause at once.
    """

    connections: int = 4_096
    streams: int = 12_000
    held_bytes: int = 84 * _MIB
    processor: float = 0.8
    processor_burst_seconds: float = 10.0
    refusals_per_second: float = 20.0
    refusal_burst: float = 2_000.0
    lines_per_second: float = 1.0
    line_burst: float = 100.0


RECOGNISED: Final = Share()
STRANGERS: Final = Share(
    connections=256,
    streams=512,
    held_bytes=8 * _MIB,
    processor=0.1,
    processor_burst_seconds=0.5,
    refusal_burst=500.0,
    line_burst=50.0,
)
"""What all owners that nobody has recognised may use together."""


def strangers_part(used: int, most: int, *, least: int) -> int:
    """Return how much one stranger may have: a quarter, and a 32nd once half is in use.

    So the second half is left for those who have just come and have little, such as a pod that the
    kubelet has not listed yet.

    Args:
        used: what all strangers use.
        most: what they may use together.
        least: what one may have in any case.
    """
    return max(least, most // (4 if 2 * used <= most else 32))


ENVOY_BYTES: Final = 64 * 1024
"""What counts as little memory on any machine: an Envoy with a few streams has less."""


def few_of(room: int, spared: int, *, least: int) -> int:
    """Return how much an owner may have to use what is spared for owners with little.

    An eighth of it, and a 192nd once half is in use: however many pods of one tenant take their
    part of the second half, there is room for eighty. On a small machine, that is less than an
    Envoy has, which counts as little in any case.

    Args:
        room: what is free.
        spared: what is spared.
        least: what an Envoy has.
    """
    return spared // 8 if 2 * room > spared else max(spared // 192, min(least, spared // 8))


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """What all owners may use together.

    Attributes:
        connections: how many may be open at the same time; each takes two descriptors.
        spared_connections: how many of these are reserved for owners that have few.
        held_bytes: bytes of memory.
        spared_bytes: how many of these bytes are reserved for owners that use little.
        owners: the most owners whose use is remembered.
    """

    connections: int = _CONNECTIONS
    spared_connections: int = _SPARED_CONNECTIONS
    held_bytes: int = 112 * _MIB
    spared_bytes: int = 16 * _MIB
    owners: int = 4_096

    @classmethod
    def of_descriptors(cls, limit: int) -> Total:
        """Return totals with as many connections as the process may have descriptors for.

        Args:
            limit: how many descriptors the process may have (RLIMIT_NOFILE).
        """
        most = max(16, min(_CONNECTIONS, (limit - _RESERVED) // 2))
        return cls(connections=most, spared_connections=min(_SPARED_CONNECTIONS, most // 8))
