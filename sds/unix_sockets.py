"""Unix sockets that listen at a path.

Owns how such a socket is made, and its modes. Invariants: a socket that a dead process left is
removed, but never one on which a process listens, however busy that process is; an empty directory
at a path that ends with ``.sock`` is removed too (a container runtime makes one where the source of
a pod's volume is missing); a socket has its mode and group before anybody can connect; nothing here
changes the umask, which all threads share; a socket that cannot be removed at the end keeps nothing
else from ending; at the end only our own sockets are removed, wherever their paths lead by then.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import logging
import os
import socket
import stat
from typing import TYPE_CHECKING, Final, TypeAlias

from sds.descriptors import refuse_passed
from sds.errors import SocketError
from sds.untrusted_input import words_of

if TYPE_CHECKING:
    from pathlib import Path

_LOGGER: Final = logging.getLogger(__name__)
OURS_ALONE: Final = 0o600
"""The mode of a socket for our own user."""
EVERYBODY: Final = 0o666
"""The mode of a socket to which all may connect; who is served is decided by who connects."""
ISTIO_NAME: Final = "socket"
"""Istio's sidecars look for this name in ``workload-spiffe-uds``: a link beside the socket."""
SocketFile: TypeAlias = tuple[int, int]
"""Device and inode of a socket."""
_PROBE_SECONDS: Final = 1.0
_BACKLOG: Final = 4096


def listening(path: Path, mode: int, *, group: str | None = None) -> socket.socket:
    """Make a Unix stream socket that listens at ``path``, in place of a dead process's.

    Raises:
        SocketError: it cannot be opened, or another process listens there.
    """
    clear_socket(path)
    with contextlib.ExitStack() as owned:
        try:
            listener = owned.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            refuse_passed(listener)
            listener.bind(str(path))
            # Nobody can connect before it listens.
            open_to(path, mode, group=group)
            listener.listen(_BACKLOG)
        except OSError as error:
            raise SocketError(
                f"the socket {path} cannot be opened: {error.strerror or error}",
                advice="check that the directory is writable, and raise the limit of open files",
            ) from error
        owned.pop_all()
        return listener


def clear_socket(path: Path) -> None:
    """Remove the socket of a dead process, or the directory that a container runtime made there.

    Raises:
        SocketError: a process listens on it, it is not a socket, or it cannot be removed.
    """
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            if clear_directory(path):
                _LOGGER.warning(
                    "an empty directory was in the place of the socket %s and is removed: does "
                    "a pod mount the socket instead of its directory?",
                    path,
                    extra={"path": path},
                )
                return
            raise SocketError(
                f"{path} exists and is not a socket", advice="remove it, or choose another path"
            )
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(_PROBE_SECONDS)
            probe.connect(str(path))
    except FileNotFoundError:
        return
    except (BlockingIOError, TimeoutError):
        pass  # a process listens, and accepts nobody now
    except OSError as error:
        if error.errno not in (errno.ECONNREFUSED, errno.ENOENT):
            raise SocketError(
                f"the socket {path} cannot be used: {words_of(error)}",
                advice="remove it, or choose another path",
            ) from error
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise SocketError(
                f"the socket {path} of a process that is gone cannot be removed: {error.strerror}",
                advice="make its directory writable for this user, or choose another path",
            ) from error
        return
    raise SocketError(
        f"another process listens on {path}", advice="stop it first, or choose another path"
    )


def is_left_over(path: Path) -> bool:
    """Say whether an empty directory is there, at a path that is meant for a socket.

    Docker and containerd make one for a ``hostPath`` volume of a socket that is not there yet, so
    one pod's mistake would keep this process from starting.
    """
    try:
        if path.suffix != ".sock" or path.is_symlink():
            return False
        with os.scandir(path) as entries:
            return next(entries, None) is None
    except OSError:  # no directory, or none that can be read
        return False


def clear_directory(path: Path) -> bool:
    """Remove what :func:`is_left_over`; say whether that is done."""
    if path.suffix != ".sock":
        return False
    try:
        path.rmdir()
    except OSError:  # it is none, or something is in it
        return False
    return True


def file_at(path: Path) -> SocketFile | None:
    """Return which file this path leads to now; None if there is none."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def remove_at_end(path: Path, file: SocketFile | None) -> None:
    """Remove a socket of ours; if that fails, the log says why.

    The next start removes what is left (:func:`clear_socket`).

    Args:
        path: where it was bound.
        file: what :func:`file_at` said then. Another file there is another process's by now: its
            socket, if somebody removed the directory with the lock in it.
    """
    try:
        found = path.lstat()
        if (found.st_dev, found.st_ino) == file:
            path.unlink()
    except FileNotFoundError:
        return
    except OSError as error:
        _LOGGER.warning(
            "the socket %s cannot be removed",
            path,
            extra={"path": path, "why": error.strerror},
        )


def open_to(path: Path, mode: int, *, group: str | None = None) -> None:
    """Give a socket its group and mode, and never a file to which a symbolic link leads.

    Who can write to the directory may have put a link in the socket's place.

    Raises:
        SocketError: this is not allowed, or a link is there.
    """
    number = -1 if group is None else group_number(group)
    try:
        found = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if stat.S_ISLNK(os.fstat(found).st_mode):
                raise OSError(errno.ELOOP, "a symbolic link is in its place")
            itself = f"/proc/self/fd/{found}"
            if group is not None:
                os.chown(itself, -1, number)
            os.chmod(itself, mode)  # noqa: PTH101  a descriptor
        finally:
            os.close(found)
    except OSError as error:
        raise SocketError(f"permissions of {path} cannot be set: {error.strerror}") from error


def group_number(name: str) -> int:
    """Return the number of a group.

    Raises:
        SocketError: there is no such group.
    """
    try:
        return grp.getgrnam(name).gr_gid
    except (KeyError, ValueError) as error:  # ValueError: a NUL
        raise SocketError(
            f"there is no group {name!r}", advice="create it, or change sockets.group"
        ) from error
