"""What a bootstrap is made from: where secrets come from, what listens, what goes out.

Owns plain values only; importing this costs nothing, and nothing here knows envoy-data-plane.
"""

from __future__ import annotations

import enum
import ipaddress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Self

from sds.errors import ConfigurationError
from sds.settings.https_url import check_host
from sds.settings.listen import host_and_port

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_EVERY: Final = frozenset({"0.0.0.0", "::"})
LONGEST_STREAM: Final = timedelta(hours=1)
"""How long a gRPC stream, WebSocket, CONNECT or TCP connection may run: no filter acts on one that
is already open."""
LONGEST_CONNECTION: Final = timedelta(minutes=30)
"""Half the lifetime that certificates have by default."""


class Protocol(enum.StrEnum):
    """How Envoy asks for secrets (xDS transport protocol, variants)."""

    SOTW = "sotw"
    DELTA = "delta"
    ADS = "ads"
    DELTA_ADS = "delta-ads"

    @property
    def is_ads(self) -> bool:
        """Say whether one aggregated stream carries everything."""
        return self in {Protocol.ADS, Protocol.DELTA_ADS}

    @property
    def is_delta(self) -> bool:
        """Say whether responses carry only what changed."""
        return self in {Protocol.DELTA, Protocol.DELTA_ADS}

    @property
    def for_clusters(self) -> Protocol:
        """Return the same variant on streams of its own (see ``render.ADS_AND_CLUSTERS``)."""
        return Protocol.DELTA if self.is_delta else Protocol.SOTW


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A host (address or DNS name) and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        """As :meth:`parse` takes it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse ``host:port`` or ``[IPv6]:port``.

        Raises:
            ConfigurationError: it is not of that form, the port is above 65535, or no host can have
                that name.
        """
        advice = "write it as 127.0.0.1:8080 or [::1]:8080"
        found = host_and_port(text)
        if found is None:
            raise ConfigurationError(f"{text!r} is not host:port", advice=advice)
        host, port = found
        try:
            check_host(host, bracketed=":" in host)
        except ValueError as error:
            raise ConfigurationError(
                f"{text!r} is not host:port: {error}", advice=advice
            ) from error
        return cls(host=host, port=port)

    @property
    def is_address(self) -> bool:
        """Say whether the host is an IP address and not a name."""
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            return False
        return True

    def meets(self, other: Endpoint) -> bool:
        """Say whether two listeners exclude each other; ``0.0.0.0`` and ``[::]`` match any."""
        if self.port != other.port or self.port == 0:
            return False
        return self.host == other.host or not _EVERY.isdisjoint({self.host, other.host})


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretSource:
    """Where the secrets come from, and under which SDS names."""

    socket: Path
    protocol: Protocol = Protocol.SOTW
    certificate: str = "default"
    validation: str = "ROOTCA"


@dataclass(frozen=True, slots=True, kw_only=True)
class Inbound:
    """An mTLS listener before an application; without one it answers which peer it saw.

    Attributes:
        listen: where it listens.
        upstream: the application.
        tcp: the application does not speak HTTP; it needs ``upstream``.
        authorization: name of the filter that the agent serves and every request is asked of; None
            for none, so that every peer that passes the handshake may ask for everything.
        validation: name of the secret that clients are verified by; None for the source's.
        longest: how long a running stream, or a TCP connection, goes on before it must be asked
            for again.
        connection: how long an HTTP connection takes new requests; then the client must make a new
            one, with its certificate of that time.
    """

    listen: Endpoint
    upstream: Endpoint | None = None
    tcp: bool = False
    authorization: str | None = None
    validation: str | None = None
    longest: timedelta = LONGEST_STREAM
    connection: timedelta = LONGEST_CONNECTION


@dataclass(frozen=True, slots=True, kw_only=True)
class Outbound:
    """A plain HTTP listener whose requests leave by mTLS.

    Attributes:
        listen: where the application connects to.
        upstreams: domain (``*`` for any) -> the mTLS server that its requests go to.
        full_handshakes: keep no TLS session for resumption.
        fresh_connections: one request a connection, and the answer carries the server's
            certificate in ``listeners.SERVER_CERTIFICATE_HEADER``: what the demo measures with.
        longest: as for :class:`Inbound`.
    """

    listen: Endpoint
    upstreams: Mapping[str, Endpoint]
    full_handshakes: bool = False
    fresh_connections: bool = False
    longest: timedelta = LONGEST_STREAM
