"""The table of certificates that a host gives with a report (AMD 56421, GHCB, section 4.1.8.1).

Owns its layout. Invariants: offsets and lengths stay inside the table; its entries add no trust.
"""

from __future__ import annotations

import struct
import uuid
from typing import Final

from sds.attestation.pem import der_certificates
from sds.errors import EvidenceError, EvidenceMalformedError

_ENTRY: Final = struct.Struct("<16sII")
_MAX_ENTRIES: Final = 64
MAX_TABLE_BYTES: Final = 1024 * 1024
VCEK: Final = uuid.UUID("63da758d-e664-4564-adc5-f4b93be8accd")
VLEK: Final = uuid.UUID("a8074bc2-a25a-483e-aae6-39c045a0b8a1")
ASK: Final = uuid.UUID("4ab7b379-bbac-4fe4-a02f-05aef327c782")
ARK: Final = uuid.UUID("c0b406a4-a803-4952-9743-3fb6014cd0ae")


def parse_certificate_table(raw: bytes) -> dict[uuid.UUID, bytes]:
    """Return the DER of each entry by its GUID; no bytes are an empty table.

    Raises:
        EvidenceMalformedError: an entry points outside, or the table has no end.
    """
    found: dict[uuid.UUID, bytes] = {}
    if not raw:
        return found
    for index in range(_MAX_ENTRIES):
        if len(raw) < (index + 1) * _ENTRY.size:
            break
        guid, offset, length = _ENTRY.unpack_from(raw, index * _ENTRY.size)
        if not any(guid):
            return found
        if offset + length > len(raw):
            raise EvidenceMalformedError(
                f"entry {index} of the certificate table points outside of it"
            )
        found[uuid.UUID(bytes=guid)] = raw[offset : offset + length]
    raise EvidenceMalformedError("the certificate table has no end")


def chain_of_table(table: dict[uuid.UUID, bytes], *, vlek: bool) -> tuple[bytes, ...]:
    """Return DER, leaf first: VLEK or VCEK, then ASK and ARK if present; empty without a leaf.

    By the document, an entry is DER; hosts put in files as they find them, even PEM.
    """
    leaf = table.get(VLEK if vlek else VCEK)
    if not leaf:
        return ()
    entries = (leaf, *(table[guid] for guid in (ASK, ARK) if table.get(guid)))
    return tuple(der for entry in entries for der in _ders(entry))


def _ders(entry: bytes) -> tuple[bytes, ...]:
    try:
        return der_certificates(entry, what="an entry of the certificate table")
    except EvidenceError:
        return (entry,)  # the verifier refuses it as a certificate that cannot be read
