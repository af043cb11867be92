"""Serves small read-only HTTP listeners (metrics, status page, probes, bundle).

Owns how such a listener is bound, speaks HTTP/1.1 (by h11, a fiftieth of aiohttp's memory) and
ends. Invariants: a Unix socket has mode 0600 and replaces only a dead one; only GET and HEAD are
answered; the headers, time and buffers of a connection are bounded, the kernel's included, and so
is the number of connections of a listener (:mod:`sds.operations.listener_places`); a connection
that waits for its place is not answered, and little of it is read. h11 gets the bytes in small
pieces, because it parses all that it has at once. The connections take turns, one request each, and
a listener uses a bounded share of the event loop, whatever its clients send.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias, cast

import h11

from sds import unix_sockets
from sds.clock import SystemClock
from sds.errors import SocketError
from sds.faults import guarded, report
from sds.operations.listener_places import SHORT, ConnectionPlaces, Patience
from sds.settings.listen import ListenAddress
from sds.transport.addresses import owner_of_ip
from sds.transport.budget import Budgets
from sds.transport.budget_sizes import Share
from sds.transport.turns import Turns

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from sds.clock import Clock

IDLE_SECONDS: Final = 75.0
"""How long a connection may be silent between requests, or leave an answer unread."""
REQUEST_SECONDS: Final = 10.0
"""How long a request may take to arrive."""
SHARE: Final = Share(processor=0.1, processor_burst_seconds=0.5)
"""A listener's default share of the event loop's processor time, for all its requests."""
_MAX_HEADER_BYTES: Final = 16 * 1024
_MAX_LINES: Final = 256
"""The most lines of one request: head, sizes of chunks, and trailers. h11 parses each one apart."""
_PIECE_BYTES: Final = 1024
"""The bytes that h11 gets at a time: it bounds only a head that is not complete."""
_MAX_BODY_BYTES: Final = 1024
_READ_BYTES: Final = 16 * 1024
"""The most bytes that are read at a time, and that the kernel is asked to keep of what a client of
a TCP listener sends meanwhile; it takes twice as much (socket(7)). Event loops read 250 KB."""
_TEXT: Final = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRequest:
    """A request: path and query (without the question mark), and headers by lower-case name.

    ``peer`` is the IP address of the other end; empty on a Unix socket. ``crowded`` says whether
    connections wait for a place, so that an answer which takes long may be one of a moment ago.
    """

    path: str
    headers: Mapping[str, str]
    query: str = ""
    peer: str = ""
    crowded: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpAnswer:
    """An answer; ``headers`` come beside Content-Type, Content-Length and Date."""

    body: bytes
    status: int = 200
    content_type: str = _TEXT
    headers: tuple[tuple[str, str], ...] = ()


HttpHandler: TypeAlias = "Callable[[HttpRequest], HttpAnswer]"


@contextlib.asynccontextmanager
async def listening(
    address: ListenAddress,
    routes: Mapping[str, HttpHandler],
    *,
    field: str = "listen",
    clock: Clock | None = None,
    share: Share = SHARE,
    patience: Patience = SHORT,
) -> AsyncIterator[ListenAddress]:
    """Serve GET of each path while the context is open; yield the address that was bound.

    Args:
        address: the address to listen on.
        routes: the handler of each path.
        field: the configuration's field with the address, for messages.
        clock: gives the time for the header Date.
        share: the share of the event loop's processor time for all requests.
        patience: how long a served connection keeps its place while others wait.

    Raises:
        SocketError: the address cannot be bound.
    """
    places = ConnectionPlaces(asyncio.get_running_loop(), patience)
    listener = _Listener(routes, clock if clock is not None else SystemClock(), places, share)
    server, bound = await _bind(listener, address, field)
    file = None if bound.path is None else unix_sockets.file_at(bound.path)
    try:
        yield bound
    finally:
        server.close()
        if bound.path is not None:
            unix_sockets.remove_at_end(bound.path, file)
        listener.close()
        await server.wait_closed()


async def _bind(
    listener: _Listener, address: ListenAddress, field: str
) -> tuple[asyncio.Server, ListenAddress]:
    loop = asyncio.get_running_loop()
    try:
        if address.path is None:
            server = await loop.create_server(listener.connection, address.host, address.port)
            for one in server.sockets:  # accepted sockets inherit it (tcp(7))
                one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _READ_BYTES)
            port = int(server.sockets[0].getsockname()[1])
            return server, ListenAddress(host=address.host, port=port)
        bound = unix_sockets.listening(address.path, unix_sockets.OURS_ALONE)
        try:
            server = await loop.create_unix_server(listener.connection, sock=bound)
        except BaseException:
            bound.close()
            raise
    except SocketError as error:
        raise SocketError(f"{field}: {error.message}", advice=error.advice) from error
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        raise SocketError(
            f"{field}: cannot listen on {address}: {why}",
            advice="another process uses it, or this user may not: choose another address",
        ) from error
    return server, address


class _Listener:
    """The routes of one listener, its connections and its share of the loop."""

    def __init__(
        self,
        routes: Mapping[str, HttpHandler],
        clock: Clock,
        places: ConnectionPlaces,
        share: Share,
    ) -> None:
        self._routes = routes
        self._clock = clock
        self.places = places
        """Decides which connections are served."""
        self._turns = Turns.of(asyncio.get_running_loop())
        self.buffer = memoryview(bytearray(_READ_BYTES))
        """Takes what is read from any connection."""
        self._owner = Budgets(share).owner("listener")
        self._owner.recognise()

    def work(self, connection: _Connection, job: Callable[[], bool]) -> None:
        """Run a job of this connection, in its turns, until the job says that nothing is left."""
        self._turns.run(self._owner, connection, job)

    def connection(self) -> _Connection:
        """Make a protocol for a connection that was accepted."""
        return _Connection(self)

    def close(self) -> None:
        """End every connection."""
        self.places.close()

    def answer(self, request: h11.Request, peer: str) -> HttpAnswer:
        """Find the handler and call it; a failure ends this request only."""
        path, _, query = request.target.decode("ascii", "replace").partition("?")
        handler = self._routes.get(path)
        if handler is None:
            return HttpAnswer(status=404, body=b"not found\n")
        if request.method not in (b"GET", b"HEAD"):
            allow = (("Allow", "GET, HEAD"),)
            return HttpAnswer(status=405, body=b"only GET and HEAD\n", headers=allow)
        headers = {name.decode("ascii"): value.decode("latin-1") for name, value in request.headers}
        crowded = self.places.crowded
        try:
            return handler(
                HttpRequest(path=path, headers=headers, query=query, peer=peer, crowded=crowded)
            )
        except Exception as error:  # noqa: BLE001  the boundary between one request and the rest
            report("request", error, path=path)
            return HttpAnswer(status=500, body=b"it failed; the log says why\n")

    def date(self) -> str:
        """Return the header Date (RFC 9110, section 5.6.7)."""
        return self._clock.now().wall.strftime("%a, %d %b %Y %H:%M:%S GMT")


class _Connection(asyncio.BufferedProtocol):
    """One connection: h11 parses its bytes, and the listener answers."""

    def __init__(self, listener: _Listener) -> None:
        self._listener = listener
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_HEADER_BYTES)
        self._received = memoryview(b"")
        """The received bytes that h11 has not got yet."""
        self._ended = False
        """Whether the client has ended its side."""
        self._arriving = False
        """Whether a request has begun to arrive."""
        self._lines = 0
        """How many lines of this request h11 has got."""
        self._request: h11.Request | None = None
        self._body = 0
        self._blocked = False
        """Whether the client leaves its answers unread."""
        self._working = False
        """Whether a request waits for its answer or for this connection's turn."""
        self._waits = False
        """Whether the connection still waits for a place."""
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self.owner = ""
        """The IP address or network of the other end; nothing on a Unix socket."""
        self._timer: asyncio.TimerHandle | None = None

    @property
    def working(self) -> bool:
        """Say whether it waits for us: it asked, or sent something that was not read yet."""
        if self._working or self._blocked or self._transport is None:
            return self._working
        looked = select.poll()
        looked.register(self._transport.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(looked.poll(0))

    def abort(self) -> None:
        """End the connection now."""
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """End the connection after it has received what was written."""
        if self._transport is not None:
            self._transport.close()

    def wait(self) -> None:
        """Read nothing until it is admitted."""
        if self._transport is not None:
            self._transport.pause_reading()
        self._waits = True

    def admitted(self) -> None:
        """Read from now on."""
        self._wait(REQUEST_SECONDS)
        if self._waits and self._transport is not None:
            self._waits = False
            self._transport.resume_reading()
            if self._received:
                self._loop.call_soon(guarded("connection", self._start_work))

    # --- called by the event loop ---------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's derives from nothing
        self.owner = owner_of_ip(self._peer())
        self._listener.places.opened(self)

    def connection_lost(self, _error: Exception | None) -> None:
        self._listener.places.closed(self)
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()

    def get_buffer(self, _sizehint: int) -> memoryview:
        return self._listener.buffer

    def buffer_updated(self, count: int) -> None:
        data = bytes(self._listener.buffer[:count])
        if self._waits:  # uvloop begins to read after ``connection_made``, whatever that said
            self._received = memoryview(data)
            self._arriving = True
            if self._transport is not None:
                self._transport.pause_reading()
            return
        if not self._arriving:  # later bytes of a request buy it neither time nor its place
            self._arriving = True
            self._wait(REQUEST_SECONDS)
            self._listener.places.active(self)
        self._received = memoryview(bytes(self._received) + data if self._received else data)
        self._start_work()

    def eof_received(self) -> bool:
        self._ended = True
        self._start_work()
        return True

    def pause_writing(self) -> None:
        self._blocked = True

    def resume_writing(self) -> None:
        self._blocked = False
        self._start_work()

    # --- requests -------------------------------------------------------------------------------

    def _start_work(self) -> None:
        if self._working or self._blocked or self._waits:
            return
        self._working = True
        self._listener.work(self, self._work)
        if (self._working or self._blocked) and self._transport is not None:
            self._transport.pause_reading()

    def _work(self) -> bool:
        """Answer one request; return whether there may be another."""
        try:
            self._working = self._answer_one()
        except Exception as error:  # noqa: BLE001  the boundary between one client and the rest
            self._working = False
            report("connection", error)
            self.abort()
        ready = not (self._working or self._blocked)
        if ready and self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()
        return self._working

    def _answer_one(self) -> bool:
        """Do the work of :meth:`_work`; answer nothing while the client does not read."""
        if self._transport is None or self._transport.is_closing() or self._blocked:
            return False
        try:
            while True:
                event = self._http.next_event()
                if not isinstance(event, h11.Event):
                    if not self._feed():
                        break
                    continue
                if isinstance(event, h11.ConnectionClosed):
                    self._transport.close()
                    return False
                self._take(event)
                if isinstance(event, h11.EndOfMessage):
                    return not self._transport.is_closing()
        except h11.RemoteProtocolError as error:
            if self._http.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
                status = error.error_status_hint
                self._send(HttpAnswer(status=status, body=b"no such HTTP\n"), close=True)
            self._transport.close()
        return False  # h11 needs more bytes, or the connection is over

    def _peer(self) -> str:
        """Return the IP address of the other end, or nothing."""
        assert self._transport is not None
        name = self._transport.get_extra_info("peername")
        return str(name[0]) if isinstance(name, tuple) else ""

    def _feed(self) -> bool:
        """Give h11 the next piece of the received bytes, or the end; return whether there was one.

        Raises:
            h11.RemoteProtocolError: the request has too many lines.
        """
        if not self._received:
            ended, self._ended = self._ended, False
            if ended:
                self._http.receive_data(b"")
            return ended
        piece = bytes(self._received[:_PIECE_BYTES])
        self._received = self._received[_PIECE_BYTES:]
        self._lines += piece.count(b"\n")
        if self._lines > _MAX_LINES:
            raise h11.RemoteProtocolError("too many lines", error_status_hint=431)
        self._http.receive_data(piece)
        return True

    def _take(self, event: h11.Event) -> None:
        match event:
            case h11.Request():
                self._request = event
                self._body = 0
            case h11.Data():
                self._body += len(event.data)
                if self._body > _MAX_BODY_BYTES:
                    raise h11.RemoteProtocolError("a body", error_status_hint=413)
            case h11.EndOfMessage():
                assert self._request is not None
                self._send(self._listener.answer(self._request, self._peer()))
                self._request = None
                self._arriving = False
                self._lines = 0
                if self._http.our_state is h11.MUST_CLOSE:
                    assert self._transport is not None
                    self._transport.close()
                else:
                    self._http.start_next_cycle()
                    self._wait(IDLE_SECONDS)
                self._listener.places.answered(self)
            case _:
                pass

    def _send(self, answer: HttpAnswer, *, close: bool = False) -> None:
        headers = [
            ("Content-Type", answer.content_type),
            ("Content-Length", str(len(answer.body))),
            ("Date", self._listener.date()),
            *answer.headers,
            *([("Connection", "close")] if close else []),
        ]
        head = self._request is not None and self._request.method == b"HEAD"
        events: list[h11.Event] = [h11.Response(status_code=answer.status, headers=headers)]
        if not head:
            events.append(h11.Data(data=answer.body))
        events.append(h11.EndOfMessage())
        assert self._transport is not None
        self._transport.write(b"".join(self._http.send(event) or b"" for event in events))

    def _wait(self, seconds: float) -> None:
        """End the connection unless something happens within this time."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, guarded("connection", self.abort))
