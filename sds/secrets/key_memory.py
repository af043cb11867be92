"""Memory for private keys.

Owns the pages that contain serialized private keys. Invariants: a key's bytes stay in one buffer
for as long as its version lives; the buffer is locked if the system allows it, is never in a core
dump and is not inherited by a child process; the bytes are overwritten soon after the key retires
(:mod:`sds.secrets.retirement`); they never appear in a ``repr``, an exception or a log.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import sys
from typing import TYPE_CHECKING, Final

from sds.errors import SecretWipedError

if TYPE_CHECKING:
    from collections.abc import Callable

_libc: Final = ctypes.CDLL(None, use_errno=True)


def wipe(data: bytes | bytearray) -> None:
    """Overwrite bytes in place with zeros; nobody may use them afterwards.

    For ``bytes`` this breaks the language's promise that they never change: only for a temporary
    that the caller alone refers to, such as a key's encoding that a library returned.
    """
    if not data:
        return
    if isinstance(data, bytearray):
        address = ctypes.addressof((ctypes.c_char * len(data)).from_buffer(data))
    else:
        address = id(data) + bytes.__basicsize__ - 1
    ctypes.memset(address, 0, len(data))


class SecretBytes:
    """One secret in pages of its own that can be wiped."""

    __slots__ = ("_pages", "_size")

    def __init__(self, data: bytes | bytearray) -> None:
        """Copy ``data`` into pages of its own; the caller wipes or drops its own copy."""
        self._size = len(data)
        pages = mmap.mmap(-1, max(1, self._size), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        for advice in (mmap.MADV_DONTDUMP, mmap.MADV_DONTFORK):
            with contextlib.suppress(OSError):  # an old kernel: the process is not dumpable anyway
                pages.madvise(advice)
        # Refused where RLIMIT_MEMLOCK is used up; sds.secrets.hardening said so at the start.
        _libc.mlock(ctypes.c_void_p(_address(pages)), ctypes.c_size_t(len(pages)))
        pages[: self._size] = bytes(data)
        self._pages: mmap.mmap | None = pages

    def reveal(self) -> bytes:
        """Return a copy of the secret, for the one place that puts it on the socket.

        Raises:
            SecretWipedError: the secret was wiped.
        """
        if self._pages is None:
            raise SecretWipedError("this secret was wiped")
        return self._pages[: self._size]

    def wipe(self) -> None:
        """Overwrite the pages with zeros and give them back; a second call does nothing."""
        pages, self._pages = self._pages, None
        if pages is not None:
            ctypes.memset(_address(pages), 0, len(pages))
            pages.close()

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        """Wipe a secret that is dropped without a call of :meth:`wipe`.

        Args:
            is_finalizing: a default argument, because the module's names are gone when Python ends.
        """
        if getattr(self, "_pages", None) is not None and not is_finalizing():
            self.wipe()  # when Python ends, ctypes is gone and the kernel takes the pages

    def __repr__(self) -> str:
        """Return a text without the content."""
        return "SecretBytes(<redacted>)"

    def __reduce__(self) -> str:
        """Refuse to pickle a secret."""
        raise TypeError("SecretBytes cannot be serialized")


def _address(pages: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(pages))
