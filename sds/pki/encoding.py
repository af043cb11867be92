"""Converts certificates between PEM (for people and Envoy) and DER (for this program).

Invariant: the bytes of the DER and the order of the certificates never change.
"""

from __future__ import annotations

import base64
import textwrap
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from sds.errors import CertificateError
from sds.pki.pem import CERTIFICATE, pem_blocks
from sds.untrusted_input import reading

if TYPE_CHECKING:
    from collections.abc import Iterable

_MOST_ROOTS: Final = 1024
"""The most certificates in a file of roots: the web's have about 150."""


def certificate_der(certificate: x509.Certificate) -> bytes:
    """Return the certificate in DER."""
    return certificate.public_bytes(Encoding.DER)


def certificate_pem(certificates: Iterable[bytes]) -> bytes:
    """Encode DER certificates as one PEM text, in order (RFC 7468, section 5)."""
    blocks = (
        "-----BEGIN CERTIFICATE-----\n"
        + "\n".join(textwrap.wrap(base64.b64encode(der).decode(), 64))
        + "\n-----END CERTIFICATE-----\n"
        for der in certificates
    )
    return "".join(blocks).encode()


def plain_pem(pem: bytes, *, what: str) -> bytes:
    """Write the certificates of a PEM text anew, in the one form that every library reads.

    OpenSSL skips what we read: a first certificate after a byte order mark, and every one that is
    indented. Whether each can be parsed is left to whoever uses it.

    Raises:
        CertificateError: ``certificate_malformed``: as for :func:`sds.pki.pem.pem_blocks`.
    """
    return certificate_pem(pem_blocks(pem, label=CERTIFICATE, what=what, most=_MOST_ROOTS))


def certificates_from_pem(pem: bytes, *, what: str = "the PEM text") -> tuple[bytes, ...]:
    """Return every certificate of a PEM text as DER, in order; ``what`` names it in errors.

    Raises:
        CertificateError: ``certificate_malformed``: the text has no certificate, or one cannot be
            parsed.
    """
    blocks = pem_blocks(pem, label=CERTIFICATE, what=what)
    for der in blocks:
        with reading(
            f"{what} has a certificate that cannot be parsed",
            CertificateError,
            reason="certificate_malformed",
        ):
            x509.load_der_x509_certificate(der)
    return blocks
