"""Makes the sessions of HTTP clients (aiohttp).

Owns how they look up names, make sockets and read heads. Invariants: nothing that an answer says is
kept for the next request, cookies included; before the head of an answer is whole, few bytes are
read, a little at a time, because aiohttp reads heads of status 1xx without end, and the event loop
stands still meanwhile; a lookup that hangs occupies a thread of :data:`sds.threads.LOOKUPS`, which
nothing else uses and for which the end of the process does not wait. By default, aiohttp uses the
event loop's default executor. The end of the process would wait for that executor as long as a dead
name server keeps a resolver waiting (resolv.conf(5): tens of seconds with the search domains of a
cluster). The kernel probes an idle connection, such as that of a watch (tcp(7)), so the end of a
server that vanished without a word is noticed.

aiohttp takes 8 MB, so only modules that ask an HTTP server import this one.
"""

from __future__ import annotations

import functools
import socket
from http import HTTPStatus
from typing import Any, Final

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError

from sds import threads
from sds.untrusted_input import words_of

_PROBE_AFTER_SECONDS: Final = 20
_PROBE_EVERY_SECONDS: Final = 5
_PROBES: Final = 4
MOST_HEAD_BYTES: Final = 128 * 1024
"""The most bytes before the head of an answer is whole."""
_PIECE_BYTES: Final = 4 * 1024
NO_ANSWER: Final = (
    aiohttp.ClientError,
    HttpProcessingError,
    OSError,
    ValueError,
    RuntimeError,
)
"""The errors that mean that there is no good answer: not all of aiohttp's have one base, and a line
that is too long is none of its ClientErrors. RuntimeError: the system gives no thread now."""
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


class _Answers(ResponseHandler):
    """The answers on one connection, whose heads are bounded together."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._head_bytes = 0
        self._is_headed = True
        """Whether the head of the answer came; before the first request, none is awaited."""

    def set_response_params(self, **params: Any) -> None:
        """Await the head of the next answer."""
        self._head_bytes, self._is_headed = 0, False
        super().set_response_params(**params)

    def feed_data(self, data: Any, size: int = 0) -> None:
        """Take a head (RFC 9110, section 15.2: those of status 1xx come before the answer's)."""
        code = data[0].code
        self._is_headed = not HTTPStatus.CONTINUE <= code < HTTPStatus.OK or (
            code == HTTPStatus.SWITCHING_PROTOCOLS
        )
        super().feed_data(data, size)

    def data_received(self, data: bytes) -> None:
        """Read what came, in pieces until the head is whole."""
        position = 0
        while not self._is_headed and position < len(data):
            piece = data[position : position + _PIECE_BYTES]
            position += len(piece)
            self._head_bytes += len(piece)
            if self._head_bytes > MOST_HEAD_BYTES:
                self._give_up()
                return
            super().data_received(piece)
        if position < len(data) or not data:
            super().data_received(data[position:])

    def _give_up(self) -> None:
        self._is_headed = True
        self.set_exception(
            aiohttp.ClientConnectionError(
                f"no answer began within the first {MOST_HEAD_BYTES} bytes"
            )
        )
        if self.transport is not None:
            self.transport.abort()


def client_session(**options: Any) -> aiohttp.ClientSession:
    """A session; close it. On the event loop.

    Args:
        options: of aiohttp's ClientSession.
    """
    connector = aiohttp.TCPConnector(resolver=_Names(), socket_factory=_socket)
    made = connector._factory  # noqa: SLF001  aiohttp has no other way to bound heads
    connector._factory = functools.partial(_Answers, **made.keywords)  # type: ignore[assignment]  # noqa: SLF001
    # The default jar keeps every cookie of every answer, and sends them all back.
    jar = aiohttp.DummyCookieJar()
    return aiohttp.ClientSession(connector=connector, cookie_jar=jar, **options)
