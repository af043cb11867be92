"""The connections of the authority's port: who may have one, and what each may use.

Owns every accepted connection from accept to its end. Invariants: at most ``most`` are open; of
these, at most half are strangers' (nothing was proven on that connection), and fewer if agents need
the room; if there are more, some strangers end at once (:mod:`sds.ca.stranger_connections`); a
connection on which evidence was accepted ends for room only if its machine has more than others and
few are left (:mod:`sds.ca.machine_shares`); it is known by itself and not by its address, which
many agents may share; it has its own turns and budget, and all strangers together share one set of
these, from which no address can keep the others out.
"""

from __future__ import annotations

import functools
import itertools
from typing import TYPE_CHECKING, Final

from sds.ca.listening import peer_name
from sds.ca.machine_shares import MachineShares
from sds.ca.stranger_calls import StrangerCalls
from sds.ca.stranger_connections import Stage, Strangers, strangers_room
from sds.transport.addresses import owner_of
from sds.transport.budget import Budgets
from sds.transport.budget_sizes import Share, Total
from sds.transport.connected_socket import ended_sending
from sds.transport.events import ConnectionLimits
from sds.transport.served_connection import ServedConnection
from sds.transport.server import Server, ServerLimits
from sds.transport.tls_socket import TlsEndpoints

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from sds.ca.server import ExchangeLimits
    from sds.transport.connected_socket import SocketUser
    from sds.transport.tls_settings import ServerTlsSettings

_STREAMS_A_CONNECTION: Final = 256
_WINDOW_BYTES: Final = 64 * 1024
"""How much of a stream is kept while nobody reads it."""
_SINGLE_BYTES: Final = 4 * 1024
"""The largest request of other methods than ours: those of ``grpc.health.v1``."""
_UNREAD_BYTES: Final = 64 * 1024
_GREETING_SECONDS: Final = 10.0
_IDLE_SECONDS: Final = 15.0
_FRAMES_A_SECOND: Final = 200.0
_FRAMES_AT_ONCE: Final = 2_000
_MIB: Final = 1024 * 1024
_UNBOUNDED: Final = 1 << 40


class KnownConnection:
    """One connection, as the exchange knows it (``context.caller()``)."""

    __slots__ = ("_connections", "owner", "served")

    def __init__(self, connections: Connections, owner: str) -> None:
        """Begin as a stranger without a socket; ``owner`` is its address or network."""
        self._connections = connections
        self.owner = owner
        self.served: ServedConnection | None = None

    @property
    def proven(self) -> bool:
        """Say whether evidence was accepted on it, and it is open."""
        return self._connections.has_proven(self)

    def heard(self) -> None:
        """Note that the caller said Hello."""
        self._connections.advance(self, Stage.HEARD)

    def proved(self, machine: str) -> None:
        """Note that evidence of this machine was accepted: the connection stays."""
        self._connections.prove(self, machine)

    def end(self) -> None:
        """Close the connection now."""
        if self.served is not None:
            self.served.abort()


class Connections:
    """The connections of the authority's port.

    Args:
        most: the most connections at once; half of them may be strangers'.
        limits: the limits of callers.
        tls: gives the TLS settings of a new connection.
        now: seconds of a monotonic clock.

    Attributes:
        endpoints: count handshakes.
        server: serves the connections.
    """

    def __init__(
        self,
        *,
        most: int,
        limits: ExchangeLimits,
        tls: Callable[[], ServerTlsSettings],
        now: Callable[[], float],
    ) -> None:
        """Accept nothing before :meth:`listen`."""
        self._most = most
        self._now = now
        self._strangers: Strangers[KnownConnection] = Strangers()
        self._numbers = itertools.count(1)
        self._proven: MachineShares[KnownConnection] = MachineShares(most, "connections")
        self.ended = 0
        """How many connections gave way to others."""
        self.endpoints = TlsEndpoints(tls, self._established)
        self.server = Server(
            limits=server_limits(limits),
            budgets=authority_budgets(limits, most),
            endpoints=self.endpoints,
        )
        # With those of the exchange, fewer streams than all strangers together may have.
        self.server.gate = self._stranger_calls = StrangerCalls(2 * limits.unproven)

    @property
    def proven(self) -> int:
        return len(self._proven)

    def has_proven(self, caller: KnownConnection) -> bool:
        """Say whether evidence was accepted on an open connection."""
        return caller in self._proven

    @property
    def strangers(self) -> int:
        return len(self._strangers)

    def handshakes(self) -> dict[str, int]:
        counted = self.endpoints
        return {"done": counted.done, "failed": counted.failed, "left": counted.left}

    def listen(self, listeners: Sequence[socket.socket]) -> None:
        """Accept on these listening sockets, which the server owns from now on."""
        for listener in listeners:
            self.server.accept(listener, self.take, gone=ended_sending)

    def take(self, accepted: socket.socket) -> None:
        """Serve a connection that was accepted, and end those for which there is no room."""
        try:
            peer = peer_name(accepted.getpeername())
        except OSError:  # it is gone already
            accepted.close()
            return
        caller = KnownConnection(self, owner_of(peer))
        self._strangers.join(caller, caller.owner, now=self._now())
        if caller in self._make_room():
            accepted.close()
            return
        # A name of its own: a later caller from this port is somebody else.
        served = self.server.connection(
            caller=caller,
            owner=f"connection {next(self._numbers)}",
            on_close=functools.partial(self._closed, caller),
            peer=peer,
        )
        caller.served = served
        try:
            served.begin(accepted)
        except BaseException:
            self._closed(caller)
            raise

    def advance(self, caller: KnownConnection, stage: Stage) -> None:
        """Note how far a stranger has come."""
        self._strangers.advance(caller, stage)

    def prove(self, caller: KnownConnection, machine: str) -> None:
        """Note that evidence of a machine was accepted on a connection."""
        if not self._strangers.leave(caller):
            return  # it is proven already, or over
        self._end(self._proven.join(caller, machine, now=self._now()))
        self._stranger_calls.spare(caller)
        if caller.served is not None:
            caller.served.recognise()
        self._make_room()

    def _make_room(self) -> list[KnownConnection]:
        """End and return the strangers that are too many."""
        room = strangers_room(most=self._most, proven=self.proven)
        ends = self._strangers.surplus(room, now=self._now())
        self._end(ends)
        return ends

    def _end(self, ends: list[KnownConnection]) -> None:
        self.ended += len(ends)
        for one in ends:
            one.end()

    def _established(self, user: SocketUser) -> None:
        if isinstance(user, ServedConnection) and isinstance(user.caller, KnownConnection):
            self._strangers.advance(user.caller, Stage.ANSWERED)

    def _closed(self, caller: KnownConnection) -> None:
        caller.served = None  # which refers to the caller; this breaks the circle
        self._strangers.leave(caller)
        self._proven.leave(caller)


def server_limits(limits: ExchangeLimits) -> ServerLimits:
    """Return the limits of one connection."""
    return ServerLimits(
        message_bytes=limits.message_bytes,
        single_bytes=_SINGLE_BYTES,
        unread_bytes=_UNREAD_BYTES,
        greeting_seconds=_GREETING_SECONDS,
        idle_seconds=_IDLE_SECONDS,
        owners_pay_for_lines=False,  # the journal bounds them, and loses none of a proven agent
        connection=ConnectionLimits(
            # More than we accept, so that the last one is told why it is refused; an agent opens
            # two.
            concurrent_streams=min(limits.streams + 2, _STREAMS_A_CONNECTION),
            frames_per_second=_FRAMES_A_SECOND,
            frame_burst=_FRAMES_AT_ONCE,
            stream_window=_WINDOW_BYTES,
        ),
    )


def authority_budgets(limits: ExchangeLimits, most: int) -> Budgets:
    """Return what each proven connection may use, and all strangers together.

    Processor time is divided by turns alone: strangers have one turn in each round, and all that is
    free, because after an outage every agent begins as a stranger. How many connections there are
    is decided here and not by the budget.
    """
    streams = 4 * limits.unproven + _STREAMS_A_CONNECTION
    strangers = Share(
        connections=_UNBOUNDED,
        streams=streams,
        # Every stranger with half a frame, half a record and output that it does not read; all
        # their streams; and messages that are read in turn, with the copies that this makes.
        held_bytes=most * 128 * 1024
        + streams * (_WINDOW_BYTES + 8 * 1024)
        + 2 * limits.unproven_bytes
        + 16 * _MIB,
        processor=1.0,
        processor_burst_seconds=1e9,
        refusals_per_second=1e6,
        refusal_burst=1e6,
        lines_per_second=2.0,
        line_burst=50.0,
    )
    agent = Share(
        connections=_UNBOUNDED,
        streams=_STREAMS_A_CONNECTION,
        processor=1.0,
        processor_burst_seconds=1e9,
        refusals_per_second=1e6,
        refusal_burst=1e6,
    )
    return Budgets(
        agent,
        strangers=strangers,
        total=Total(
            connections=_UNBOUNDED,
            spared_connections=0,
            held_bytes=_UNBOUNDED,
            spared_bytes=0,
            owners=2 * most + 64,
        ),
    )
