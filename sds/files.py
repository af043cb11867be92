"""Reads and replaces the files that a configuration or a person names.

Invariants: only an ordinary file is read, so that a FIFO or a device in its place is an error at
once and nothing waits for it; only a bounded part of a file is in memory. The exception is a pipe
that is already open (``/dev/stdin``, a shell's ``<(…)``), which is read.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import stat
import tempfile
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

if TYPE_CHECKING:
    from pathlib import Path

SOCKET_PATH_BYTES: Final = 107
"""The longest path of a Unix socket on Linux in bytes, without its final NUL (unix(7))."""
_LINKS_TO_OPEN_FILES: Final = ("/dev/std", "/dev/fd/", "/proc/")
_OPEN_ALREADY: Final = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")


def read_file(path: Path, *, max_bytes: int) -> bytes:
    """Read a whole file.

    Raises:
        OSError: the file cannot be opened or read, is not ordinary, or is too long; ``strerror``
            says which.
    """
    try:
        # Without O_NONBLOCK, opening a FIFO waits until somebody writes to it.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
    except ValueError as error:
        raise OSError(errno.EINVAL, "its name has a NUL character", str(path)) from error
    try:
        kind = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(kind):
            if not str(path).startswith(_OPEN_ALREADY):
                raise OSError(errno.EINVAL, "it is not an ordinary file", str(path))
            os.set_blocking(descriptor, True)
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            content = file.read(max_bytes + 1)
        if content is None:  # such as /proc/kmsg; mypy's types do not know of it
            raise OSError(errno.EAGAIN, "it has nothing to read now", str(path))
    finally:
        os.close(descriptor)
    if len(content) > max_bytes:
        raise OSError(errno.EFBIG, f"it is larger than {max_bytes} bytes", str(path))
    return content


def socket_target(path: Path | str) -> str:
    """Return a Unix socket's absolute path as gRPC's target, which is a URI (RFC 3986)."""
    return f"unix:{quote(os.fsencode(path))}"


def listed(folder: Path, pattern: str) -> list[Path]:
    """Return the files of a folder whose names match a pattern, sorted; nothing without a folder.

    ``Path.glob`` also says "nothing" of a folder that may not be read.

    Raises:
        OSError: it cannot be read, or is not a folder.
    """
    try:
        return sorted(path for path in folder.iterdir() if fnmatch.fnmatch(path.name, pattern))
    except FileNotFoundError:
        return []


def is_folder(path: Path) -> bool:
    """Return whether this is a directory; a name that no file can have is not one.

    ``Path.is_dir`` raises for such a name.
    """
    return os.path.isdir(path)  # noqa: PTH112


def is_taken(path: Path) -> bool:
    """Return whether anything has this name, even a symbolic link that leads nowhere."""
    return os.path.lexists(path)


def check_replaceable(path: Path) -> None:
    """Check that no directory and no device is at this path: root can replace ``/dev/null``.

    Raises:
        OSError: there is one; ``strerror`` says which.
    """
    try:
        kind = os.stat(path).st_mode  # noqa: PTH116  as below
    except OSError:
        return
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    device = stat.S_ISCHR(kind) or stat.S_ISBLK(kind)
    if device or str(path).startswith(_LINKS_TO_OPEN_FILES):
        raise OSError(errno.EINVAL, "a device is there, not a file", str(path))


def replace_file(path: Path, content: bytes, *, mode: int) -> None:
    """Replace a file as a whole: a reader sees all of the old content or all of the new (rename).

    The new content outlasts a loss of power, or an older policy could come back with it.

    Args:
        path: the file; its folder must exist.
        content: the new content.
        mode: the new permissions.

    Raises:
        OSError: the file cannot be written, or is a device, and the old content stays; or the disk
            failed afterwards.
    """
    check_replaceable(path)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, mode)  # noqa: PTH101  as the rest of this function, by its name
        os.replace(name, path)  # noqa: PTH105
    except BaseException:
        os.unlink(name)  # noqa: PTH108
        raise
    _keep_names(path.parent)


def _keep_names(folder: Path) -> None:
    """Let the names in a folder outlast a loss of power, where the system offers that."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:
        return  # it may be written but not read, so the request cannot be made
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that knows no such request
            raise
    finally:
        os.close(descriptor)
