"""How much an owner of connections may use; the numbers of :mod:`sds.transport.budget`.

Invariant: what all owners may hold together, with what the process needs for itself, stays well
under the memory that it may have (256 MiB for the agent).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_MIB: Final = 1024 * 1024
_CONNECTIONS: Final = 8_192
_SPARED_CONNECTIONS: Final = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one owner may use.

    Attributes:
        connections: at the same time.
        streams: at the same time, on all connections.
        held_bytes: memory of connections, streams, messages and output that waits.
        processor: of the event loop's processor, in the long run; 1.0 is all of it.
        processor_burst_seconds: of its time at once.
        refusals_per_second: calls that are refused, in the long run.
        refusal_burst: such calls at once.
        lines_per_second: of the log, in the long run.
        line_burst: such lines at once.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """What all owners may use together.

    Attributes:
        connections: at the same time; each takes two descriptors of the process.
        spared_connections: the last so many are for owners that have few.
        held_bytes: of memory.
        spared_bytes: the last so many are for owners that hold little.
        owners: whose use is remembered.
    """

    connections: int = _CONNECTIONS
    spared_connections: int = _SPARED_CONNECTIONS
    held_bytes: int = 112 * _MIB
    spared_bytes: int = 16 * _MIB
    owners: int = 4_096

    @classmethod
    def of_descriptors(cls, limit: int, *, reserved: int = 256) -> Total:
        """As many connections as the process may have descriptors for.

        Args:
            limit: descriptors of the process (RLIMIT_NOFILE).
            reserved: descriptors that are left for everything else.
        """
        most = max(16, min(_CONNECTIONS, (limit - reserved) // 2))
        return cls(connections=most, spared_connections=min(_SPARED_CONNECTIONS, most // 8))
