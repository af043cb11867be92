"""Addresses as a configuration says them, and where a small HTTP listener may be bound.

Invariant: an address other than loopback is accepted only where the configuration allows it.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sds.errors import ConfigurationError

_PORTS: Final = 2**16


def host_and_port(text: str) -> tuple[str, int] | None:
    """Host (IPv6 without its brackets) and port of ``host:port``; None of anything else."""
    host, _, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    plain = host[1:-1] if bracketed else host
    if not plain or "/" in plain or (":" in plain) is not bracketed:
        return None
    if not port.isascii() or not port.isdigit() or int(port) >= _PORTS:
        return None
    return plain, int(port)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenAddress:
    """Where a listener is bound: a Unix socket, or host and port."""

    path: Path | None = None
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        """As it is configured."""
        if self.path is not None:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str, *, field: str, remote: bool = False) -> ListenAddress:
        """Parse ``unix:/path`` or ``HOST:PORT`` (an IP address; IPv6 in brackets).

        Args:
            text: the configured value.
            field: the configuration's field, for messages.
            remote: whether an address that is not loopback was allowed on purpose.

        Raises:
            ConfigurationError: neither form, or not loopback and not allowed.
        """
        if text.startswith("unix:"):
            path = Path(text.removeprefix("unix:"))
            if not path.is_absolute():
                raise ConfigurationError(f"{field}: {text!r} is not an absolute path")
            return cls(path=path)
        host, _, port = text.rpartition(":")
        host = host.strip("[]")
        try:
            address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
            number = int(port)
        except ValueError as error:
            raise ConfigurationError(
                f"{field}: {text!r} is not an address",
                advice="write 127.0.0.1:PORT or unix:/absolute/path",
            ) from error
        if not 0 <= number < _PORTS:
            raise ConfigurationError(f"{field}: port {number} is not between 0 and 65535")
        if not address.is_loopback and not remote:
            raise ConfigurationError(
                f"{field}: {text!r} is not a loopback address",
                advice="use 127.0.0.1 or unix:/path; anyone who connects sees every identity",
            )
        return cls(host=str(address), port=number)
