"""Makes the sessions of HTTP clients (aiohttp).

Owns how they look up names and make sockets. Invariants: a lookup that hangs occupies a thread of
:data:`sds.threads.LOOKUPS`, which nothing else uses and for which the end of the process does not
wait. By default, aiohttp uses the event loop's default executor. The end of the process would wait
for that executor as long as a dead name server keeps a resolver waiting (resolv.conf(5): tens of
seconds with the search domains of a cluster). The kernel probes an idle connection, such as that of
a watch (tcp(7)), so the end of a server that vanished without a word is noticed.

aiohttp takes 8 MB, so only modules that ask an HTTP server import this one.
"""

from __future__ import annotations

import socket
from typing import Any, Final

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from sds import threads
from sds.outside import words_of

_PROBE_AFTER_SECONDS: Final = 20
_PROBE_EVERY_SECONDS: Final = 5
_PROBES: Final = 4
_NUMERIC: Final = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV


class _Names(AbstractResolver):
    """getaddrinfo(3) in threads of our own."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        try:
            found = await threads.LOOKUPS.run(
                socket.getaddrinfo,
                host,
                port,
                family=family,
                type=socket.SOCK_STREAM,
                flags=socket.AI_ADDRCONFIG,
            )
        except RuntimeError as error:  # the system gives no thread now
            raise OSError(f"{host} cannot be looked up: {words_of(error)}") from error
        return [
            ResolveResult(
                hostname=host,
                host=_numeric(address),
                port=int(address[1]),
                family=kind,
                proto=protocol,
                flags=_NUMERIC,
            )
            for kind, _, protocol, _, address in found
        ]

    async def close(self) -> None:
        """Nothing is open."""


def _numeric(address: tuple[Any, ...]) -> str:
    """The address as text, with the interface of a link-local one (RFC 4007, section 11)."""
    _, _, _, scope = (*address, 0, 0)[:4]
    return f"{address[0]}%{scope}" if scope else str(address[0])


def _socket(address: aiohttp.AddrInfoType) -> socket.socket:
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    for level, option, value in (
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _PROBE_AFTER_SECONDS),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE_EVERY_SECONDS),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES),
    ):
        made.setsockopt(level, option, value)
    return made


def client_session(**options: Any) -> aiohttp.ClientSession:
    """A session; close it. On the event loop.

    Args:
        options: of aiohttp's ClientSession.
    """
    connector = aiohttp.TCPConnector(resolver=_Names(), socket_factory=_socket)
    return aiohttp.ClientSession(connector=connector, **options)
