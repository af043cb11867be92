"""A socket with TLS, and a client whose every byte the test passes on."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sds.ca.tls import TlsIdentity, self_signed_tls
from sds.transport.tls_socket import TlsEndpoints, TlsSocket
from sds.transport.turns import BUFFER_BYTES
from tests.support.raw_http2 import tls

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sds.transport.connected_socket import SocketUser


def identity() -> TlsIdentity:
    return self_signed_tls()


IDENTITY = identity()


def client_context(**changes: Any) -> ssl.SSLContext:
    """TLS that trusts everybody and speaks HTTP/2; ``changes`` are attributes of the context."""
    made = tls()
    if "alpn" in changes:
        made.set_alpn_protocols(changes.pop("alpn"))
    for name, value in changes.items():
        setattr(made, name, value)
    return made


@dataclass
class User:
    """Notes what the socket tells."""

    told: list[str] = field(default_factory=list)

    def readable(self) -> None:
        """Tests read by themselves."""

    def drained(self) -> None:
        self.told.append("drained")

    def recount(self) -> None:
        pass

    def left_unread(self, _count: int) -> None:
        """Count nothing."""

    def lost(self) -> None:
        self.told.append("lost")


@dataclass
class TlsLink:
    """Both ends of one connection."""

    server: TlsSocket
    endpoints: TlsEndpoints
    user: User
    wire: socket.socket
    incoming: ssl.MemoryBIO
    outgoing: ssl.MemoryBIO
    client: ssl.SSLObject
    looks: int = 0

    def look(self) -> bytes:
        """What one look of the server gives."""
        self.looks += 1
        return bytes(self.server.read())

    def take(self) -> bytes:
        """What the server reads until there is nothing more; it is not told to wait in between."""
        taken = b""
        while self.server.pending or self._readable():
            taken += self.look()
        return taken

    def _readable(self) -> bool:
        connected = self.server._raw._socket
        return connected is not None and bool(select.select([connected], [], [], 0)[0])

    def push(self, *, piece: int = 1 << 20) -> bytes:
        """Pass on what the client wants to send, so many bytes at once; what the server read."""
        taken, data = b"", self.outgoing.read()
        for at in range(0, len(data), piece):
            with contextlib.suppress(OSError):
                self.wire.sendall(data[at : at + piece])
            taken += self.take()
        return taken

    def pull(self) -> None:
        """Pass on what the server has sent."""
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while data := self.wire.recv(1 << 20):
                self.incoming.write(data)

    def shake(self, *, piece: int = 1 << 20) -> bytes:
        """The whole handshake; what the server read after it."""
        taken = b""
        for _ in range(8):
            try:
                self.client.do_handshake()
            except ssl.SSLWantReadError:
                taken += self.push(piece=piece)
                self.pull()
            else:
                return taken + self.push(piece=piece)
        raise AssertionError("the handshake does not end")

    def read(self) -> bytes:
        """What the client can read now."""
        self.pull()
        got = b""
        with contextlib.suppress(ssl.SSLWantReadError):
            while data := self.client.read(1 << 16):
                got += data
        return got


@contextlib.contextmanager
def tls_link(
    context: ssl.SSLContext | None = None, *, endpoints: TlsEndpoints | None = None
) -> Iterator[TlsLink]:
    """A connection on which nothing was sent; needs a running loop."""
    ours, theirs = socket.socketpair()
    theirs.settimeout(0)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = (context or client_context()).wrap_bio(incoming, outgoing, server_hostname="a")
    user, endpoints = User(), endpoints or TlsEndpoints(IDENTITY.settings)
    told: SocketUser = user
    server = endpoints.make(ours, asyncio.get_running_loop(), told, bytearray(BUFFER_BYTES))
    with theirs:
        try:
            yield TlsLink(server, endpoints, user, theirs, incoming, outgoing, client)
        finally:
            server.abort()
