"""Packs evidence with a TPM's quote for travel: several parts in one value.

Owns the layout: a mark, then each part as its number (one byte), its length (four bytes,
big-endian) and its content, in ascending order of numbers. Invariant: each part occurs at most
once, and every byte belongs to a part, so two different lists of parts never give the same bytes.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Final

from sds.attestation.tpm.quote import SignedQuote
from sds.attestation.tpm.wire import TpmReader
from sds.errors import EvidenceMalformedError

if TYPE_CHECKING:
    from collections.abc import Mapping

MARK: Final = b"SDS-TPM\1"
_MAX_PART: Final = 48 * 1024


class Piece(IntEnum):
    """The kinds of parts."""

    ATTEST = 1
    """The TPMS_ATTEST of the quote."""
    SIGNATURE = 2
    """The TPMT_SIGNATURE over it."""
    PCRS = 3
    """The quoted PCRs' values."""
    HCL = 4
    """The blob of an Azure paravisor (NV index 0x01400001)."""
    TD_QUOTE = 5
    """The TDX quote of the blob's TDREPORT."""
    PUBLIC = 6
    """The TPMT_PUBLIC of the attestation key."""
    ENDORSEMENT = 7
    """The TPMT_PUBLIC of the endorsement key."""
    PROOF = 8
    """The result of TPM2_ActivateCredential for the authority's last credential."""


def pack(parts: Mapping[Piece, bytes]) -> bytes:
    """Pack the parts into one value."""
    written = MARK
    for part, content in sorted(parts.items()):
        written += bytes([part]) + len(content).to_bytes(4, "big") + content
    return written


def unpack(raw: bytes) -> dict[Piece, bytes]:
    """Unpack the parts of a value.

    Raises:
        EvidenceMalformedError: it has another layout, or an unknown part.
    """
    if not raw.startswith(MARK):
        raise EvidenceMalformedError(
            "these bytes are not evidence with a TPM's quote",
            advice="collect it with this program: it packs the quote and what belongs to it",
        )
    reader = TpmReader(raw[len(MARK) :], what="evidence with a TPM's quote")
    left = len(raw) - len(MARK)
    found: dict[Piece, bytes] = {}
    last = 0
    while left:
        number, size = reader.number(1), reader.number(4)
        if not last < number <= max(Piece) or size > _MAX_PART:
            raise EvidenceMalformedError(
                f"evidence with a TPM's quote has a part {number} of {size} bytes after part {last}"
            )
        found[Piece(number)] = reader.take(size)
        last = number
        left -= 5 + size
    return found


def quote_of(parts: Mapping[Piece, bytes]) -> SignedQuote:
    """Return the quote among the parts.

    Raises:
        EvidenceMalformedError: one of its parts is missing.
    """
    missing = [one for one in (Piece.ATTEST, Piece.SIGNATURE, Piece.PCRS) if one not in parts]
    if missing:
        raise EvidenceMalformedError(
            f"evidence with a TPM's quote lacks {', '.join(one.name for one in missing)}"
        )
    return SignedQuote(
        attest=parts[Piece.ATTEST],
        signature=parts[Piece.SIGNATURE],
        values=parts[Piece.PCRS],
    )


def parts_of(quote: SignedQuote) -> dict[Piece, bytes]:
    """Return the parts of a quote."""
    return {
        Piece.ATTEST: quote.attest,
        Piece.SIGNATURE: quote.signature,
        Piece.PCRS: quote.values,
    }
