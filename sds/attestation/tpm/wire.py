"""The numbers of the TPM library specification, and the reader of its structures.

Owns the bounds: a :class:`TpmReader` gives only existing bytes, and its user ends with
:meth:`TpmReader.done`, so that no byte goes unread. Source of every number: TCG, Trusted Platform
Module Library, Part 2 (Structures), revision 1.59; the section is named beside it.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final

from sds.errors import EvidenceMalformedError

GENERATED: Final = 0xFF544347
"""TPM_GENERATED_VALUE (section 6.2), with which only a TPM's own data begins."""
ATTEST_QUOTE: Final = 0x8018
"""TPM_ST_ATTEST_QUOTE (section 6.9)."""
MAX_BUFFER: Final = 4096
"""The most bytes of one sized buffer: more than any key, digest or signature has."""


class Algorithm(IntEnum):
    """The algorithms of TPM_ALG_ID (section 6.3)."""

    RSA = 0x0001
    SHA1 = 0x0004
    HMAC = 0x0005
    AES = 0x0006
    KEYEDHASH = 0x0008
    SHA256 = 0x000B
    SHA384 = 0x000C
    SHA512 = 0x000D
    NULL = 0x0010
    RSASSA = 0x0014
    RSAES = 0x0015
    RSAPSS = 0x0016
    OAEP = 0x0017
    ECDSA = 0x0018
    ECDAA = 0x001A
    ECC = 0x0023
    CFB = 0x0043


HASHES: Final = {
    Algorithm.SHA1: "sha1",
    Algorithm.SHA256: "sha256",
    Algorithm.SHA384: "sha384",
    Algorithm.SHA512: "sha512",
}
"""The names of algorithms in ``hashlib``."""
STRONG: Final = frozenset({Algorithm.SHA256, Algorithm.SHA384, Algorithm.SHA512})
"""The hashes that evidence may use."""


class TpmReader:
    """Reads a TPM structure from its first byte to its last.

    Args:
        raw: the bytes.
        what: names the structure in errors.
    """

    def __init__(self, raw: bytes, *, what: str) -> None:
        self._raw = raw
        self._what = what
        self._at = 0

    def take(self, size: int) -> bytes:
        """Take the next ``size`` bytes.

        Raises:
            EvidenceMalformedError: there are fewer.
        """
        end = self._at + size
        if end > len(self._raw):
            raise EvidenceMalformedError(
                f"{self._what} ends after {len(self._raw)} bytes, {end} at least are needed"
            )
        found = self._raw[self._at : end]
        self._at = end
        return found

    def number(self, size: int) -> int:
        """Read an unsigned number of ``size`` bytes."""
        return int.from_bytes(self.take(size), "big")

    def sized(self) -> bytes:
        """Read a TPM2B: its size in two bytes, and then its content (section 10.4.1).

        Raises:
            EvidenceMalformedError: there are fewer bytes, or it is too long.
        """
        size = self.number(2)
        if size > MAX_BUFFER:
            raise EvidenceMalformedError(f"{self._what} has a buffer of {size} bytes")
        return self.take(size)

    def rest(self) -> bytes:
        """Return all remaining bytes."""
        return self.take(len(self._raw) - self._at)

    def done(self) -> None:
        """Check that every byte was read.

        Raises:
            EvidenceMalformedError: there are more.
        """
        if self._at != len(self._raw):
            raise EvidenceMalformedError(
                f"{self._what} has {len(self._raw) - self._at} bytes after its end"
            )


def sized(content: bytes) -> bytes:
    """Encode ``content`` as a TPM2B (section 10.4.1)."""
    return struct.pack(">H", len(content)) + content
