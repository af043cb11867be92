"""Who owns a network address: the caller for whom it counts, where callers have proven nothing.

Invariant: a host that has a whole network of addresses is one owner.
"""

from __future__ import annotations

import ipaddress
import urllib.parse
from typing import Final, TypeAlias

_IPV6_NETWORK: Final = 64
"""The bits of an IPv6 address that name one owner: a host may have any address below them."""
Address: TypeAlias = "ipaddress.IPv4Address | ipaddress.IPv6Address"


def owner_of(peer: str) -> str:
    """Return the owner of a connection: its IPv4 address, or the /64 of its IPv6 address.

    Args:
        peer: the peer as gRPC writes it: ``ipv4:192.0.2.1:4711``, ``ipv6:%5B2001:db8::1%5D:4711``,
            ….
    """
    host, _, _ = urllib.parse.unquote(peer).partition(":")[2].rpartition(":")
    return owner_of_ip(host.removeprefix("[").removesuffix("]")) or peer.partition(":")[0]


def plain_address(text: str) -> Address | None:
    """Return the address in its shortest family, without a zone; None if it is not one."""
    try:
        found = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return found if mapped is None else mapped


def owner_of_ip(text: str) -> str:
    """Return the owner of an IP address: itself, or its /64 (IPv6); nothing for another text."""
    address = plain_address(text)
    if address is None:
        return ""
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    return str(ipaddress.ip_network((address, _IPV6_NETWORK), strict=False))
