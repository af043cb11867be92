"""The run directory: its owner and its lock, and the directories in it.

Invariants: one live agent for each run directory (by a lock that the kernel releases when its
holder dies); directories get their mode before a socket is in them; a directory is not used if a
user other than root could have put it there or could exchange it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sds.errors import SocketError
from sds.unix_sockets import group_number

if TYPE_CHECKING:
    from collections.abc import Iterator

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


def make_directory(
    path: Path,
    mode: int,
    *,
    exact: bool = True,
    group: str | None = None,
    trusted: Path | None = None,
) -> None:
    """Make a directory, and its parents, with this mode.

    Args:
        path: the directory.
        mode: the permission bits.
        exact: whether to set them on an existing directory too.
        group: the name of the group that it gets.
        trusted: a directory above it that this function made, or found safe, a moment ago.

    Raises:
        SocketError: it cannot be made, or is not a directory.
    """
    expect_trusted(path, mode, below=trusted)
    try:
        existed = path.is_dir()
        path.mkdir(mode=mode, parents=True, exist_ok=True)
        if exact or not existed:
            path.chmod(mode)  # the umask applies to mkdir's mode
        if group is not None:
            os.chown(path, -1, group_number(group))
    except OSError as error:
        raise SocketError(
            f"directory {path} cannot be made: {error.strerror}",
            advice="make it writable for this user, or set another run_dir",
        ) from error
    expect_trusted(path, mode, below=trusted)


def expect_trusted(path: Path, mode: int, *, below: Path | None = None) -> None:
    """Refuse a directory that another user could have put there, or could exchange.

    The directory itself must belong to this user, must not be a symbolic link, and must be writable
    only as ``mode`` says. Each directory above it must belong to this user or root, and may be
    writable for others only with the sticky bit. Links above it must belong to root and be in
    directories that only root can write (``/var/run``). A directory that does not exist yet is
    fine.

    Args:
        path: the directory.
        mode: the permission bits that it has or gets.
        below: a directory above it that was checked a moment ago. Nobody else can have exchanged
            it since, so this check begins with it: a thousand sockets share what is above.

    Raises:
        SocketError: ``directory_not_ours``: another user controls it.
    """
    ours = os.geteuid()
    here = Path("/") if below is None else below.absolute().parent
    names = [name for name in str(path.absolute().relative_to(here)).split("/") if name]
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
