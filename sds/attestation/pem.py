"""Certificates and revocation lists of endorsements, from PEM or DER files.

Owns the step from a file's bytes to DER. Invariant: nothing is parsed here, so that a VCEK's
serial number 0 troubles nobody; what the DER means is the chain's question.
"""

from __future__ import annotations

import re
from typing import Final

from asn1crypto import pem
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from sds.errors import EvidenceMalformedError

UNREADABLE: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
"""What ``cryptography`` raises for certificates and lists that it cannot read."""
MAX_BLOCKS: Final = 64
_BLOCK: Final = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)


def der_certificates(content: bytes, *, what: str) -> tuple[bytes, ...]:
    """Every certificate of a PEM text, or the one that DER is.

    Raises:
        EvidenceMalformedError: it is neither.
    """
    return _blocks(content, label="CERTIFICATE", what=what)


def der_revocation_lists(content: bytes, *, what: str) -> tuple[bytes, ...]:
    """Every revocation list of a PEM text, or the one that DER is.

    Raises:
        EvidenceMalformedError: it is neither.
    """
    return _blocks(content, label="X509 CRL", what=what)


def _blocks(content: bytes, *, label: str, what: str) -> tuple[bytes, ...]:
    if content.startswith(b"\x30"):
        return (content,)
    found = []
    for block in _BLOCK.finditer(content):
        if block[1].decode() != label:
            continue
        try:
            _, _, der = pem.unarmor(block[0] + b"\n")
        except (ValueError, TypeError) as error:
            raise EvidenceMalformedError(f"{what} holds a broken PEM block: {error}") from error
        found.append(der)
    if not found or len(found) > MAX_BLOCKS:
        raise EvidenceMalformedError(
            f"{what} holds {len(found) or 'no'} {label.lower()}s",
            advice=f"give DER, or PEM with 1 to {MAX_BLOCKS} blocks of BEGIN {label}",
        )
    return tuple(found)
