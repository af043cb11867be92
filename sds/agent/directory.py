"""The run directory: who owns it, and where its sockets are.

Invariants: one living agent a run directory (a lock that the kernel gives back when its holder
dies); a socket that a dead agent left is removed, one on which anybody listens never; directories
are made with their mode before a socket is in them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import grp
import os
import socket
import stat
from typing import TYPE_CHECKING, Final

from sds.errors import SocketError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_PROBE_SECONDS: Final = 1.0
_BACKLOG: Final = 4096


@contextlib.contextmanager
def claimed(run_dir: Path) -> Iterator[None]:
    """Own the run directory while the block runs; it is made where it is missing.

    Raises:
        SocketError: it cannot be made or written, or a living agent owns it.
    """
    make_directory(run_dir, 0o700, exact=False)
    lock = run_dir / "agent.lock"
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise SocketError(
            f"run directory {run_dir} cannot be used: {error.strerror}",
            advice="make it writable for this user, or set another run_dir",
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.read(descriptor, 20).decode(errors="replace").strip()
            raise SocketError(
                f"another agent (pid {owner}) owns {run_dir}",
                advice="stop it first, or give this one another run_dir",
            ) from error
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)


def make_directory(path: Path, mode: int, *, exact: bool = True, group: str | None = None) -> None:
    """Make a directory, and its parents, with this mode.

    Args:
        path: which.
        mode: permission bits.
        exact: set them on a directory that is there already, too.
        group: name of the group that it is given.

    Raises:
        SocketError: it cannot be made, or is no directory.
    """
    try:
        existed = path.is_dir()
        path.mkdir(mode=mode, parents=True, exist_ok=True)
        if exact or not existed:
            path.chmod(mode)  # mkdir's mode passes through the umask
        if group is not None:
            os.chown(path, -1, _group(group))
    except OSError as error:
        raise SocketError(
            f"directory {path} cannot be made: {error.strerror}",
            advice="make it writable for this user, or set another run_dir",
        ) from error


def open_to(path: Path, mode: int, *, group: str | None = None) -> None:
    """Give a socket its group and mode.

    Raises:
        SocketError: that is not allowed.
    """
    try:
        if group is not None:
            os.chown(path, -1, _group(group))
        path.chmod(mode)
    except OSError as error:
        raise SocketError(f"permissions of {path} cannot be set: {error.strerror}") from error


def listening(path: Path, mode: int, *, group: str | None = None) -> socket.socket:
    """A Unix stream socket that listens at ``path``, in place of a dead agent's.

    Raises:
        SocketError: it cannot be opened, or somebody listens there.
    """
    clear_socket(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        # The umask kept it to ourselves since it was bound.
        open_to(path, mode, group=group)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise SocketError(
            f"the socket {path} cannot be opened: {error.strerror or error}",
            advice="is the directory writable, and is the limit of open files high enough?",
        ) from error
    except SocketError:
        listener.close()
        raise
    return listener


def clear_socket(path: Path) -> None:
    """Remove the socket of a dead agent.

    Raises:
        SocketError: somebody listens on it, it is no socket, or it cannot be removed.
    """
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise SocketError(
                f"{path} exists and is no socket", advice="remove it, or set another run_dir"
            )
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(_PROBE_SECONDS)
            probe.connect(str(path))
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in (errno.ECONNREFUSED, errno.ENOENT):
            raise SocketError(
                f"the socket {path} cannot be used: {error.strerror}",
                advice="remove it, or set another run_dir",
            ) from error
        path.unlink(missing_ok=True)
        return
    raise SocketError(
        f"another process listens on {path}", advice="stop it first, or set another run_dir"
    )


def _group(name: str) -> int:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError as error:
        raise SocketError(f"there is no group {name!r}", advice="mend sockets.group") from error
