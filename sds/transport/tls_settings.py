"""The TLS of a server: what it offers to a client.

Owns the version and the groups. Invariants: no client gets a key exchange that costs much more than
the others; no session outlives its connection; the key is in no file that has a name.

TLS 1.3 alone is offered. Of TLS 1.2, OpenSSL keeps sessions that are over (0.9 KiB each, up to
20,480 for each group) and resumes them, and ``ssl`` has no way to stop that.

Sources: RFC 8446 (TLS 1.3), 7301 (ALPN), 9113 (section 9.2: TLS for HTTP/2).
"""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from sds.errors import ConfigurationError
from sds.transport.client_hello import DEFAULT, GROUPS, group_for
from sds.untrusted_input import words_of

if TYPE_CHECKING:
    from collections.abc import Mapping

ALPN: Final = "h2"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTlsSettings:
    """The TLS settings of a server with one certificate.

    Attributes:
        by_group: the settings for each group of the key exchange that a server can be limited to.
    """

    by_group: Mapping[str, ssl.SSLContext] = field(repr=False)

    def of(self, hello: bytes | bytearray) -> ssl.SSLContext:
        """Return the settings for a client by its ClientHello."""
        return self.by_group[group_for(hello, self.by_group)]


def server_settings(*, certificate_pem: bytes, key_pem: bytes) -> ServerTlsSettings:
    """Make the TLS settings of a server from its chain, leaf first, and its key.

    ``ssl`` reads them from files only, so they pass through one that has no name, is in memory and
    is closed at once.

    Raises:
        ConfigurationError: OpenSSL does not accept the chain or the key.
    """
    descriptor = os.memfd_create("tls", os.MFD_CLOEXEC)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(key_pem.rstrip() + b"\n" + certificate_pem)
        path = f"/proc/self/fd/{descriptor}"
        made = {name: _context(path, name) for name in GROUPS.values()}
        return ServerTlsSettings(by_group={name: one for name, one in made.items() if one})
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"OpenSSL does not accept this certificate and key: {words_of(error)}"
        ) from error
    finally:
        os.close(descriptor)


def _context(path: str, group: str) -> ssl.SSLContext | None:
    """Return the settings for one group of the key exchange.

    None if a server cannot be limited to this group: Python 3.11.2 cannot do that for X25519, and
    3.11.7 can. Clients that begin with it then get another group, which costs a round trip.

    Raises:
        ssl.SSLError: OpenSSL does not accept the chain or the key in this file.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.set_ecdh_curve(group)
    except (ssl.SSLError, ValueError):
        if group == DEFAULT:
            raise
        return None
    context.set_alpn_protocols([ALPN])
    # A resumed session would know nothing of a certificate that was replaced.
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET
    return context
