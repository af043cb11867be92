"""Memory that holds private keys.

Owns the buffers in which serialized private keys lie. Invariant: a key's bytes stay in one
buffer for as long as its version lives, are wiped when it retires, and never appear in a
``repr``, an exception or a log.
"""

from __future__ import annotations

import ctypes

from sds.errors import SdsError


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


class SecretWipedError(SdsError):
    """A secret was read after it had been wiped: a bug in this program."""

    reason = "secret_wiped"


class SecretBytes:
    """One secret in a buffer of its own that can be wiped."""

    __slots__ = ("_buffer", "_wiped")

    def __init__(self, data: bytes | bytearray) -> None:
        """Copy ``data`` into the buffer; the caller wipes or drops its own copy."""
        self._buffer = bytearray(data)
        self._wiped = False

    def reveal(self) -> bytes:
        """A copy of the secret, for the one place that puts it on the socket.

        Raises:
            SecretWipedError: it was wiped.
        """
        if self._wiped:
            raise SecretWipedError("this secret was wiped")
        return bytes(self._buffer)

    def wipe(self) -> None:
        """Overwrite the buffer with zeros; a second call does nothing."""
        wipe(self._buffer)
        self._wiped = True

    def __repr__(self) -> str:
        """Never the content."""
        return "SecretBytes(<redacted>)"

    def __reduce__(self) -> str:
        """A secret is never pickled."""
        raise TypeError("SecretBytes cannot be serialized")
