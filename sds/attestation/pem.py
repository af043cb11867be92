"""Reads certificates and revocation lists of endorsements from PEM or DER files.

Owns the step from a file's bytes to DER. Invariant: nothing is parsed here, so a VCEK's serial
number 0 does no harm; the modules of chains read the DER.
"""

from __future__ import annotations

import contextlib
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from sds.errors import CertificateError, EvidenceMalformedError
from sds.pki.chain import MAX_CERTIFICATE_BYTES
from sds.pki.pem import CERTIFICATE, REVOCATION_LIST, der_blocks

UNREADABLE: Final = (
    ValueError,
    TypeError,
    OverflowError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
"""The errors of ``cryptography`` for certificates and lists that it cannot read."""


def der_certificates(content: bytes, *, what: str) -> tuple[bytes, ...]:
    """Return every certificate of a PEM text, or the one that the content itself is in DER.

    Raises:
        EvidenceMalformedError: it is neither, or a certificate has more than
            :data:`~sds.pki.chain.MAX_CERTIFICATE_BYTES`.
    """
    found = _blocks(content, label=CERTIFICATE, what=what)
    largest = max(map(len, found))
    if largest > MAX_CERTIFICATE_BYTES:
        raise EvidenceMalformedError(
            f"{what}: a certificate has {largest} bytes, more than {MAX_CERTIFICATE_BYTES}"
        )
    return found


def der_revocation_lists(content: bytes, *, what: str) -> tuple[bytes, ...]:
    """Return every revocation list of a PEM text, or the one that the content is in DER or hex.

    Raises:
        EvidenceMalformedError: it is none of these.
    """
    return _blocks(unhexed(content), label=REVOCATION_LIST, what=what)


def unhexed(content: bytes) -> bytes:
    """Decode DER that is written in hexadecimal, as a PCCS gives the root's list."""
    text = content.strip(b" \t\r\n\0")
    if text.startswith(b"30"):
        with contextlib.suppress(ValueError):
            return bytes.fromhex(text.decode("ascii"))
    return content


def _blocks(content: bytes, *, label: str, what: str) -> tuple[bytes, ...]:
    try:
        return der_blocks(content, label=label, what=what)
    except CertificateError as error:
        raise EvidenceMalformedError(error.message, advice=error.advice) from error
