"""Asks the kernel to tell of changes in one folder, by inotify(7) and without a thread.

Owns the calls of the kernel and the form of its events. Invariants: a watch is one descriptor,
which is closed once; nothing here starts a thread. If the system refuses a thread (``pids.max`` of
a control group), a library that needs one of its own may end the process; ``watchfiles`` does.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from io import FileIO
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.inotify_add_watch.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32]
_EVENT: Final = struct.Struct("iIII")
"""``struct inotify_event``: watch, mask, cookie, length of the name that follows."""
_READ_BYTES: Final = 64 * 1024
_READS: Final = 16
"""The most reads for one look; what is left tells again."""
_CHANGES: Final = (
    0x002  # IN_MODIFY
    | 0x004  # IN_ATTRIB: a file that may be read from now on
    | 0x008  # IN_CLOSE_WRITE
    | 0x040  # IN_MOVED_FROM
    | 0x080  # IN_MOVED_TO
    | 0x100  # IN_CREATE
    | 0x200  # IN_DELETE
    | 0x400  # IN_DELETE_SELF
    | 0x800  # IN_MOVE_SELF
)
_WENT: Final = (
    0x400  # IN_DELETE_SELF
    | 0x800  # IN_MOVE_SELF
    | 0x2000  # IN_UNMOUNT
    | 0x8000  # IN_IGNORED: the kernel watches it no longer
)
_USED_UP: Final = {
    errno.EMFILE: "no descriptor is left, or fs.inotify.max_user_instances is used up",
    errno.ENOSPC: "fs.inotify.max_user_watches is used up",
}


class FolderEvents(FileIO):
    """The open file of one watch; without references it is closed.

    Whoever asked may have left while a thread opened it, and then nobody else can close it.
    """

    def __del__(self) -> None:
        """Close it, without the warning that a file gives."""
        self.close()


def watched(folder: Path) -> FolderEvents:
    """Return an open file that becomes readable when something in the folder changes.

    It does not block, but finding the folder may: call this in a thread.

    Raises:
        OSError: the folder is not there, or the kernel watches no more.
    """
    descriptor: int = _libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
    if descriptor < 0:
        raise _error(folder)
    events = FolderEvents(descriptor)
    if _libc.inotify_add_watch(descriptor, os.fsencode(folder), _CHANGES) < 0:
        error = _error(folder)
        events.close()
        raise error
    return events


def went(events: FileIO) -> bool:
    """Read the events that are there; say whether the folder itself was moved or removed.

    Raises:
        OSError: they cannot be read.
    """
    gone = False
    for _ in range(_READS):
        data = events.read(_READ_BYTES)
        if not data:
            break
        at = 0
        while at < len(data):
            _, mask, _, length = _EVENT.unpack_from(data, at)
            gone = gone or bool(mask & _WENT)
            at += _EVENT.size + length
    return gone


def _error(folder: Path) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, _USED_UP.get(number) or os.strerror(number), str(folder))
