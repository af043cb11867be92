"""Writes the table of certificates that a host gives with a report (AMD 56421, section 4.1.8.1)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import uuid

_ENTRY: Final = struct.Struct("<16sII")


def build_certificate_table(entries: dict[uuid.UUID, bytes]) -> bytes:
    """Build a certificate table as hosts write it, the reverse of parsing."""
    offset = (len(entries) + 1) * _ENTRY.size
    head, body = b"", b""
    for guid, der in entries.items():
        head += _ENTRY.pack(guid.bytes, offset + len(body), len(der))
        body += der
    return head + bytes(_ENTRY.size) + body
