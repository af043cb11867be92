"""The run directory: its owner, its lock and its sockets.

Invariants: one live agent for each run directory (by a lock that the kernel releases when its
holder dies); a socket that a dead agent left is removed, but never one on which a process listens;
directories get their mode before a socket is in them; a directory is not used if a user other than
root could have put it there or could exchange it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import grp
import os
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sds.descriptors import refuse_passed
from sds.errors import SocketError

if TYPE_CHECKING:
    from collections.abc import Iterator

_PROBE_SECONDS: Final = 1.0
_BACKLOG: Final = 4096
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
_MOST_STEPS: Final = 256


@contextlib.contextmanager
def claimed(run_dir: Path) -> Iterator[None]:
    """Own the run directory while the block runs; make it if it is missing.

    Raises:
        SocketError: it cannot be made or written, or a live agent owns it.
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
                f"another agent (pid {owner or 'unknown'}) owns {run_dir}",
                advice="stop it first, or give this one another run_dir",
            ) from error
        except OSError as error:
            raise SocketError(
                f"run directory {run_dir} cannot be locked: {error.strerror}",
                advice="set a run_dir on a local file system",
            ) from error
        # The number is only for people; sockets can be made even if the disk is full.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)


def make_directory(path: Path, mode: int, *, exact: bool = True, group: str | None = None) -> None:
    """Make a directory, and its parents, with this mode.

    Args:
        path: the directory.
        mode: the permission bits.
        exact: whether to set them on an existing directory too.
        group: the name of the group that it gets.

    Raises:
        SocketError: it cannot be made, or is not a directory.
    """
    expect_trusted(path, mode)
    try:
        existed = path.is_dir()
        path.mkdir(mode=mode, parents=True, exist_ok=True)
        if exact or not existed:
            path.chmod(mode)  # the umask applies to mkdir's mode
        if group is not None:
            os.chown(path, -1, _group(group))
    except OSError as error:
        raise SocketError(
            f"directory {path} cannot be made: {error.strerror}",
            advice="make it writable for this user, or set another run_dir",
        ) from error
    expect_trusted(path, mode)


def expect_trusted(path: Path, mode: int) -> None:
    """Refuse a directory that another user could have put there, or could exchange.

    The directory itself must belong to this user, must not be a symbolic link, and must be writable
    only as ``mode`` says. Each directory above it must belong to this user or root, and may be
    writable for others only with the sticky bit. Links above it must belong to root and be in
    directories that only root can write (``/var/run``). A directory that does not exist yet is
    fine.

    Raises:
        SocketError: ``directory_not_ours``: another user controls it.
    """
    ours = os.geteuid()
    here, names = Path("/"), [name for name in str(path.absolute()).split("/") if name]
    above = here.lstat()
    for _ in range(_MOST_STEPS):
        if not names:
            return
        step, names = here / names[0], names[1:]
        try:
            found = step.lstat()
        except FileNotFoundError:
            return
        except OSError as error:
            raise SocketError(
                f"directory {step} cannot be looked at: {error.strerror}",
                advice="make it a directory of this user, or set another run_dir",
            ) from error
        if stat.S_ISLNK(found.st_mode):
            if not names or found.st_uid != 0 or above.st_uid != 0 or above.st_mode & _OTHERS_WRITE:
                raise _not_ours(path, f"{step} is a symbolic link")
            target = step.readlink()
            here = Path("/") if target.is_absolute() else here
            names = [name for name in str(target).split("/") if name] + names
            above = here.lstat()
            continue
        if found.st_uid != ours and (not names or found.st_uid != 0):
            raise _not_ours(path, f"{step} belongs to user {found.st_uid}")
        allowed = stat.S_ISVTX if names else 0
        others = found.st_mode & _OTHERS_WRITE & (-1 if names else ~mode)
        if others and not found.st_mode & allowed:
            raise _not_ours(path, f"others can write to {step}")
        here, above = step, found
    raise _not_ours(path, "its symbolic links lead in circles")


def _not_ours(path: Path, why: str) -> SocketError:
    return SocketError(
        f"directory {path} is not safe for sockets: {why}",
        reason="directory_not_ours",
        advice="give it to the agent's user, and write it without symbolic links",
    )


def open_to(path: Path, mode: int, *, group: str | None = None) -> None:
    """Give a socket its group and mode.

    Raises:
        SocketError: this is not allowed.
    """
    try:
        if group is not None:
            os.chown(path, -1, _group(group))
        path.chmod(mode)
    except OSError as error:
        raise SocketError(f"permissions of {path} cannot be set: {error.strerror}") from error


def listening(path: Path, mode: int, *, group: str | None = None) -> socket.socket:
    """Make a Unix stream socket that listens at ``path``, in place of a dead agent's.

    Raises:
        SocketError: it cannot be opened, or another process listens there.
    """
    clear_socket(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        refuse_passed(listener)
        listener.bind(str(path))
        # The umask kept the socket private since it was bound.
        open_to(path, mode, group=group)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise SocketError(
            f"the socket {path} cannot be opened: {error.strerror or error}",
            advice="check that the directory is writable, and raise the limit of open files",
        ) from error
    except SocketError:
        listener.close()
        raise
    return listener


def clear_socket(path: Path) -> None:
    """Remove the socket of a dead agent.

    Raises:
        SocketError: a process listens on it, it is not a socket, or it cannot be removed.
    """
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise SocketError(
                f"{path} exists and is not a socket", advice="remove it, or set another run_dir"
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
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise SocketError(
                f"the socket {path} of an agent that is gone cannot be removed: {error.strerror}",
                advice="make its directory writable for this user, or set another run_dir",
            ) from error
        return
    raise SocketError(
        f"another process listens on {path}", advice="stop it first, or set another run_dir"
    )


def _group(name: str) -> int:
    try:
        return grp.getgrnam(name).gr_gid
    except (KeyError, ValueError) as error:  # ValueError: a NUL
        raise SocketError(
            f"there is no group {name!r}", advice="create it, or change sockets.group"
        ) from error
