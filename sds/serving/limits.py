"""Limits that keep one client from harming the others.

Owns the numbers. Invariant: exceeding a limit ends one stream with RESOURCE_EXHAUSTED and a text
that names the limit; no other stream notices. The defaults let one Envoy hold 1,000 secrets, one
stream each, on one connection.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sds.errors import ConfigurationError
from sds.serving.name_budget import NameLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingLimits:
    """What one client may do.

    Attributes:
        names_per_stream: the most names that one request may list, and that one stream may watch.
        message_bytes: the largest request.
        streams_per_connection: the most open streams on one connection.
        streams_per_socket: the most open streams on all connections of one socket.
        requests_per_second: the most requests on one stream each second, on average.
        request_burst: the most requests on one stream at once. State of the world over ADS sends
            one for each secret that is added.
        names: how much memory watched names may take.
    """

    names_per_stream: int = 2_000
    message_bytes: int = 4 * 1024 * 1024
    streams_per_connection: int = 2_000
    streams_per_socket: int = 20_000
    requests_per_second: float = 100.0
    request_burst: int = 4_000
    names: NameLimits = field(default_factory=NameLimits)

    def __post_init__(self) -> None:
        """Check that every limit is positive."""
        for name in self.__slots__:
            if name != "names" and getattr(self, name) <= 0:
                raise ConfigurationError(f"limits.{name} is not positive")
