"""The node-wide socket: accepts callers, asks the kernel who they are, and has them served.

The door accepts a connection, takes the credentials that the kernel recorded, and lets the server
serve on that same socket. The connection carries its :class:`Recognition` from accept to the
handlers (:mod:`sds.workload.connection_caller`). Further sockets may belong to one pod each (CSI
volumes): the door accepts on them in the same way, and refuses a caller that the kernel shows in
another pod.

Invariants: a connection that this door did not accept is refused; a connection ends with the
process that made it; each connection has one task, all in one TaskGroup; no pod (or user, outside
pods) takes more than its share of connections; accepting takes a bounded part of each turn of the
loop, on all sockets together, and so does the end of many connections; while more connections come
than fit into that part, those that connect too often are turned away
(:mod:`sds.workload.connection_rate`); a caller that is turned away is told why, and the log says
it once in an interval.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from sds.errors import WorkloadError
from sds.faults import guarded, report
from sds.repeats import Repeats
from sds.subordinate_ids import owner_of_user
from sds.transport.accepting import accept_some, turn_away
from sds.transport.turns import Turns
from sds.transport.unread_output import keep_little
from sds.trickle import Trickle
from sds.untrusted_input import EXHAUSTED
from sds.workload.connection_rate import ConnectionRates
from sds.workload.owner import owner_of, owner_of_pod, pod_of
from sds.workload.peer import Peer, credentials
from sds.workload.recognition import Recognition

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from sds.transport.served_connection import ServedConnection
    from sds.transport.server import Server
    from sds.workload.cgroup import PodRoots
    from sds.workload.recognition import Recogniser

_LOG = logging.getLogger("sds.workload.front_door")
_ACCEPTS_AT_ONCE: Final = 64
_CROWDED_SECONDS: Final = 1.0
"""How long the door counts as crowded after some had to wait for the next turn."""
ENDS_A_TURN: Final = 8
"""How many connections one event ends in a turn of the loop; each takes about 0.3 ms."""
RECOGNITION_BYTES: Final = 18 * 1024
"""Memory of a recognised caller beside its connection: task, process, facts, and what it may have;
measured: 13 KiB, and 22 KiB with a stream."""
_PAUSE_SECONDS: Final = 0.25  # after the process ran out of descriptors
_NAMING: Final = frozenset({"connection_limit", "connection_rate", "other_pod"})
"""Reasons whose text names the owner (or the process and its user), so each has its own line."""
_LINES_APART: Final = 16
"""The most lines of the log in an interval, because callers choose how many processes they are."""
_OUT_OF_DESCRIPTORS: Final = EXHAUSTED | {errno.ENOBUFS}


@dataclass(frozen=True, slots=True, kw_only=True)
class DoorLimits:
    """How many connections may be open; each takes two descriptors of the process.

    Attributes:
        connections: the most connections at the same time, from everybody.
        connections_per_owner: the most connections of one pod, or of one user outside pods.
    """

    connections: int = 4096
    connections_per_owner: int = 128


@dataclass(slots=True, kw_only=True)
class Statistics:
    """Counters that a metrics collector reads."""

    accepted: int = 0
    refused: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True, kw_only=True, eq=False)
class _Listener:
    """A listening socket; with ``pod_uid``, callers outside that pod are refused."""

    socket: socket.socket
    pod_uid: str | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class _Connection:
    owner: str
    recognition: Recognition
    task: asyncio.Task[None] | None = None

    @property
    def peer(self) -> Peer:
        return self.recognition.peer


class FrontDoor:
    """Accepts on the node's socket, and on those of pods, and hands its callers to a server."""

    def __init__(
        self,
        listener: socket.socket,
        *,
        recogniser: Recogniser,
        limits: DoorLimits | None = None,
        roots: PodRoots | None = None,
    ) -> None:
        """Make a door that does nothing before :meth:`run`.

        Args:
            listener: a bound and listening Unix stream socket, which :meth:`run` closes.
            recogniser: finds out who callers are.
            limits: the limits of connections.
            roots: where pods may be, so that each has a share of its own; None: users have one.
        """
        listener.settimeout(0)
        self.statistics = Statistics()
        self._listeners = [_Listener(socket=listener)]
        self._recogniser = recogniser
        self._limits = limits or DoorLimits()
        self._roots = roots
        self._connections: dict[_Connection, None] = {}
        self._owners: dict[str, dict[_Connection, None]] = {}
        self._said = Repeats(keys=_LINES_APART)
        self._rates = ConnectionRates()
        self._crowded_until = float("-inf")
        self._ends = Trickle("connection", ENDS_A_TURN)
        self._accept_on: Callable[[_Listener], None] | None = None

    @property
    def connections(self) -> int:
        """Return how many connections are open."""
        return len(self._connections)

    def stop_accepting(self) -> None:
        """Accept no further connections; open ones stay. A second call does nothing."""
        while self._listeners:
            self._close(self._listeners.pop())

    def listen(self, listener: socket.socket, *, pod_uid: str) -> Callable[[], None]:
        """Accept on the socket of one pod as well, until the result is called.

        Args:
            listener: a bound and listening Unix stream socket, which the door owns from now on.
            pod_uid: callers that the kernel shows outside this pod are refused.
        """
        listener.settimeout(0)
        added = _Listener(socket=listener, pod_uid=pod_uid)
        self._listeners.append(added)
        self._watch(added)

        def stop() -> None:
            if added in self._listeners:
                self._listeners.remove(added)
                self._close(added)

        return stop

    # --- accepting ------------------------------------------------------------------------------

    async def run(self, host: Server) -> None:
        """Accept for ``host`` until cancelled, and then close every connection."""
        try:
            async with asyncio.TaskGroup() as tasks:
                turns = Turns.of(asyncio.get_running_loop())
                self._accept_on = guarded(
                    "accept", lambda on: self._accept_some(host, tasks, turns, on)
                )
                for listener in self._listeners:
                    self._watch(listener)
                try:
                    await asyncio.Event().wait()
                finally:
                    self.stop_accepting()
                    for connection in list(self._connections):
                        if connection.task is not None:
                            connection.task.cancel()
        finally:
            self._recogniser.close()

    def _watch(self, listener: _Listener) -> None:
        """Accept when somebody connects; before :meth:`run`, only remember the listener."""
        if self._accept_on is not None and listener.socket.fileno() != -1:
            loop = asyncio.get_running_loop()
            loop.add_reader(listener.socket, self._accept_on, listener)

    def _close(self, listener: _Listener) -> None:
        if listener.socket.fileno() != -1:
            asyncio.get_running_loop().remove_reader(listener.socket)
            listener.socket.close()

    def _accept_some(
        self, host: Server, tasks: asyncio.TaskGroup, turns: Turns, on: _Listener
    ) -> None:
        now = asyncio.get_running_loop().time()

        def take(accepted: socket.socket) -> None:
            with contextlib.ExitStack() as owned:
                owned.callback(accepted.close)
                self._accepted(host, tasks, accepted, owned, pod_uid=on.pod_uid)

        try:
            more = accept_some(on.socket, turns, take, most=_ACCEPTS_AT_ONCE)
        except OSError as error:
            self._pause(error, on)
            return
        if more:
            self._crowded_until = now + _CROWDED_SECONDS

    def _accepted(
        self,
        host: Server,
        tasks: asyncio.TaskGroup,
        accepted: socket.socket,
        owned: contextlib.ExitStack,
        *,
        pod_uid: str | None,
    ) -> None:
        """Admit one connection; ``owned`` or the connection's task closes what it owns."""
        accepted.settimeout(0)
        try:
            self._count(accepted, pod_uid)
            connection = self._admit(accepted, owned, pod_uid)
        except WorkloadError as error:
            self._refused(error.reason, error)
            turn_away(accepted, str(error))
            return
        except Exception as error:  # noqa: BLE001  the boundary between one caller and the door
            self._refused("unexpected", error)
            report("connection", error)
            return
        self.statistics.accepted += 1
        coroutine = self._serve(host, connection, accepted)
        connection.task = tasks.create_task(coroutine, name=f"front-door-{connection.peer.pid}")
        kept = owned.pop_all()
        connection.task.add_done_callback(guarded("connection", lambda _: kept.close()))

    def _count(self, accepted: socket.socket, pod_uid: str | None) -> None:
        """Turn away callers that connect too often, before anything else is found out about them.

        Raises:
            WorkloadError: ``connection_rate``.
        """
        pid, uid, _ = credentials(accepted)
        now = asyncio.get_running_loop().time()

        def pod() -> str:
            return pod_of(pid, self._roots) if pod_uid is None else owner_of_pod(pod_uid)

        crowded = now < self._crowded_until
        self._rates.count(pid, uid, now, crowded=crowded, pod=pod, user=owner_of_user(uid))

    def _admit(
        self, accepted: socket.socket, owned: contextlib.ExitStack, pod_uid: str | None
    ) -> _Connection:
        peer = owned.enter_context(Peer.of(accepted))
        owner = peer.owner = owner_of(peer, self._roots)
        if pod_uid is not None and owner != owner_of_pod(pod_uid):
            raise WorkloadError(
                f"{owner} connected to the socket of pod {pod_uid}",
                reason="other_pod",
                advice="a pod's CSI volume is for that pod alone; find out who passed it on",
            )
        theirs = self._owners.get(owner, {})
        if len(theirs) >= self._limits.connections_per_owner:
            raise WorkloadError(
                f"{owner} has {self._limits.connections_per_owner} connections already",
                advice="raise node.connections_per_owner, or find out why it opens so many",
                reason="connection_limit",
            )
        if len(self._connections) >= self._limits.connections:
            self._make_room(len(theirs))
        connection = _Connection(owner=owner, recognition=Recognition(self._recogniser, peer))
        self._connections[connection] = None
        self._owners.setdefault(owner, {})[connection] = None
        owned.callback(self._forget, connection)
        return connection

    def _make_room(self, count: int) -> None:
        """Close the newest connection of the owner with the most, for an owner with ``count``.

        So many owners together, such as the pods of one tenant, cannot keep others out.

        Raises:
            WorkloadError: ``connection_limit``: no owner has more than twice as many.
        """
        most = max(self._owners.values(), key=len, default={})
        if len(most) <= 2 * (count + 1):
            raise WorkloadError(
                f"there are {self._limits.connections} connections already",
                advice="raise node.connections, or find out who opens so many",
                reason="connection_limit",
            )
        newest = next(reversed(most))
        why = f"{newest.owner} has the most connections, so one ends for an owner with few"
        self._refused("connection_limit", WorkloadError(why, reason="connection_limit"))
        self._forget(newest)  # it no longer counts; its task ends in its turn
        if newest.task is not None:
            self._ends.add(newest.task.cancel)

    def _refused(self, reason: str, error: Exception) -> None:
        self.statistics.refused[reason] += 1
        about = (reason, str(error)) if reason in _NAMING else reason
        times = self._said.due(about, now=asyncio.get_running_loop().time())
        if times is not None:
            _LOG.warning(
                "a connection was refused", extra={"reason": reason, "why": error, "times": times}
            )

    def _pause(self, error: OSError, on: _Listener) -> None:
        """Leave callers in the queue for a moment, mostly because no descriptors are left."""
        out = error.errno in _OUT_OF_DESCRIPTORS
        self._refused("descriptors" if out else "unexpected", error)
        loop = asyncio.get_running_loop()
        loop.remove_reader(on.socket)
        loop.call_later(_PAUSE_SECONDS, guarded("accept", self._watch_again), on)

    def _watch_again(self, listener: _Listener) -> None:
        try:
            self._watch(listener)
        except OSError as error:  # the kernel cannot watch it now
            self._pause(error, listener)

    # --- one connection -------------------------------------------------------------------------

    async def _serve(self, host: Server, connection: _Connection, accepted: socket.socket) -> None:
        """Have the connection served and follow its caller, until either ends.

        Any error meanwhile ends this connection and nothing else.
        """
        task = asyncio.current_task()
        assert task is not None
        try:
            with self._while_alive(connection, task):
                keep_as_usual = keep_little(accepted)
                served = host.connection(
                    caller=connection.recognition,
                    owner=connection.owner,
                    on_close=lambda: self._ends.add(task.cancel),
                )
                try:
                    connection.recognition.when_matched(
                        lambda: self._matched(connection, served, keep_as_usual)
                    )
                    served.begin(accepted)
                    await connection.recognition.follow()
                finally:
                    served.abort()
        except Exception as error:  # noqa: BLE001  the boundary between one caller and the door
            report("connection", error, pid=connection.peer.pid, owner=connection.owner)

    def _matched(
        self, connection: _Connection, served: ServedConnection, keep_as_usual: Callable[[], None]
    ) -> None:
        """Give a caller that a rule matches its own budget, also for connecting."""
        served.recognise(RECOGNITION_BYTES)
        keep_as_usual()
        self._rates.recognise(connection.owner)

    def _forget(self, connection: _Connection) -> None:
        """Forget a connection that is over, perhaps before it began, or that makes room."""
        if connection not in self._connections:
            return  # it made room for another
        del self._connections[connection]
        theirs = self._owners[connection.owner]
        del theirs[connection]
        if not theirs:
            del self._owners[connection.owner]

    @contextlib.contextmanager
    def _while_alive(self, connection: _Connection, task: asyncio.Task[None]) -> Iterator[None]:
        """Cancel the task when the process ends (pidfds become readable: pidfd_open(2))."""
        pidfd = connection.peer.pidfd
        loop = asyncio.get_running_loop()
        if pidfd is None:  # the recognition's next look finds the end, later
            yield
            return

        loop.add_reader(pidfd, guarded("connection", self._ended), pidfd, task)
        try:
            yield
        finally:
            loop.remove_reader(pidfd)

    def _ended(self, pidfd: int, task: asyncio.Task[None]) -> None:
        """End the connections of a process that has ended, a few in each turn."""
        asyncio.get_running_loop().remove_reader(pidfd)
        self._ends.add(task.cancel)
