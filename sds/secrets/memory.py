"""Memory that holds private keys.

Owns the buffers in which serialized private keys lie. Invariant: a key's bytes stay in one
buffer for as long as its version lives, are wiped when it retires, and never appear in a
``repr``, an exception or a log.
"""

from __future__ import annotations

import ctypes

from sds.errors import SdsError


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
        if self._buffer:
            address = (ctypes.c_char * len(self._buffer)).from_buffer(self._buffer)
            ctypes.memset(ctypes.addressof(address), 0, len(self._buffer))
        self._wiped = True

    def __repr__(self) -> str:
        """Never the content."""
        return "SecretBytes(<redacted>)"

    def __reduce__(self) -> str:
        """A secret is never pickled."""
        raise TypeError("SecretBytes cannot be serialized")
