"""The process at the other end of a Unix connection, as the kernel knows it.

Owns :class:`Peer`: the credentials that the kernel recorded when the process connected, and a
handle that says whether that process still lives. Invariants: a pid is never used without the check
that it is still the process that connected (:meth:`Peer.check`), because pids are used again; a
process with tens of thousands of groups, as every user with subordinate IDs can make, costs no more
than one with a few.

Sources: unix(7) for SO_PEERCRED, SO_PEERGROUPS; Linux 6.5 for SO_PEERPIDFD; pidfd_open(2);
proc_pid_stat(5) for the start time.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import select
import socket
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from sds.errors import PeerGoneError, WorkloadError
from sds.subordinate_ids import owner_of_user

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOG = logging.getLogger("sds.workload.peer")

# <asm-generic/socket.h>; Python's socket module does not name these.
SO_PEERGROUPS: Final = 59
SO_PEERPIDFD: Final = 77
_UCRED: Final = struct.Struct("iII")  # struct ucred: pid_t, uid_t, gid_t
_GROUPS_ROOM: Final = 256  # socket.getsockopt returns at most 1024 bytes
MOST_GROUPS: Final = 1024
_FDINFO_BYTES: Final = 4096
_START_TIME_FIELD: Final = 22  # proc_pid_stat(5), counted from 1


@dataclass(slots=True, kw_only=True)
class Peer:
    """A process that connected. Close it when the connection ends.

    Attributes:
        pid: the process ID in our PID namespace at the time of the connection; never 0.
        uid: the effective user ID at that time.
        gid: the effective group ID at that time.
        groups: the supplementary group IDs at that time; None if there are more than
            :data:`MOST_GROUPS`.
        pidfd: refers to that process whatever becomes of its pid; None if the kernel has none.
        start_time: the start time in clock ticks since boot, from /proc, if there is no pidfd.
        owner: the owner whose share it counts against: ``pod UID``, ``uid NUMBER``, or
            the range of a user's subordinate IDs.
        executed: device and inode of the file that it executed at the first look.
    """

    pid: int
    uid: int
    gid: int
    groups: frozenset[int] | None
    pidfd: int | None
    start_time: int | None = None
    owner: str = ""
    executed: tuple[int, ...] | None = None
    _closed: bool = field(default=False, repr=False)

    @classmethod
    def of(cls, connection: socket.socket) -> Peer:
        """Find out who connected to this accepted Unix socket.

        Raises:
            WorkloadError: ``peer_credentials``: the kernel shows pid 0 (the caller is in a PID
                namespace that we do not see), or has no credentials for this socket.
            PeerGoneError: the process has ended already.
        """
        pid, uid, gid = credentials(connection)
        if pid <= 0:
            raise WorkloadError(
                "the kernel shows the caller with pid 0: it runs in a PID namespace that this "
                "program does not see",
                advice="run the agent in the host's PID namespace (hostPID: true)",
                reason="peer_credentials",
            )
        peer = cls(
            pid=pid,
            uid=uid,
            gid=gid,
            groups=frozenset(),
            pidfd=_pidfd(connection),
            owner=owner_of_user(uid),
        )
        try:
            peer._begin(connection)
        except BaseException:
            peer.close()
            raise
        return peer  # with its descriptor, which is the caller's from now on

    def _begin(self, connection: socket.socket) -> None:
        """Read what belongs to the pid, and check that the process is the one of the pidfd."""
        with _readable(self.pid):
            if self.pidfd is None:
                self.start_time = process_start_time(self.pid)
            elif (now := _pid_of(self.pidfd)) != self.pid:
                raise PeerGoneError(f"process {self.pid} has ended (now {now})")
            self.groups = _groups(connection, self.pid)
        self.check()

    def __enter__(self) -> Self:
        """Return the peer; the block owns its descriptor."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the peer."""
        self.close()

    def check(self) -> None:
        """Check that the process that connected lives and that :attr:`pid` is its pid.

        Facts read from ``/proc/<pid>`` count only if this was called after they were read. While
        a pidfd is not readable, its process has not been reaped (pidfd_open(2)), so its pid, which
        :meth:`of` compared with the pidfd's, belongs to no other process.

        Raises:
            PeerGoneError: the process has ended, even if it was not reaped yet.
            WorkloadError: ``process_unreadable``: ``/proc`` cannot be read now, for lack of
                descriptors or rights.
        """
        if self._closed:
            raise PeerGoneError(f"the connection of process {self.pid} is closed")
        with _readable(self.pid):
            if self.pidfd is None:
                if process_start_time(self.pid) != self.start_time:
                    raise PeerGoneError(f"process {self.pid} has ended; its pid was used again")
                return
            poll = select.poll()
            poll.register(self.pidfd, select.POLLIN)
            if poll.poll(0):  # readable: terminated, perhaps a zombie
                raise PeerGoneError(f"process {self.pid} has ended")

    def close(self) -> None:
        """Let go of the pidfd; a second call does nothing."""
        if not self._closed:
            self._closed = True
            if self.pidfd is not None:
                os.close(self.pidfd)


def credentials(connection: socket.socket) -> tuple[int, int, int]:
    """Return pid, uid and gid of the process that connected; pid 0 if we do not see it.

    Raises:
        WorkloadError: ``peer_credentials``: the kernel has no credentials for this socket.
    """
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    except OSError as error:
        raise WorkloadError(
            f"no credentials of the peer: {error.strerror}", reason="peer_credentials"
        ) from error
    pid, uid, gid = _UCRED.unpack(raw)
    return pid, uid, gid


@contextlib.contextmanager
def _readable(pid: int) -> Iterator[None]:
    """Turn an error of ``/proc`` or of the kernel in the block into one of ours."""
    try:
        yield
    except OSError as error:
        raise WorkloadError(
            f"the kernel does not describe process {pid}: {error.strerror}",
            reason="process_unreadable",
        ) from error


def process_start_time(pid: int) -> int:
    """Return the start time of a process in clock ticks since boot.

    Raises:
        PeerGoneError: there is no such process, or it is a zombie.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError) as error:
        raise PeerGoneError(f"process {pid} has ended") from error
    # The second field is the command in parentheses, and may itself contain ')' and spaces.
    fields = stat[stat.rindex(b")") + 2 :].split()
    if fields[0] in {b"Z", b"X"}:
        raise PeerGoneError(f"process {pid} has ended")
    return int(fields[_START_TIME_FIELD - 3])


def _pidfd(connection: socket.socket) -> int | None:
    """Return the peer's pidfd, or None if this kernel (before 6.5) has no SO_PEERPIDFD."""
    try:
        pidfd = connection.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)
    except OSError as error:
        if error.errno == errno.ENOPROTOOPT:
            _say_no_pidfd()
            return None
        if error.errno in {errno.ESRCH, errno.EINVAL}:  # reaped before we asked
            raise PeerGoneError("the process that connected has ended") from error
        raise WorkloadError(
            f"no pidfd of the peer: {error.strerror}", reason="peer_credentials"
        ) from error
    os.set_inheritable(pidfd, False)  # noqa: FBT003  positional-only
    return pidfd


@functools.cache
def _say_no_pidfd() -> None:
    """Say it once, because callers choose how often they connect."""
    _LOG.warning(
        "this kernel has no SO_PEERPIDFD; callers are told apart by start time",
        extra={"since": "Linux 6.5"},
    )


def _pid_of(pidfd: int) -> int:
    """Return the pid in our namespace: -1 once reaped,  0 if we do not see the process."""
    descriptor = os.open(f"/proc/self/fdinfo/{pidfd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = os.read(descriptor, _FDINFO_BYTES)
    finally:
        os.close(descriptor)
    for line in text.split(b"\n"):
        name, _, value = line.partition(b":")
        if name == b"Pid":
            return int(value)
    raise WorkloadError(
        f"/proc/self/fdinfo/{pidfd} does not describe a pidfd", reason="peer_credentials"
    )


def _groups(connection: socket.socket, pid: int) -> frozenset[int] | None:
    """Return the peer's supplementary groups when it connected; None if there are too many."""
    size = struct.calcsize("I")
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, _GROUPS_ROOM * size)
    except OSError as error:
        if error.errno != errno.ERANGE:
            raise
        # There are more than Python's getsockopt returns: read what the process has now (checked
        # later).
        return _groups_from_proc(pid)
    return frozenset(struct.unpack(f"{len(raw) // size}I", raw))


def _groups_from_proc(pid: int) -> frozenset[int] | None:
    try:
        text = Path(f"/proc/{pid}/status").read_bytes()
    except (FileNotFoundError, ProcessLookupError) as error:
        raise PeerGoneError(f"process {pid} has ended") from error
    # The process chooses its name, which comes first. The kernel escapes only line feeds in it, so
    # nothing else may count as the end of a line.
    for line in text.split(b"\n"):
        name, _, value = line.partition(b":")
        if name == b"Groups":
            if value.count(b" ") > MOST_GROUPS:
                return None
            return frozenset(int(group) for group in value.split())
    raise WorkloadError(f"/proc/{pid}/status has no line 'Groups'", reason="peer_credentials")
