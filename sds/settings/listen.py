"""Parses the addresses of a configuration, and decides where an HTTP listener may be bound.

Invariant: an address other than loopback is accepted only if the configuration allows it.
"""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sds.errors import ConfigurationError
from sds.files import SOCKET_PATH_BYTES
from sds.settings.paths import parse_path

if TYPE_CHECKING:
    from pathlib import Path

_PORTS: Final = 2**16
_DIGITS: Final = 5
SHOWS_IDENTITIES: Final = "anyone who connects sees every identity"


def host_and_port(text: str) -> tuple[str, int] | None:
    """Split ``host:port`` into host (IPv6 without brackets) and port; None for other text."""
    host, _, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    plain = host[1:-1] if bracketed else host
    if not plain or "/" in plain or (":" in plain) is not bracketed:
        return None
    if not port.isascii() or not port.isdigit() or len(port) > _DIGITS or int(port) >= _PORTS:
        return None
    return plain, int(port)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenAddress:
    """The address of a listener: a Unix socket, or host and port."""

    path: Path | None = None
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        """Return the address as it is configured."""
        if self.path is not None:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(
        cls, text: str, *, field: str, remote: bool = False, why: str = SHOWS_IDENTITIES
    ) -> ListenAddress:
        """Parse ``unix:/path`` or ``HOST:PORT`` (an IP address; IPv6 in brackets).

        Args:
            text: the configured value.
            field: the configuration's field, for messages.
            remote: whether an address that is not loopback was allowed on purpose.
            why: why only loopback is allowed, and what to do instead.

        Raises:
            ConfigurationError: it has neither form, or is not loopback and not allowed.
        """
        if text.startswith("unix:"):
            return cls(path=_socket_path(text.removeprefix("unix:"), text, field))
        host, number = host_and_port(text) or ("", 0)
        try:
            address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
        except ValueError as error:
            raise ConfigurationError(
                f"{field}: {text!r} is not an IP address and a port from 0 to 65535",
                advice="write 127.0.0.1:PORT, [::1]:PORT or unix:/absolute/path",
            ) from error
        if not address.is_loopback and not remote:
            raise ConfigurationError(
                f"{field}: {text!r} is not a loopback address",
                advice=f"use 127.0.0.1 or unix:/path; {why}",
            )
        return cls(host=str(address), port=number)

    def meets(self, other: ListenAddress) -> bool:
        """Return whether two listeners exclude each other; ``0.0.0.0`` is every IPv4 address."""
        if self.path is not None or other.path is not None:
            return self.path == other.path
        if self.port != other.port or self.port == 0:
            return False
        every = "::" if ":" in self.host else "0.0.0.0"
        alike = (":" in self.host) == (":" in other.host)
        return self.host == other.host or (alike and every in {self.host, other.host})


def _socket_path(text: str, whole: str, field: str) -> Path:
    """Parse the path of a Unix socket.

    Raises:
        ConfigurationError: no Unix socket can be bound to this path.
    """
    advice = "write unix:/absolute/path"
    try:
        path = parse_path(text)
    except ValueError as error:
        raise ConfigurationError(f"{field}: {error}, found {whole!r}", advice=advice) from error
    if not path.is_absolute():
        raise ConfigurationError(f"{field}: {whole!r} is not an absolute path", advice=advice)
    if text.endswith("/"):
        raise ConfigurationError(f"{field}: {whole!r} names a directory", advice=advice)
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES:
        raise ConfigurationError(
            f"{field}: the path of a Unix socket has at most {SOCKET_PATH_BYTES} bytes",
            advice="choose a shorter one",
        )
    return path
