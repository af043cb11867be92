"""Sockets, tasks and their end: gRPC handlers served over :mod:`sds.transport.connection`.

Owns the connections of one server and the task of each call. Invariants: every call has one task,
which ends with its stream and at the latest with :meth:`Server.stop`; a handler that fails ends
its own call only; a connection that does not greet, does not read or breaks HTTP/2 is closed and
costs nobody else anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import grpc

from sds.errors import (
    Http2Error,
    LimitError,
    MalformedRequestError,
)
from sds.transport.call import Call
from sds.transport.connection import Connection
from sds.transport.events import ConnectionLimits, Drained, Opened, Received, Reset
from sds.transport.handling import serve_call
from sds.transport.headers import plain_response
from sds.transport.messages import timeout_seconds

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable

    from sds.transport.events import Event
    from sds.transport.handling import Gate

_LOG: Final = logging.getLogger("sds.transport")
_CLOSING_SECONDS: Final = 1.0
_BACKLOG: Final = 4096
_MOST_UNREAD: Final = 8 * 1024 * 1024
"""Bytes that a client may leave unread before its connection is closed; beyond one message only
answers to its own PINGs and SETTINGS get there."""
_NOT_POST: Final = plain_response(405, [(b"allow", b"POST")])
_NOT_GRPC: Final = plain_response(415, [(b"accept", b"application/grpc")])
_NO_TRANSPORT: Final = asyncio.Transport()
_number: Final = itertools.count(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """What the clients of one server may do.

    Attributes:
        message_bytes: of one request.
        held_bytes: of requests that one connection has sent and nobody has taken yet.
        greeting_seconds: after which a connection that does not speak HTTP/2 is closed.
        connection: of HTTP/2 itself.
    """

    message_bytes: int = 4 * 1024 * 1024
    held_bytes: int = 64 * 1024 * 1024
    greeting_seconds: float = 20.0
    connection: ConnectionLimits = field(default_factory=ConnectionLimits)


class Unsent(NamedTuple):
    """What one connection had not given to the kernel at one moment.

    Attributes:
        end: bytes of output, from the connection's beginning, up to the last one of it.
        streams: the streams on which something waited, each with how often it was drained before.
    """

    end: int
    streams: dict[int, int]


class _Details(NamedTuple):
    """What ``grpc.GenericRpcHandler.service`` is asked with."""

    method: str
    invocation_metadata: tuple[tuple[str, str], ...] = ()


class Server:
    """Serves handlers on sockets that are given to it; see the module."""

    def __init__(
        self, handlers: Iterable[grpc.GenericRpcHandler] = (), *, limits: ServerLimits | None = None
    ) -> None:
        """Nothing is served before :meth:`listen`, or on a :meth:`connection`."""
        self.limits = limits if limits is not None else ServerLimits()
        self.stopping = False
        self.tasks: set[asyncio.Task[None]] = set()
        self._handlers = list(handlers)
        self.gate: Gate | None = None
        """Asked before every call, also one without a handler."""
        self._first_call: Callable[[Server], None] | None = None
        self._methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        self._connections: dict[ServedConnection, None] = {}
        self._listeners: list[asyncio.Server] = []

    # --- as grpc.aio.Server ---------------------------------------------------------------------

    def add_generic_rpc_handlers(self, handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        """See ``grpc.aio.Server``; generated ``add_…_to_server`` functions call it."""
        self._handlers += handlers

    def add_registered_method_handlers(self, service: str, handlers: Any) -> None:
        """See ``grpc.aio.Server``: the same handlers again, for a path that only grpc has."""

    def before_first_call(self, prepare: Callable[[Server], None]) -> None:
        """Let ``prepare`` add handlers when a call comes: most of many sockets wait for theirs."""
        self._first_call = prepare

    def method(self, path: str) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The handler of a method, None where there is none."""
        if self._first_call is not None:
            prepare, self._first_call = self._first_call, None
            prepare(self)
        found = self._methods.get(path)
        if found is None:
            details: Any = _Details(path)
            for handler in self._handlers:
                if (found := handler.service(details)) is not None:
                    self._methods[path] = found
                    break
        return found

    # --- connections ----------------------------------------------------------------------------

    async def listen(self, listener: socket.socket, *, caller: object = None) -> None:
        """Accept on a bound Unix stream socket, which is ours from now on.

        Args:
            listener: the socket.
            caller: what ``context.caller()`` gives to handlers of every connection.
        """
        loop = asyncio.get_running_loop()
        # The loop listens once more, and its default would shorten the queue: a client that finds
        # the queue of a Unix socket full is refused (connect(2): EAGAIN), and a crowd would be.
        self._listeners.append(
            await loop.create_unix_server(
                lambda: ServedConnection(self, caller=caller), sock=listener, backlog=_BACKLOG
            )
        )

    def connection(self, *, caller: object, on_close: Callable[[], None]) -> ServedConnection:
        """A connection for a socket that somebody else accepted.

        Args:
            caller: what ``context.caller()`` gives to the handlers.
            on_close: called once, when the connection is over.
        """
        return ServedConnection(self, caller=caller, on_close=on_close)

    async def stop(self, grace_seconds: float) -> None:
        """Accept nobody new; calls that are open then have so many seconds to end."""
        self.stopping = True
        for listener in self._listeners:
            listener.close()
        for served in self._connections:
            served.go_away()
        if self.tasks and grace_seconds > 0:
            await asyncio.wait(self.tasks, timeout=grace_seconds)
        for task in self.tasks:
            task.cancel()
        if self.tasks:
            await asyncio.wait(self.tasks)
        closed = [asyncio.ensure_future(served.close()) for served in self._connections]
        if closed:
            await asyncio.wait(closed)

    def joined(self, served: ServedConnection) -> None:
        """A connection is there."""
        self._connections[served] = None

    def left(self, served: ServedConnection) -> None:
        """A connection is over."""
        self._connections.pop(served, None)


class ServedConnection(asyncio.Protocol):
    """One connection: bytes in, events to calls, bytes out."""

    def __init__(
        self, server: Server, *, caller: object, on_close: Callable[[], None] | None = None
    ) -> None:
        self.caller = caller
        self.peer = f"connection:{next(_number)}"
        self._server = server
        self._on_close = on_close
        self._http2 = Connection(server.limits.connection)
        self._calls: dict[int, Call] = {}
        self._held = 0
        self._paused = False
        self._written = 0
        self._gone = False
        self._loop = asyncio.get_running_loop()
        self._lost: asyncio.Future[None] | None = None
        self._greeting: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport = _NO_TRANSPORT

    # --- asyncio.Protocol -----------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        """See ``asyncio.Protocol``."""
        self._transport = transport
        self._server.joined(self)
        seconds = self._server.limits.greeting_seconds
        self._greeting = self._loop.call_later(seconds, self._expect_greeting)
        self._flush()

    def data_received(self, data: bytes) -> None:
        """See ``asyncio.Protocol``."""
        try:
            events = self._http2.receive(data, self._loop.time())
        except Http2Error as error:
            _LOG.info(
                "a connection was closed",
                extra={"peer": self.peer, "reason": error.reason, "why": error.message},
            )
            self._flush()
            self._transport.close()
            return
        for event in events:
            self._on_event(event)
        self._flush()

    def pause_writing(self) -> None:
        """See ``asyncio.BaseProtocol``."""
        self._paused = True

    def resume_writing(self) -> None:
        """See ``asyncio.BaseProtocol``."""
        self._paused = False
        for call in list(self._calls.values()):
            call.wake_writer()

    def connection_lost(self, exc: Exception | None) -> None:
        """See ``asyncio.Protocol``."""
        del exc
        self._gone = True
        if self._greeting is not None:
            self._greeting.cancel()
        calls, self._calls = self._calls, {}
        for call in calls.values():
            _end(call)
        self._http2.drop()
        self._server.left(self)
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(None)
        if self._on_close is not None:
            self._on_close()

    # --- sds.transport.call.Link ----------------------------------------------------------------

    def send(self, stream: int, message: bytes) -> None:
        self._http2.send_message(stream, message)
        self._flush()

    def blocked(self, stream: int) -> bool:
        return self._paused or self._http2.waits(stream)

    def finish(self, stream: int, status: int, message: str) -> None:
        self._calls.pop(stream, None)
        self._http2.finish(stream, status=status, message=message)
        self._flush()

    def taken(self, stream: int, count: int) -> None:
        self._http2.take(stream, count)

    def hold(self, count: int) -> None:
        self._held += count
        if count > 0 and self._held > self._server.limits.held_bytes:
            raise LimitError(
                f"{self._held} bytes of requests wait on this connection",
                advice="send fewer requests at once",
            )

    # --- for the server -------------------------------------------------------------------------

    def go_away(self) -> None:
        """Tell the client to go elsewhere with its next calls."""
        self._http2.go_away()
        self._flush()

    async def close(self) -> None:
        """Close once all is written, or after a moment."""
        if self._lost is None:
            self._lost = self._loop.create_future()
        self._transport.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSING_SECONDS):
                await asyncio.shield(self._lost)
        self._transport.abort()

    async def serve_on(self, accepted: socket.socket) -> None:
        """Serve on an accepted socket, which is ours from now on; returns when it has begun."""
        await self._loop.connect_accepted_socket(lambda: self, accepted)

    def abort(self) -> None:
        """Close now; does nothing before :meth:`serve_on`."""
        if self._transport is not _NO_TRANSPORT:
            self._transport.abort()

    # --- output that nobody takes ---------------------------------------------------------------

    def unsent(self) -> Unsent | None:
        """What has not been given to the kernel yet; None where all of it has."""
        streams = self._http2.waiting()
        if self._gone or not (streams or self._transport.get_write_buffer_size()):
            return None
        return Unsent(self._written, streams)

    def is_unsent(self, before: Unsent) -> bool:
        """Whether any of what was unsent then still is."""
        if self._gone:
            return False
        if self._written - self._transport.get_write_buffer_size() < before.end:
            return True
        waiting = self._http2.waiting()
        return any(waiting.get(number) == drained for number, drained in before.streams.items())

    # --- events ---------------------------------------------------------------------------------

    def _on_event(self, event: Event) -> None:
        match event:
            case Received():
                call = self._calls.get(event.stream)
                if call is not None:
                    self._feed(call, event.payload, ended=event.ended)
                elif event.payload:  # of a call that is over: room for others nevertheless
                    self._http2.take(event.stream, len(event.payload))
            case Opened():
                self._open(event)
            case Drained():
                call = self._calls.get(event.stream)
                if call is not None:
                    call.wake_writer()
            case Reset():
                call = self._calls.pop(event.stream, None)
                if call is not None:
                    _end(call)

    def _feed(self, call: Call, payload: memoryview, *, ended: bool) -> None:
        try:
            call.feed(payload, ended=ended)
        except LimitError as error:
            call.finish(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
            _end(call)
        except MalformedRequestError as error:
            call.finish(grpc.StatusCode.UNIMPLEMENTED, str(error))
            _end(call)

    def _open(self, event: Opened) -> None:
        head = event.head
        if head.method != b"POST":
            self._http2.refuse(event.stream, _NOT_POST)
            return
        if not (head.get(b"content-type") or b"").startswith(b"application/grpc"):
            self._http2.refuse(event.stream, _NOT_GRPC)
            return
        call = Call(
            self,
            event.stream,
            head,
            most=self._server.limits.message_bytes,
            loop=self._loop,
        )
        handler = self._server.method(head.path)
        try:
            timeout = head.get(b"grpc-timeout")
            seconds = None if timeout is None else timeout_seconds(timeout)
        except MalformedRequestError as error:
            call.finish(grpc.StatusCode.INTERNAL, str(error))
            return
        if self._server.stopping:
            call.finish(grpc.StatusCode.UNAVAILABLE, "this server is going down: connect again")
            return
        self._calls[event.stream] = call
        if event.ended:
            call.feed(memoryview(b""), ended=True)
        task = call.task = self._loop.create_task(
            serve_call(call, handler, self._server.gate), name=head.path
        )
        self._server.tasks.add(task)
        task.add_done_callback(self._server.tasks.discard)
        task.add_done_callback(call.forget_task)
        if seconds is not None:
            call.deadline = self._loop.call_later(seconds, call.expire)

    # --- inside ---------------------------------------------------------------------------------

    def _flush(self) -> None:
        output = self._http2.take_output()
        if output:
            self._written += sum(map(len, output))
            self._transport.writelines(output)
            if self._paused and self._transport.get_write_buffer_size() > _MOST_UNREAD:
                _LOG.info("a connection that reads nothing was closed", extra={"peer": self.peer})
                self._transport.abort()

    def _expect_greeting(self) -> None:
        if not self._http2.greeted:
            _LOG.info("a connection that never greeted was closed", extra={"peer": self.peer})
            self._transport.abort()


def _end(call: Call) -> None:
    call.close()
    if call.task is not None:
        call.task.cancel()
