"""TLS on one connected socket: what :class:`ConnectedSocket` does, encrypted.

Owns the TLS state of one connection, and the buffers between OpenSSL and the socket. Invariants:
the handshake and everything else is work of :meth:`TlsSocket.read`, so it runs in the connection's
turn, and one look takes at most :data:`READ_BYTES` from the kernel and gives OpenSSL a bounded
number of records; all plaintext of a look is given at once, and what is left for the next look is
:attr:`~TlsSocket.pending`, so nothing waits while the socket is silent; output that is given
before the handshake is over waits and is counted; a client that breaks TLS is told so by an alert,
and that ends this connection only; a client that has gone costs no handshake; no error of ``ssl``
comes out.

Sources: RFC 8446 (TLS 1.3), 7301 (ALPN), 9113 (section 9.2: TLS for HTTP/2).
"""

from __future__ import annotations

import contextlib
import ssl
from typing import TYPE_CHECKING, Final, cast

from sds.errors import Http2Error
from sds.transport.connected_socket import ConnectedSocket
from sds.transport.frames import ErrorCode
from sds.transport.hello_bound import HelloBound
from sds.transport.tls_records import RecordCutter
from sds.transport.tls_settings import ALPN
from sds.untrusted_input import words_of

if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import Callable, Sequence

    from sds.transport.connected_socket import SocketUser
    from sds.transport.tls_settings import ServerTlsSettings

READ_BYTES: Final = 16 * 1024
"""The most bytes of one look; :mod:`sds.transport.tls_records` bounds the records among them."""
_RECORD_BYTES: Final = 16 * 1024 + 256 + 5
"""The largest record (RFC 8446, section 5.2), part of which may wait."""
_PLAIN_BYTES: Final = READ_BYTES + _RECORD_BYTES
_STATE_BYTES: Final = 12 * 1024
"""Bytes of memory of OpenSSL's state of a connection."""
_NOTHING: Final = memoryview(b"")


class TlsEndpoints:
    """Makes TLS endpoints.

    Args:
        current: gives the settings for a new connection.
        established: is told of each connection whose handshake is over, by its user.

    Attributes:
        begun: how many handshakes OpenSSL began.
        done: how many were successful.
        failed: how many were not, because the client broke TLS or offered nothing that we accept.
        left: how many clients went away before their handshake was over.
    """

    def __init__(
        self,
        current: Callable[[], ServerTlsSettings],
        established: Callable[[SocketUser], None] = lambda _: None,
    ) -> None:
        self._current = current
        self.established = established
        self.begun = self.done = self.failed = self.left = 0

    def make(
        self,
        connected: socket.socket,
        loop: asyncio.AbstractEventLoop,
        user: SocketUser,
        buffer: bytearray,
    ) -> TlsSocket:
        return TlsSocket(connected, loop, user, buffer, self)

    def begin(
        self, hello: bytearray, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO
    ) -> ssl.SSLObject:
        """Begin a handshake with a client by the settings of now."""
        self.begun += 1
        return self._current().of(hello).wrap_bio(incoming, outgoing, server_side=True)

    def turn_away(self, accepted: socket.socket, text: str) -> None:
        """Close a connection that is not served; to say why would cost a handshake."""
        del text
        accepted.close()


class _Handshake:
    """What a connection needs until its handshake is over."""

    __slots__ = ("bound", "early", "held", "waiting")

    def __init__(self) -> None:
        self.bound = HelloBound()
        self.waiting = b""
        """What came before the ClientHello was complete."""
        self.early: list[bytes | memoryview] = []
        """Output that waits for the handshake's end."""
        self.held = 0
        """The bytes of that output."""


class TlsSocket:
    """A connected socket with TLS on the event loop; see :class:`ConnectedSocket`.

    Args:
        connected: the socket, which this object owns from now on.
        loop: the event loop that watches it.
        user: the user of the socket.
        buffer: takes what is read; sockets of one loop may share it.
        endpoints: give the settings, and count.
    """

    __slots__ = (
        "_broken",
        "_buffer",
        "_endpoints",
        "_handshake",
        "_incoming",
        "_inside",
        "_outgoing",
        "_raw",
        "_records",
        "_rest",
        "_tls",
        "_user",
    )

    def __init__(
        self,
        connected: socket.socket,
        loop: asyncio.AbstractEventLoop,
        user: SocketUser,
        buffer: bytearray,
        endpoints: TlsEndpoints,
    ) -> None:
        assert len(buffer) >= _PLAIN_BYTES, "the plaintext of one look fits"
        self._raw = ConnectedSocket(connected, loop, user, memoryview(buffer)[:READ_BYTES])
        self._buffer = buffer
        self._user = user
        self._endpoints = endpoints
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls: ssl.SSLObject | None = None
        """OpenSSL's state, once the client has said something."""
        self._handshake: _Handshake | None = _Handshake()
        self._records = RecordCutter()
        self._rest = b""
        """What was read, but is for the next look."""
        self._inside = 0
        """Bytes of an incomplete record, or of a handshake, that OpenSSL may keep."""
        self._broken = False
        """Whether nothing more can be sent to the client."""

    # --- as ConnectedSocket ---------------------------------------------------------------------

    @property
    def unsent(self) -> int:
        """Return how many bytes of output the kernel has not taken."""
        return self._raw.unsent + self._early

    @property
    def written(self) -> int:
        """Return how many bytes were given to the kernel, or wait, since the beginning."""
        return self._raw.written + self._early

    @property
    def backlog(self) -> int:
        """Return the bytes of memory of output that waits for the kernel."""
        return self._raw.backlog

    @property
    def held(self) -> int:
        """Return the bytes of memory of OpenSSL's state and of waiting input and output."""
        state = _STATE_BYTES if self._tls is not None else 0
        return self._raw.held + self._early + self._inside + len(self._rest) + state

    @property
    def _early(self) -> int:
        return 0 if self._handshake is None else self._handshake.held

    def is_closed(self) -> bool:
        return self._raw.is_closed()

    @property
    def pending(self) -> bool:
        """Say whether :meth:`read` has something to do although the socket may be silent."""
        return bool(self._rest) and not self._raw.is_closed()

    def client_left(self) -> bool:
        return self._raw.client_left()

    def resume_reading(self) -> None:
        self._raw.resume_reading()

    def pause_reading(self) -> None:
        self._raw.pause_reading()

    # --- reading --------------------------------------------------------------------------------

    def read(self) -> memoryview:
        """Read what has arrived, at most :data:`READ_BYTES`, and decrypt what is complete.

        The result is a view of the buffer, into which the next socket reads.

        Raises:
            Http2Error: the client broke TLS, or offers nothing that we accept; it was told.
        """
        raw = memoryview(self._rest) if self._rest else self._raw.read()
        self._rest = b""
        if not raw:
            if self._handshake is not None and self._raw.is_closed():
                self._gave_up()
            return _NOTHING
        size = self._records.cut(raw)
        if size < len(raw):
            self._rest = bytes(raw[size:])
            raw = raw[:size]
        try:
            if self._handshake is not None and not self._proceed(self._handshake, raw):
                return _NOTHING
            if self._handshake is None:
                self._incoming.write(raw)
            else:
                self._end_handshake(self._handshake)
            return self._plaintext(len(raw))
        except Http2Error as error:
            raise self._broke(error.message) from None
        except (ssl.SSLError, ValueError) as error:
            raise self._broke(words_of(error)) from None

    def _proceed(self, handshake: _Handshake, raw: memoryview) -> bool:
        """Go on with the handshake, and say whether it is over.

        Raises:
            Http2Error: the client's part is too large.
            ssl.SSLError: it is not acceptable.
        """
        if self._raw.client_left():
            self._gave_up()
            return False
        handshake.bound.check(raw)
        if self._tls is None:
            if not handshake.bound.complete:
                handshake.waiting += raw
                self._inside = 2 * len(handshake.waiting)
                return False
            self._incoming.write(handshake.waiting)
            self._tls = self._endpoints.begin(handshake.bound.hello, self._incoming, self._outgoing)
            handshake.waiting = b""
            handshake.bound.hello.clear()
            self._inside = 0
        self._incoming.write(raw)
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._inside += len(raw)
            self._flush()
            return False
        return True

    def _end_handshake(self, handshake: _Handshake) -> None:
        """Begin to serve.

        Raises:
            Http2Error: the client did not ask for HTTP/2.
        """
        if self._tls is None or self._tls.selected_alpn_protocol() != ALPN:
            raise Http2Error(
                "the client does not offer HTTP/2 (ALPN h2)", code=ErrorCode.INADEQUATE_SECURITY
            )
        self._handshake = None
        self._endpoints.done += 1
        self._endpoints.established(self._user)
        if handshake.early:
            self.write(handshake.early)

    def _plaintext(self, fed: int) -> memoryview:
        """Return everything that OpenSSL can decrypt now.

        Raises:
            ssl.SSLError: a record is not acceptable.
        """
        tls, view, count = self._tls, memoryview(self._buffer), 0
        assert tls is not None, "the handshake is over"
        while True:
            try:
                got = cast("int", tls.read(_RECORD_BYTES, view[count:]))
            except ssl.SSLWantReadError:
                break
            if not got:  # the client said that it sends nothing more
                self._flush()
                self._raw.abort()
                return view[:count]
            count += got
        self._inside = 0 if count else self._inside + fed
        self._flush()
        return view[:count]

    def _gave_up(self) -> None:
        """Note that the client went away before its handshake was over."""
        if not self._broken:
            self._broken = True
            self._endpoints.left += 1
        self._raw.abort()

    def _broke(self, why: str) -> Http2Error:
        """Tell the client by the alert that OpenSSL made, if any, and let nothing follow."""
        self._flush()
        self._broken = True
        if self._handshake is not None:
            self._endpoints.failed += 1
        return Http2Error(f"TLS: {why}", code=ErrorCode.INADEQUATE_SECURITY)

    # --- writing --------------------------------------------------------------------------------

    def write(self, pieces: Sequence[bytes | memoryview]) -> None:
        """Encrypt and write what the kernel takes, and keep the rest for later."""
        if self._broken or self._raw.is_closed():
            return
        if self._handshake is not None:
            self._handshake.early += pieces
            self._handshake.held += sum(map(len, pieces))
            return
        data = b"".join(pieces)
        if self._tls is None or not data:
            return
        try:
            self._tls.write(data)
        except (ssl.SSLError, ValueError):  # the client closed its side, say
            self._broken = True
            self._raw.abort()
            return
        self._flush()

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._raw.write([self._outgoing.read()])

    # --- the end --------------------------------------------------------------------------------

    def close(self) -> None:
        """Say that nothing follows, and close once that is taken; the caller limits the time."""
        if self._raw.is_closed():
            return
        if self._tls is not None and self._handshake is None and not self._broken:
            self._broken = True
            with contextlib.suppress(ssl.SSLError, ValueError):
                self._tls.unwrap()  # it fails, because the client's own farewell is not there
            self._flush()
        self._raw.close()

    def abort(self) -> None:
        self._raw.abort()
