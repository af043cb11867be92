"""gRPC handlers, and the sockets and connections on which they are served.

Owns the methods and the connections of one server and the task of each call. Invariants: every call
has one task, which ends with its stream and at the latest with :meth:`Server.stop`; that waits for
calls whose handler has begun, and for no other; a handler that fails ends only its own call; every
connection has an owner, whose budget it uses.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc

from sds.transport.accepting import Acceptor, process_of, user_of
from sds.transport.budget import Budgets
from sds.transport.endpoint import PlainEndpoints
from sds.transport.events import ConnectionLimits
from sds.transport.served_connection import CLOSING_SECONDS, ServedConnection

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable

    from sds.transport.call import Call
    from sds.transport.endpoint import Endpoints
    from sds.transport.handling import Admission


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """The limits of one server's clients, beside the budgets of their owners.

    Attributes:
        message_bytes: the largest request.
        single_bytes: the largest request of a method that takes one, not a stream of them.
        held_bytes: the most bytes of requests on one connection that no handler has taken yet.
        unread_bytes: nothing more is read from a client that leaves output of so many bytes unread:
            beyond one message, such output is answers to the client's own frames.
        greeting_seconds: how long a connection may take until it speaks HTTP/2.
        idle_seconds: how long a connection may be without a call, once it has greeted; None for as
            long as the client likes.
        owners_pay_for_lines: whether an owner's allowance bounds what handlers log for it.
        connection: the limits of HTTP/2 itself.
    """

    message_bytes: int = 4 * 1024 * 1024
    single_bytes: int = 4 * 1024 * 1024
    held_bytes: int = 64 * 1024 * 1024
    unread_bytes: int = 1024 * 1024
    greeting_seconds: float = 20.0
    idle_seconds: float | None = None
    owners_pay_for_lines: bool = True
    connection: ConnectionLimits = field(default_factory=ConnectionLimits)


class _Details(NamedTuple):
    """The argument of ``grpc.GenericRpcHandler.service``."""

    method: str
    invocation_metadata: tuple[tuple[str, str], ...] = ()


class Server:
    """Serves handlers on sockets that are given to it.

    Args:
        handlers: the methods.
        limits: the limits of its clients.
        budgets: the budgets of its connections' owners, which servers of one process share; new
            ones if left out.
        endpoints: makes the endpoints of its connections; such without TLS if left out.
    """

    def __init__(
        self,
        handlers: Iterable[grpc.GenericRpcHandler] = (),
        *,
        limits: ServerLimits | None = None,
        budgets: Budgets | None = None,
        endpoints: Endpoints | None = None,
    ) -> None:
        """Make a server that serves nothing before :meth:`listen` or :meth:`connection`."""
        self.limits = limits if limits is not None else ServerLimits()
        self.budgets = budgets if budgets is not None else Budgets()
        self.endpoints = endpoints if endpoints is not None else PlainEndpoints()
        self.stopping = False
        self.tasks: set[asyncio.Task[None]] = set()
        self._handlers = list(handlers)
        self.gate: Admission | None = None
        """Is asked before every call, even one without a handler."""
        self._at_the_gate: set[Call] = set()
        """Those that wait for its answer."""
        self._first_call: Callable[[Server], None] | None = None
        self._at_stop: list[Callable[[], None]] = []
        self._methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        self._connections: dict[ServedConnection, None] = {}
        self._nobody: asyncio.Event | None = None
        """Set once no connection is left, while the server stops."""
        self._acceptors: list[Acceptor] = []

    # --- as grpc.aio.Server ---------------------------------------------------------------------

    def add_generic_rpc_handlers(self, handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        """Add handlers, as ``grpc.aio.Server`` does; generated code calls this."""
        self._handlers += handlers

    def add_registered_method_handlers(self, service: str, handlers: Any) -> None:
        """Do nothing: grpc adds the same handlers again, for a path that only grpc has."""

    def before_first_call(self, prepare: Callable[[Server], None]) -> None:
        """Let ``prepare`` add handlers at the first call, because many sockets never get one."""
        self._first_call = prepare

    def at_stop(self, end: Callable[[], None]) -> None:
        """Call ``end`` when the server stops: it ends calls that would otherwise go on for ever."""
        self._at_stop.append(end)

    def method(self, path: str) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Return the handler of a method, None if there is none."""
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

    async def admit(self, call: Call, /) -> None:
        """Ask the gate about a call; it waits for nobody while the server stops.

        Raises:
            AbortedError: the call does not reach its handler.
        """
        if self.gate is None:
            return
        if self.stopping:
            why = "this server is stopping: connect again"
            await call.abort(grpc.StatusCode.UNAVAILABLE, why)
        self._at_the_gate.add(call)
        try:
            await self.gate(call)
        finally:
            self._at_the_gate.discard(call)

    # --- connections ----------------------------------------------------------------------------

    async def listen(
        self,
        listener: socket.socket,
        *,
        caller: object = None,
        owner_of: Callable[[socket.socket], str] = user_of,
        recognised: bool = True,
    ) -> None:
        """Accept on a bound and listening Unix stream socket, which the server owns from now on.

        Args:
            listener: the socket.
            caller: what ``context.caller()`` gives to the handlers, for every connection.
            owner_of: names the owner of an accepted connection.
            recognised: whether everybody who can open the socket may use it.
        """

        def take(accepted: socket.socket) -> None:
            owner = self.budgets.owner(owner_of(accepted))
            if recognised:
                owner.recognise()
            party = f"{process_of(accepted)} on {listener.fileno()}"
            ServedConnection(self, caller=caller, owner=owner, party=party).begin(accepted)

        self._acceptors.append(Acceptor(listener, asyncio.get_running_loop(), take))

    def accept(
        self,
        listener: socket.socket,
        take: Callable[[socket.socket], None],
        *,
        gone: Callable[[socket.socket], bool],
    ) -> None:
        """Accept on a bound and listening socket, which the server owns from now on.

        Args:
            listener: the socket.
            take: gets each connection and owns it; it may serve it by :meth:`connection`.
            gone: says whether a client has already gone.
        """
        loop = asyncio.get_running_loop()
        self._acceptors.append(Acceptor(listener, loop, take, gone=gone))

    def connection(
        self, *, caller: object, owner: str, on_close: Callable[[], None], peer: str = ""
    ) -> ServedConnection:
        """Make a connection for a socket that somebody else accepted.

        Args:
            caller: what ``context.caller()`` gives to the handlers.
            owner: the name of the owner whose budget it uses.
            on_close: is called once, when the connection is over.
            peer: what ``context.peer()`` gives to the handlers; a number if left out.
        """
        return ServedConnection(
            self, caller=caller, owner=self.budgets.owner(owner), on_close=on_close, peer=peer
        )

    async def stop(self, grace_seconds: float) -> None:
        """Accept no new connection, and give open calls ``grace_seconds`` to end.

        Clients close connections on which nothing is left, because they were told to go away (RFC
        9113, section 6.8). They have a moment for that: a client of gRPC's C core drops an answer
        that it has not read yet if it cannot write, and it writes when it gets a part of one.
        """
        self._begin_to_stop()
        if self.tasks and grace_seconds > 0:
            await asyncio.wait(self.tasks, timeout=grace_seconds)
            if not self.tasks and self._connections:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(CLOSING_SECONDS):
                        await self._all_left()
        for task in self.tasks:
            task.cancel()
        if self.tasks:
            await asyncio.wait(self.tasks)
        closed = [asyncio.ensure_future(served.close()) for served in self._connections]
        if closed:
            await asyncio.wait(closed)

    def _begin_to_stop(self) -> None:
        self.stopping = True
        for acceptor in self._acceptors:
            acceptor.close()
        for end in self._at_stop:
            end()
        for call in self._at_the_gate:
            if call.task is not None:
                call.task.cancel()  # its client is told to connect again
        for served in self._connections:
            served.go_away()

    def joined(self, served: ServedConnection) -> None:
        """Note a new connection."""
        self._connections[served] = None

    def left(self, served: ServedConnection) -> None:
        """Note that a connection is over."""
        self._connections.pop(served, None)
        if not self._connections and self._nobody is not None:
            self._nobody.set()

    async def _all_left(self) -> None:
        """Return when no connection is left; call it once no new one is accepted."""
        self._nobody = asyncio.Event()
        await self._nobody.wait()
