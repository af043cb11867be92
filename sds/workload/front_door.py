"""The node-wide socket: accepts, asks the kernel who it is, and joins the caller to gRPC.

gRPC says nothing about the process at the other end of a Unix socket. So this door accepts, takes
the credentials that the kernel recorded, and carries the bytes to the inner gRPC listener over a
connection whose client end is bound to a fresh, random abstract address. A handler sees that
address as ``context.peer()`` and :meth:`FrontDoor.entitlement` finds the caller by it.

Invariants: the inner listener lies in a directory that only we can enter, and a stream on a
connection that this door did not make is refused, so nobody gets in another way; a connection
lives no longer than the process that made it; one task a connection, all in one TaskGroup; no pod
(or user, outside pods) takes more than its share of connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import secrets
import socket
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from sds.errors import CgroupError, ConnectionLimitError, UnknownConnectionError, WorkloadError
from sds.workload.cgroup import parse_cgroup
from sds.workload.peer import Peer
from sds.workload.recognition import Recognition
from sds.workload.splice import Splice

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sds.workload.entitlement import Entitlement
    from sds.workload.recognition import Recogniser

_LOG = logging.getLogger("sds.workload.front_door")
_PEER_PREFIX: Final = "unix-abstract:"
_ACCEPTS_AT_ONCE: Final = 64
_PAUSE_SECONDS: Final = 0.25  # after the process ran out of descriptors
_INNER_TRIES: Final = 200
_INNER_PAUSE_SECONDS: Final = 0.01
_OUT_OF_DESCRIPTORS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How many connections are held; each takes four descriptors of the process.

    Attributes:
        connections: at the same time, from everybody.
        connections_per_owner: from one pod, or from one user outside pods.
    """

    connections: int = 4096
    connections_per_owner: int = 128


@dataclass(slots=True, kw_only=True)
class Statistics:
    """Counters that a metrics collector reads."""

    accepted: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    gone: int = 0


@dataclass(slots=True, kw_only=True)
class _Connection:
    address: str
    owner: str
    recognition: Recognition
    task: asyncio.Task[None] | None = None

    @property
    def peer(self) -> Peer:
        return self.recognition.peer


class FrontDoor:
    """Accepts on one socket and joins its callers to the inner gRPC listener."""

    def __init__(
        self,
        listener: socket.socket,
        *,
        inner: Path,
        recogniser: Recogniser,
        limits: Limits | None = None,
    ) -> None:
        """Nothing happens before :meth:`run`.

        Args:
            listener: bound and listening Unix stream socket; closed by :meth:`run`.
            inner: path of the inner gRPC listener, in a directory of mode 0700.
            recogniser: finds out who callers are.
            limits: of connections.
        """
        listener.settimeout(0)
        self.statistics = Statistics()
        self._listener = listener
        self._inner = inner
        self._recogniser = recogniser
        self._limits = limits or Limits()
        self._connections: dict[str, _Connection] = {}
        self._owners: Counter[str] = Counter()

    # --- what serving asks ----------------------------------------------------------------------

    async def entitlement(self, peer: str) -> Entitlement:
        """The entitlement of the caller behind ``context.peer()``; waits for a match, bounded.

        Raises:
            UnknownConnectionError: the connection did not come through this door, or has ended.
            WorkloadError: the caller is not recognised; the text says what was found about it.
        """
        return await self.recognition(peer).entitlement()

    def recognition(self, peer: str) -> Recognition:
        """What is known about the caller behind ``context.peer()``.

        Raises:
            UnknownConnectionError: as above.
        """
        connection = self._connections.get(unquote(peer.removeprefix(_PEER_PREFIX)))
        if connection is None or not peer.startswith(_PEER_PREFIX):
            raise UnknownConnectionError("this connection did not come through the front door")
        return connection.recognition

    @property
    def connections(self) -> int:
        """Open connections."""
        return len(self._connections)

    def stop_accepting(self) -> None:
        """Take nobody new; whoever is there stays. A second call does nothing."""
        if self._listener.fileno() != -1:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()

    # --- accepting ------------------------------------------------------------------------------

    async def run(self) -> None:
        """Accept until cancelled; then every connection is closed."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.TaskGroup() as tasks:
                loop.add_reader(self._listener, self._accept_some, tasks)
                try:
                    await asyncio.Event().wait()
                finally:
                    self.stop_accepting()
                    for connection in list(self._connections.values()):
                        if connection.task is not None:
                            connection.task.cancel()
        finally:
            self._recogniser.close()

    def _accept_some(self, tasks: asyncio.TaskGroup) -> None:
        for _ in range(_ACCEPTS_AT_ONCE):
            try:
                accepted, _address = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _OUT_OF_DESCRIPTORS:
                    self._pause(tasks, error)
                    return
                if error.errno == errno.ECONNABORTED:
                    continue
                raise
            self._accepted(tasks, accepted)

    def _accepted(self, tasks: asyncio.TaskGroup, accepted: socket.socket) -> None:
        accepted.settimeout(0)
        try:
            connection = self._admit(accepted)
        except WorkloadError as error:
            accepted.close()
            self.statistics.refused[error.reason] += 1
            _LOG.warning("a connection was refused", extra={"reason": error.reason, "why": error})
            return
        self.statistics.accepted += 1
        connection.task = tasks.create_task(
            self._serve(connection, accepted), name=f"front-door-{connection.peer.pid}"
        )
        connection.task.add_done_callback(lambda _: self._forget(connection, accepted))

    def _admit(self, accepted: socket.socket) -> _Connection:
        if len(self._connections) >= self._limits.connections:
            raise ConnectionLimitError(
                f"there are {self._limits.connections} connections already",
                advice="raise the limit of connections, or look who opens so many",
            )
        peer = Peer.of(accepted)
        owner = _owner(peer)
        if self._owners[owner] >= self._limits.connections_per_owner:
            peer.close()
            raise ConnectionLimitError(
                f"{owner} has {self._limits.connections_per_owner} connections already"
            )
        connection = _Connection(
            address=f"attested-sds-{secrets.token_hex(16)}",
            owner=owner,
            recognition=Recognition(self._recogniser, peer),
        )
        self._connections[connection.address] = connection
        self._owners[owner] += 1
        return connection

    def _pause(self, tasks: asyncio.TaskGroup, error: OSError) -> None:
        """Out of descriptors: leave callers in the queue for a moment, instead of spinning."""
        self.statistics.refused["descriptors"] += 1
        _LOG.error("cannot accept", extra={"why": error.strerror, "pause": _PAUSE_SECONDS})
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._listener)

        def resume() -> None:
            if self._listener.fileno() != -1:
                loop.add_reader(self._listener, self._accept_some, tasks)

        loop.call_later(_PAUSE_SECONDS, resume)

    # --- one connection -------------------------------------------------------------------------

    async def _serve(self, connection: _Connection, accepted: socket.socket) -> None:
        """Carry bytes and follow the caller, until the connection or the process ends."""
        task = asyncio.current_task()
        assert task is not None
        peer = connection.peer
        try:
            with self._while_alive(connection, task):
                inner = await self._connect(connection.address)
                loop = asyncio.get_running_loop()
                splice = Splice(loop, accepted, inner, on_close=lambda: _cancel(task))
                try:
                    splice.start()
                    await connection.recognition.follow()
                finally:
                    splice.close()
        except OSError as error:
            self.statistics.refused["inner"] += 1
            _LOG.error("cannot join a caller to gRPC", extra={"why": error, "pid": peer.pid})

    def _forget(self, connection: _Connection, accepted: socket.socket) -> None:
        """The connection's task is over, perhaps before it began."""
        accepted.close()
        connection.peer.close()
        del self._connections[connection.address]
        self._owners[connection.owner] -= 1
        if not self._owners[connection.owner]:
            del self._owners[connection.owner]

    @contextlib.contextmanager
    def _while_alive(self, connection: _Connection, task: asyncio.Task[None]) -> Iterator[None]:
        """Cancel the task when the process ends (pidfds become readable: pidfd_open(2))."""
        pidfd = connection.peer.pidfd
        loop = asyncio.get_running_loop()
        if pidfd is None:  # the recheck of the recognition finds it, later
            yield
            return

        def ended() -> None:
            loop.remove_reader(pidfd)
            self.statistics.gone += 1
            task.cancel()

        loop.add_reader(pidfd, ended)
        try:
            yield
        finally:
            loop.remove_reader(pidfd)

    async def _connect(self, address: str) -> socket.socket:
        """Connect to the inner listener from this abstract address."""
        with contextlib.ExitStack() as stack:
            inner = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            inner.settimeout(0)
            inner.bind(f"\0{address}")
            for _ in range(_INNER_TRIES):
                try:
                    inner.connect(str(self._inner))
                except BlockingIOError:  # its queue is full (unix(7), EAGAIN)
                    await asyncio.sleep(_INNER_PAUSE_SECONDS)
                else:
                    stack.pop_all()
                    return inner
        raise TimeoutError("the inner gRPC listener's queue stays full")


def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()


def _owner(peer: Peer) -> str:
    """Whose share of the connections this one counts against."""
    with contextlib.suppress(OSError, CgroupError):
        pod = parse_cgroup(Path(f"/proc/{peer.pid}/cgroup").read_text(encoding="utf-8"))
        if pod is not None:
            return f"pod {pod.pod_uid}"
    return f"uid {peer.uid}"
