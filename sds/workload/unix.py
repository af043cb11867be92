"""The ``unix`` attestor: user, groups and executable of the calling process.

Owns the reading of ``/proc/PID/exe``. Invariant: the executable that is hashed is the file that
the process runs (opened through ``/proc/PID/exe``, never by its path), and a caller whose
executable cannot be read gets no ``unix`` selector at all where a rule asks for executables.
"""

from __future__ import annotations

import asyncio
import ctypes
import hashlib
import os
import stat
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sds.errors import PeerGoneError, WorkloadError
from sds.workload.entitlement import Selector
from sds.workload.facts import Facts

if TYPE_CHECKING:
    from collections.abc import Callable
    from io import FileIO

    from sds.clock import Clock
    from sds.workload.peer import Peer

EXECUTABLE_TYPES: Final = frozenset({"unix:path", "unix:sha256"})
_FUSE_SUPER_MAGIC: Final = 0x65735546  # statfs(2)
_DELETED: Final = " (deleted)"
_CACHE_ENTRIES: Final = 512
# A file changed this recently may change again without a visible change of its times.
_SETTLED_SECONDS: Final = 2.0
_MAX_EXECUTABLE_BYTES: Final = 4 << 30
_STATFS_BYTES: Final = 256  # struct statfs is 120 bytes on 64-bit Linux

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Executable:
    """A running executable.

    Attributes:
        path: from which it was started, as the process's own mount namespace names it; another
            file may have that path now, and whoever can mount can choose it.
        sha256: of its content, lower-case hexadecimal.
    """

    path: str
    sha256: str


class ExecutableReader:
    """Reads executables of processes; hashes each file once."""

    def __init__(self, clock: Clock) -> None:
        """``clock`` tells how long ago a file was changed."""
        self._clock = clock
        self._digests: OrderedDict[tuple[int, ...], str] = OrderedDict()

    async def read(self, pid: int) -> Executable:
        """Path and digest of what ``pid`` runs; check the peer afterwards.

        Raises:
            PeerGoneError: there is no such process.
            WorkloadError: ``executable_unreadable``: it may not be read (another user's process
                without CAP_SYS_PTRACE), or lies on a file system whose content its own user can
                forge.
        """
        path, file = _open(pid)
        with file:
            sha256 = await self._digest(pid, file)
        # Replaced while it runs, as upgrades do: it still was started from there.
        return Executable(path=path.removesuffix(_DELETED), sha256=sha256)

    async def _digest(self, pid: int, file: FileIO) -> str:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_EXECUTABLE_BYTES:
            raise WorkloadError(
                f"the executable of process {pid} is no ordinary file",
                reason="executable_unreadable",
            )
        if _filesystem_type(file.fileno()) == _FUSE_SUPER_MAGIC:
            raise WorkloadError(
                f"the executable of process {pid} lies on a FUSE file system: whoever serves it "
                "can show another content to us than to the kernel",
                advice="run it from an ordinary file system",
                reason="executable_unreadable",
            )
        key = _fingerprint(status)
        if (known := self._digests.get(key)) is not None:
            self._digests.move_to_end(key)
            return known
        sha256 = await asyncio.to_thread(_sha256, file)
        after = os.fstat(file.fileno())
        if _fingerprint(after) != key:
            raise WorkloadError(
                f"the executable of process {pid} changed while it was read",
                reason="executable_unreadable",
            )
        settled = self._clock.now().wall.timestamp() - max(after.st_ctime, after.st_mtime)
        if settled > _SETTLED_SECONDS:
            self._digests[key] = sha256
            if len(self._digests) > _CACHE_ENTRIES:
                self._digests.popitem(last=False)
        return sha256


class UnixAttestor:
    """Selectors ``unix:uid``, ``:gid``, ``:supplementary-gid``, and ``unix:path``, ``:sha256``."""

    name = "unix"

    def __init__(self, executables: ExecutableReader) -> None:
        """``executables`` is asked only where a rule needs a path or a digest."""
        self._executables = executables

    async def attest(self, peer: Peer, needed: frozenset[str]) -> Facts:
        """See :class:`sds.workload.facts.Attestor`.

        Raises:
            PeerGoneError: the process has ended.
        """
        found = {Selector("unix:uid", str(peer.uid)), Selector("unix:gid", str(peer.gid))}
        found |= {Selector("unix:supplementary-gid", str(group)) for group in peer.groups}
        if needed & EXECUTABLE_TYPES:
            try:
                executable = await self._executables.read(peer.pid)
            except PeerGoneError:
                raise
            except WorkloadError as error:
                peer.check()
                return Facts(unknown={"unix:": error})
            found.add(Selector("unix:sha256", executable.sha256))
            found.add(Selector("unix:path", executable.path))
        peer.check()
        return Facts(selectors=frozenset(found), title=f"uid {peer.uid} pid {peer.pid}")

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Nothing announces a changed executable; the caller asks again from time to time."""
        del listener
        return lambda: None


def _open(pid: int) -> tuple[str, FileIO]:
    link = Path(f"/proc/{pid}/exe")
    try:
        return str(link.readlink()), link.open("rb", buffering=0)
    except (FileNotFoundError, ProcessLookupError) as error:
        raise PeerGoneError(f"process {pid} has ended, or is the kernel's") from error
    except OSError as error:
        raise WorkloadError(
            f"the executable of process {pid} cannot be read: {error.strerror}",
            advice="give the agent CAP_SYS_PTRACE, or write no rule on unix:path, unix:sha256",
            reason="executable_unreadable",
        ) from error


def _sha256(file: FileIO) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _fingerprint(status: os.stat_result) -> tuple[int, ...]:
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


def _filesystem_type(descriptor: int) -> int:
    """``f_type`` of fstatfs(2), its first word."""
    buffer = ctypes.create_string_buffer(_STATFS_BYTES)
    if _libc.fstatfs(descriptor, buffer) != 0:
        raise WorkloadError(
            f"fstatfs: {os.strerror(ctypes.get_errno())}", reason="executable_unreadable"
        )
    return int.from_bytes(buffer.raw[: ctypes.sizeof(ctypes.c_long)], "little")
