"""AMD's certificates, read byte by byte: ARK, ASK or ASVK, VCEK and VLEK (AMD 57230).

Owns how such a certificate is parsed and how its signature is checked. Invariant: exactly the
signed bytes are parsed: one DER encoding, the outer algorithm equal to the inner one, no byte left
over.

``cryptography`` warns of a VCEK's serial number 0 and will refuse it one day, so the structure is
read element by element (``sds.pki.der``); keys and signatures are ``cryptography``'s.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

from sds.errors import EvidenceError
from sds.pki import der

if TYPE_CHECKING:
    from datetime import datetime

    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

MAX_AMD_CERTIFICATE_BYTES: Final = 16 * 1024
"""The largest certificate of a chain below AMD's roots."""
RSA_BITS: Final = 4096
# RSASSA-PSS with SHA-384, MGF1 with SHA-384, salt of 48 bytes (57230, section 2.1), in both
# encodings that AMD uses: the trailer field left out, or written although it is the default.
_PSS_BODY: Final = bytes.fromhex(
    "a00f300d06096086480165030402020500"
    "a11c301a06092a864886f70d010108300d06096086480165030402020500"
    "a203020130"
)
_PSS_OID: Final = bytes.fromhex("06092a864886f70d01010a")
PSS_ALGORITHMS: Final = tuple(
    b"\x30"
    + bytes([len(_PSS_OID) + 2 + len(body)])
    + _PSS_OID
    + b"\x30"
    + bytes([len(body)])
    + body
    for body in (_PSS_BODY, _PSS_BODY + bytes.fromhex("a303020101"))
)
PSS_PADDING: Final = padding.PSS(mgf=padding.MGF1(hashes.SHA384()), salt_length=48)

_COMMON_NAME: Final = "2.5.4.3"
_EXTENSIONS: Final = 0xA3
_KEY_CERT_SIGN: Final = 0x04  # bit 5 of the first byte (RFC 5280, section 4.2.1.3)
_TRUE: Final = b"\x01\x01\xff"
_TEXT_TAGS: Final = frozenset({der.UTF8_STRING, der.PRINTABLE_STRING})
UNREADABLE_DER: Final = (ValueError, TypeError, OverflowError, UnsupportedAlgorithm)
"""The errors of ``sds.pki.der`` and ``cryptography`` for malformed DER."""

BASIC_CONSTRAINTS: Final = "2.5.29.19"
KEY_USAGE: Final = "2.5.29.15"
_ISSUER_EXTENSIONS: Final = frozenset(
    {BASIC_CONSTRAINTS, KEY_USAGE, "2.5.29.14", "2.5.29.35", "2.5.29.31"}
)
"""Basic constraints, key usage, key identifiers, CRL distribution points."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    """The three parts of a signed DER structure (RFC 5280, section 4.1), each with its header."""

    content: bytes = field(repr=False)
    algorithm: bytes = field(repr=False)
    signature: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Extension:
    """One extension: its value is the content of the OCTET STRING."""

    oid: str
    critical: bool
    value: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """A certificate of AMD's hierarchy, or of one made like it; its signature is not checked.

    Attributes:
        der: the whole certificate.
        signed: its signed part, algorithm and signature.
        serial: the serial number, 0 in a VCEK.
        issuer: the issuer's name in DER.
        subject: the subject's name in DER.
        common_name: the CN of the subject.
        not_before: the first moment of its validity.
        not_after: the last moment of its validity.
        public_key: the subject's key.
        extensions: the extensions in order, none twice.
    """

    der: bytes = field(repr=False)
    signed: Signed = field(repr=False)
    serial: int
    issuer: bytes = field(repr=False)
    subject: bytes = field(repr=False)
    common_name: str
    not_before: datetime
    not_after: datetime
    public_key: PublicKeyTypes = field(repr=False)
    extensions: tuple[Extension, ...] = field(repr=False)

    @property
    def digest(self) -> str:
        """Return the SHA-256 of the DER in hex, by which roots are pinned."""
        return hashlib.sha256(self.der).hexdigest()

    def validity(self) -> str:
        """Return both ends of its validity as text."""
        return f"{self.not_before:%FT%TZ} to {self.not_after:%FT%TZ}"

    @classmethod
    def parse(cls, encoded: bytes) -> Self:
        """Read a certificate.

        Raises:
            EvidenceError: ``certificate_malformed``: it is not X.509 version 3 in DER, has an
                extension twice, or is signed with another algorithm than AMD's.
        """
        try:
            return cls._parse(encoded)
        except UNREADABLE_DER as error:
            raise EvidenceError(
                f"a certificate cannot be read: {error}", reason="certificate_malformed"
            ) from error

    @classmethod
    def _parse(cls, encoded: bytes) -> Self:
        signed = split_signed(encoded)
        parts = der.elements(signed.content)
        if len(parts) != 8:  # noqa: PLR2004  version to extensions, without unique identifiers
            raise ValueError(f"{len(parts)} fields in TBSCertificate, not 8")
        version, serial, inner, issuer, validity, subject, spki, extensions = parts
        if version != b"\xa0\x03\x02\x01\x02":
            raise ValueError("not an X.509 version 3 certificate")
        if inner != signed.algorithm:
            raise ValueError("the signature algorithm outside differs from the one inside")
        if inner not in PSS_ALGORITHMS:
            raise ValueError("not signed with RSASSA-PSS, SHA-384, salt of 48 bytes")
        start, end = der.elements(validity)
        return cls(
            der=encoded,
            signed=signed,
            serial=der.integer(serial),
            issuer=issuer,
            subject=subject,
            common_name=_common_name(subject),
            not_before=der.moment(start),
            not_after=der.moment(end),
            public_key=load_der_public_key(spki),
            extensions=_extensions(extensions),
        )

    def signed_by(self, issuer: Certificate) -> bool:
        """Say whether the issuer's key made this signature (57230, section 2.1), by key alone."""
        return signature_holds(self.signed, issuer.public_key)

    def require_issuer(self) -> None:
        """Check what a certificate that signs others must say (RFC 5280, section 4.2.1).

        Raises:
            EvidenceError: ``certificate_malformed``: it is not a CA, may not sign certificates, has
                an unknown extension, or has another key than RSA-4096.
        """
        found = {extension.oid: extension for extension in self.extensions}
        unknown = found.keys() - _ISSUER_EXTENSIONS
        if unknown:
            raise EvidenceError(
                f"{self.common_name}: unknown extension {min(unknown)}",
                reason="certificate_malformed",
            )
        key = self.public_key
        if not isinstance(key, rsa.RSAPublicKey) or key.key_size != RSA_BITS:
            raise EvidenceError(
                f"{self.common_name}: not an RSA key of {RSA_BITS}", reason="certificate_malformed"
            )
        try:
            constraints = der.elements(found[BASIC_CONSTRAINTS].value)
            usage = der.content_of(found[KEY_USAGE].value, der.BIT_STRING)
        except (KeyError, *UNREADABLE_DER) as error:
            raise EvidenceError(
                f"{self.common_name}: basic constraints and key usage are needed",
                reason="certificate_malformed",
            ) from error
        # BasicConstraints: cA, pathLenConstraint. KeyUsage: unused bits, then the bits.
        if constraints[:1] != [_TRUE] or not usage[1:] or not usage[1] & _KEY_CERT_SIGN:
            raise EvidenceError(
                f"{self.common_name} may not sign certificates", reason="certificate_malformed"
            )


def signature_holds(signed: Signed, key: PublicKeyTypes) -> bool:
    """Say whether this RSA-4096 key made the signature, with AMD's parameters."""
    if not isinstance(key, rsa.RSAPublicKey) or key.key_size != RSA_BITS:
        return False
    try:
        key.verify(signed.signature, signed.content, PSS_PADDING, hashes.SHA384())
    except InvalidSignature:
        return False
    return True


def split_signed(encoded: bytes, *, limit: int = MAX_AMD_CERTIFICATE_BYTES) -> Signed:
    """Split a certificate or revocation list; refuse any encoding except DER.

    Args:
        encoded: the whole structure.
        limit: the most bytes that it may have.

    Raises:
        ValueError: it is not such a structure.
    """
    if len(encoded) > limit:
        raise ValueError(f"longer than {limit} bytes")
    content, algorithm, bits = der.elements(encoded)
    return Signed(content=content, algorithm=algorithm, signature=der.whole_bytes(bits))


def _common_name(name: bytes) -> str:
    """Return the only common name of a distinguished name, whose RDNs have one attribute each."""
    found: list[str] = []
    for relative in der.elements(name):
        (attribute,) = der.elements(relative, der.SET)
        kind, value = der.elements(attribute)
        if der.object_identifier(kind) == _COMMON_NAME:
            ((tag, text),) = der.all_elements(value)
            if tag not in _TEXT_TAGS:
                raise ValueError("a common name that is not text")
            found.append(str(text, "utf-8"))
    (common,) = found
    return common


def _extensions(encoded: bytes) -> tuple[Extension, ...]:
    found: dict[str, Extension] = {}
    for element in der.elements(der.content_of(encoded, _EXTENSIONS)):
        parts = der.elements(element)
        critical = len(parts) == 3 and parts[1] == _TRUE  # noqa: PLR2004  OID, flag, value
        if len(parts) != 2 + critical:
            raise ValueError("an extension that is not (OID, critical, value)")
        oid = der.object_identifier(parts[0])
        if oid in found:
            raise ValueError(f"the extension {oid} is given twice")
        found[oid] = Extension(oid, critical, der.content_of(parts[-1], der.OCTET_STRING))
    return tuple(found.values())
