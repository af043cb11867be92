"""Listens on the authority's address, and names those who connect.

Owns how ``listen`` of the configuration becomes sockets. Invariants: an address without a host
(``0.0.0.0``, ``[::]``) means every address of this machine, of both families if the machine has
both; all addresses of a host name get the same port; nobody else can take the port meanwhile; a
caller that the network lost is noticed after about 80 seconds, also if it owes us an answer.

Sources: tcp(7), ip(7), ipv6(7); what an accepted socket inherits of these options, it has from the
listening one.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from typing import TYPE_CHECKING, Any, Final

from sds import threads
from sds.ca.unproven import plain_address
from sds.errors import ConfigurationError
from sds.settings.listen import host_and_port

if TYPE_CHECKING:
    from collections.abc import Sequence

_BACKLOG: Final = 4_096
"""As many as the kernel allows by default (net.core.somaxconn)."""
_QUIET_SECONDS: Final = 60
_PROBE_SECONDS: Final = 5
_PROBES: Final = 4
_OPTIONS: Final = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _QUIET_SECONDS),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE_SECONDS),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES),
    # The probes above say nothing of a caller that does not acknowledge, or does not read.
    (
        socket.IPPROTO_TCP,
        socket.TCP_USER_TIMEOUT,
        (_QUIET_SECONDS + _PROBES * _PROBE_SECONDS) * 1000,
    ),
)


async def open_listeners(listen: str) -> list[socket.socket]:
    """Bind and listen on every address of ``host:port``; port 0 takes a free one for all.

    Raises:
        ConfigurationError: none of the addresses can be listened on.
    """
    host, port = host_and_port(listen) or ("", 0)
    opened: list[socket.socket] = []
    failure: OSError | None = None
    try:
        for family, address in await _addresses(host):
            try:
                opened.append(_bound(family, address, port))
            except OSError as error:
                failure = error
                continue
            port = opened[0].getsockname()[1]
    except OSError as error:  # the name has no address
        failure = error
    if opened:
        return opened
    raise ConfigurationError(
        f"the authority cannot listen on {listen!r}"
        + (f": {failure.strerror}" if failure is not None and failure.strerror else ""),
        advice="check that the address is this machine's and that the port is free",
    ) from failure


async def _addresses(host: str) -> Sequence[tuple[socket.AddressFamily, str]]:
    """Return the addresses that a host means.

    Raises:
        OSError: its name is not known.
    """
    with contextlib.suppress(ValueError):
        literal = ipaddress.ip_address(host)
        if literal.is_unspecified:
            both = socket.has_dualstack_ipv6()
            return [(socket.AF_INET6, "::") if both else (socket.AF_INET, "0.0.0.0")]
    found = await threads.NAMES.run(
        socket.getaddrinfo, host, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    return list(dict.fromkeys((family, str(place[0])) for family, _, _, _, place in found))


def _bound(family: socket.AddressFamily, address: str, port: int) -> socket.socket:
    """Return a listening socket.

    Raises:
        OSError: the port is taken, or the address is not this machine's.
    """
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        # Without it, a restart would wait for connections that ended lately.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, address != "::")
        for level, option, value in _OPTIONS:
            listener.setsockopt(level, option, value)
        listener.bind((address, port))
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def peer_name(address: Any) -> str:
    """Return the name of a peer in gRPC's form: ``ipv4:192.0.2.1:4711``.

    Args:
        address: the address as ``getpeername`` gives it.
    """
    ip = plain_address(str(address[0]))
    if isinstance(ip, ipaddress.IPv6Address):
        return f"ipv6:%5B{ip}%5D:{address[1]}"
    return f"ipv4:{ip}:{address[1]}"
