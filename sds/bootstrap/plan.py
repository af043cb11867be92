"""Models the input of a bootstrap: the source of secrets, inbound and outbound listeners.

Owns plain values only, so that the import is cheap: nothing here needs envoy-data-plane.
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
"""How long a gRPC stream, WebSocket, CONNECT or TCP connection may run: no filter acts on those
that are already open."""
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
        """Return whether one aggregated stream carries everything."""
        return self in {Protocol.ADS, Protocol.DELTA_ADS}

    @property
    def is_delta(self) -> bool:
        """Return whether responses carry only changes."""
        return self in {Protocol.DELTA, Protocol.DELTA_ADS}

    @property
    def for_clusters(self) -> Protocol:
        """Return the same variant on separate streams (see ``render.ADS_AND_CLUSTERS``)."""
        return Protocol.DELTA if self.is_delta else Protocol.SOTW


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A host (address or DNS name) and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        """Return the text that :meth:`parse` accepts."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse ``host:port`` or ``[IPv6]:port``.

        Raises:
            ConfigurationError: the text has another form, the port is above 65535, or no host can
                have that name.
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
        """Return whether the host is an IP address and not a name."""
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
    """The source of the secrets: the agent's socket, and the SDS names."""

    socket: Path
    protocol: Protocol = Protocol.SOTW
    certificate: str = "default"
    validation: str = "ROOTCA"


@dataclass(frozen=True, slots=True, kw_only=True)
class Inbound:
    """An mTLS listener in front of an application; without one it answers which peer it saw.

    Attributes:
        listen: the address on which it listens.
        upstream: the address of the application.
        tcp: whether the application speaks something else than HTTP; this needs ``upstream``.
        authorization: the name of the filter that the agent serves and that decides about every
            request; None for no filter, so that every verified peer may request everything.
        validation: the name of the secret that verifies clients; None for the source's.
        longest: how long a running stream, or a TCP connection, may last before the client must
            open it again.
        connection: how long an HTTP connection takes new requests; then the client must open a new
            one, with its current certificate.
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
        listen: the address to which the application connects.
        upstreams: the mTLS server of each domain's requests (``*`` for any domain).
        full_handshakes: whether to keep no TLS session for resumption.
        fresh_connections: whether each request gets its own connection, and the answer carries the
            server's certificate in ``listeners.SERVER_CERTIFICATE_HEADER``; the demo measures with
            it.
        longest: as for :class:`Inbound`.
    """

    listen: Endpoint
    upstreams: Mapping[str, Endpoint]
    full_handshakes: bool = False
    fresh_connections: bool = False
    longest: timedelta = LONGEST_STREAM
