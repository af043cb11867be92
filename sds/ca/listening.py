"""Listens on the authority's address, and names those who connect.

Owns how ``listen`` of the configuration becomes sockets. Invariants: an address without a host
(``0.0.0.0``, ``[::]``) means every address of this machine, of both families if the machine has
both; all addresses of a host name get the same port; nobody else can take the port meanwhile; a
caller that the network lost is noticed after about 80 seconds, also if it owes us an answer.

Sources: tcp(7), ip(7), ipv6(7). An accepted socket inherits these options from the listening one.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
from typing import TYPE_CHECKING, Any, Final

from sds import threads
from sds.errors import ConfigurationError
from sds.settings.listen import host_and_port
from sds.transport.addresses import plain_address

if TYPE_CHECKING:
    from collections.abc import Sequence

_BACKLOG: Final = 4_096
"""As many as the kernel allows by default (net.core.somaxconn)."""
_QUIET_SECONDS: Final = 60
_PROBE_SECONDS: Final = 5
_PROBES: Final = 4
_TRIES: Final = 20
_NOT_OURS: Final = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})
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

    An address that this machine does not have is left out, as long as it has another one of the
    name's (``localhost`` on a machine without IPv6).

    Raises:
        ConfigurationError: none of the addresses is this machine's, or one cannot be listened on.
    """
    host, port = host_and_port(listen) or ("", 0)
    try:
        addresses = await _addresses(host)
        return _all_bound(addresses, port) if port else _bound_to_a_free_port(addresses)
    except OSError as error:
        raise ConfigurationError(
            f"the authority cannot listen on {listen!r}"
            + (f": {error.strerror}" if error.strerror else ""),
            advice="check that the address is this machine's and that the port is free",
        ) from error


def _bound_to_a_free_port(
    addresses: Sequence[tuple[socket.AddressFamily, str]],
) -> list[socket.socket]:
    """Do what :func:`_all_bound` does; a port that is free at one address may be taken at another.

    Raises:
        OSError: as there.
    """
    for _ in range(_TRIES):
        try:
            return _all_bound(addresses, 0)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    return _all_bound(addresses, 0)


def _all_bound(
    addresses: Sequence[tuple[socket.AddressFamily, str]], port: int
) -> list[socket.socket]:
    """Return sockets that listen on one port, at each of these addresses that is this machine's.

    Raises:
        OSError: one cannot be listened on, or none is this machine's; no socket is left open.
    """
    opened: list[socket.socket] = []
    missing: OSError | None = None
    with contextlib.ExitStack() as stack:
        for family, address in addresses:
            try:
                opened.append(stack.enter_context(_bound(family, address, port)))
            except OSError as error:
                if error.errno not in _NOT_OURS:
                    raise
                missing = error
            else:
                port = opened[0].getsockname()[1]
        if missing is not None and not opened:
            raise missing
        stack.pop_all()
    return opened


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
