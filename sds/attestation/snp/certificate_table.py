"""The table of certificates that a host gives with a report (AMD 56421, GHCB, section 4.1.8.1).

Owns its layout. Invariants: offsets and lengths stay inside the table; its entries add no trust; a
table or an entry that cannot be read spoils nothing else: the report is good without it, because
the verifier, or the keeper of collateral, finds the chip's certificate elsewhere.
"""

from __future__ import annotations

import logging
import struct
import uuid
from typing import Final

from sds import faults
from sds.attestation.pem import der_certificates
from sds.attestation.snp.certificate import Certificate
from sds.errors import EvidenceError, EvidenceMalformedError
from sds.problems import Problems

_LOGGER = logging.getLogger(__name__)
_ENTRY: Final = struct.Struct("<16sII")
_MAX_ENTRIES: Final = 64
MAX_TABLE_BYTES: Final = 1024 * 1024
VCEK: Final = uuid.UUID("63da758d-e664-4564-adc5-f4b93be8accd")
VLEK: Final = uuid.UUID("a8074bc2-a25a-483e-aae6-39c045a0b8a1")
ASK: Final = uuid.UUID("4ab7b379-bbac-4fe4-a02f-05aef327c782")
ARK: Final = uuid.UUID("c0b406a4-a803-4952-9743-3fb6014cd0ae")
_NAMES: Final = {VCEK: "VCEK", VLEK: "VLEK", ASK: "ASK", ARK: "ARK"}
_problems: Final = Problems()
"""A host gives the same table with every report."""


def chain_of_host(raw: bytes, *, vlek: bool) -> tuple[bytes, ...]:
    """Return what can be used of a host's table: :func:`chain_of_table`, or nothing.

    Args:
        raw: the table; empty if the host gave none.
        vlek: whether a VLEK signed the report.
    """
    try:
        table = parse_certificate_table(raw)
    except EvidenceMalformedError as error:
        _say("certificate table", error)
        return ()
    _problems.over(of="certificate table")
    return chain_of_table(table, vlek=vlek)


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

    By the document, an entry is DER; hosts put in files as they find them, even PEM. An entry that
    is not a certificate is left out.
    """
    leaf = _ders(table, VLEK if vlek else VCEK)
    return (*leaf, *_ders(table, ASK), *_ders(table, ARK)) if leaf else ()


def _ders(table: dict[uuid.UUID, bytes], guid: uuid.UUID) -> tuple[bytes, ...]:
    entry, name = table.get(guid), _NAMES[guid]
    if not entry:
        return ()
    try:
        found = der_certificates(entry, what=f"the entry {name} of the certificate table")
        for der in found:
            Certificate.parse(der)
    except EvidenceError as error:
        _say(name, error)
        return ()
    _problems.over(of=name)
    return found


def _say(what: str, error: EvidenceError) -> None:
    """Count what cannot be used, and log it once."""
    faults.count("certificate file")
    if _problems.is_news(error, of=what):
        _LOGGER.warning(
            "the host's %s cannot be used, and evidence goes without it: %s",
            what,
            error,
            extra={"reason": error.reason},
        )
