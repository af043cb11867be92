"""Parses a TPM's public areas and signatures (TCG Part 2, sections 11 and 12).

Owns their layout, names, and the check of a signature. Invariant: :func:`require_restricted_signer`
decides which keys sign only what their TPM made itself; no other key may attest.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import IntFlag
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from sds.attestation.tpm.wire import HASHES, STRONG, Algorithm, TpmReader
from sds.errors import EvidenceError, EvidenceMalformedError

AttestationKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey
MIN_RSA_BITS: Final = 2048
_MAX_RSA_BITS: Final = 4096
_DEFAULT_EXPONENT: Final = 65_537
_MAX_EXPONENT_BITS: Final = 32
# TPM_ECC_CURVE (section 6.4).
_CURVES: Final[dict[int, ec.EllipticCurve]] = {0x0003: ec.SECP256R1(), 0x0004: ec.SECP384R1()}
_HASHES: Final[dict[Algorithm, hashes.HashAlgorithm]] = {
    Algorithm.SHA256: hashes.SHA256(),
    Algorithm.SHA384: hashes.SHA384(),
    Algorithm.SHA512: hashes.SHA512(),
}


class Attribute(IntFlag):
    """The bits of TPMA_OBJECT (section 8.3)."""

    FIXED_TPM = 1 << 1
    ST_CLEAR = 1 << 2
    FIXED_PARENT = 1 << 4
    SENSITIVE_DATA_ORIGIN = 1 << 5
    USER_WITH_AUTH = 1 << 6
    ADMIN_WITH_POLICY = 1 << 7
    NO_DA = 1 << 10
    RESTRICTED = 1 << 16
    DECRYPT = 1 << 17
    SIGN = 1 << 18


_SIGNER: Final = (
    Attribute.FIXED_TPM
    | Attribute.FIXED_PARENT
    | Attribute.SENSITIVE_DATA_ORIGIN
    | Attribute.RESTRICTED
    | Attribute.SIGN
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicArea:
    """A TPMT_PUBLIC (section 12.2.4), parsed.

    Attributes:
        raw: the whole structure.
        name_algorithm: the hash in its name.
        attributes: TPMA_OBJECT.
        key: the public key.
    """

    raw: bytes = field(repr=False)
    name_algorithm: Algorithm
    attributes: Attribute
    key: AttestationKey = field(repr=False)

    @property
    def name(self) -> bytes:
        """Return the object's name (Part 1, section 16): algorithm and hash of the public area."""
        digest = hashlib.new(HASHES[self.name_algorithm], self.raw).digest()
        return self.name_algorithm.to_bytes(2, "big") + digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """A TPMT_SIGNATURE (section 11.3.4), parsed.

    Attributes:
        scheme: RSASSA, RSAPSS or ECDSA.
        hash_algorithm: the hash that was signed.
        value: an RSA signature, or an ECDSA signature in DER.
    """

    scheme: Algorithm
    hash_algorithm: Algorithm
    value: bytes = field(repr=False)


def parse_public(raw: bytes) -> PublicArea:
    """Parse a TPMT_PUBLIC of an RSA or elliptic-curve key.

    Raises:
        EvidenceMalformedError: it is something else, is cut short, or its key is invalid.
    """
    reader = TpmReader(raw, what="the public area")
    kind, named = reader.number(2), reader.number(2)
    attributes = reader.number(4)
    reader.sized()  # authPolicy
    try:
        name_algorithm = Algorithm(named)
    except ValueError:
        name_algorithm = Algorithm.NULL
    if name_algorithm not in STRONG:
        raise EvidenceMalformedError(
            f"the public area's name is a hash by algorithm {named:#06x}",
            advice="make the key with SHA-256, SHA-384 or SHA-512 as its nameAlg",
        )
    key: AttestationKey
    if kind == Algorithm.RSA:
        key = _rsa(reader)
    elif kind == Algorithm.ECC:
        key = _elliptic(reader)
    else:
        raise EvidenceMalformedError(f"the public area is of type {kind:#06x}, not RSA or ECC")
    reader.done()
    return PublicArea(
        raw=raw, name_algorithm=name_algorithm, attributes=Attribute(attributes), key=key
    )


def _symmetric(reader: TpmReader) -> None:
    # TPMT_SYM_DEF_OBJECT (section 11.1.7): key bits and mode, unless there is no algorithm.
    if reader.number(2) != Algorithm.NULL:
        reader.take(4)


def _scheme(reader: TpmReader) -> None:
    # TPMT_ASYM_SCHEME (section 11.2.3.2): a hash; ECDAA has a count too, RSAES nothing.
    scheme = reader.number(2)
    if scheme not in {Algorithm.NULL, Algorithm.RSAES}:
        reader.take(4 if scheme == Algorithm.ECDAA else 2)


def _rsa(reader: TpmReader) -> rsa.RSAPublicKey:
    _symmetric(reader)
    _scheme(reader)
    bits, exponent = reader.number(2), reader.number(4) or _DEFAULT_EXPONENT
    modulus = reader.sized()
    number = int.from_bytes(modulus, "big")
    if not MIN_RSA_BITS <= bits <= _MAX_RSA_BITS or number.bit_length() != bits:
        raise EvidenceMalformedError(
            f"the public area is of an RSA key of {bits} bits, with a modulus of {len(modulus)} "
            "bytes",
            advice=f"keys of {MIN_RSA_BITS} to {_MAX_RSA_BITS} bits are accepted",
        )
    return rsa_key(number, exponent)


def rsa_key(modulus: int, exponent: int) -> rsa.RSAPublicKey:
    """Make an RSA key of a size that may attest.

    A TPM's exponent has 32 bits (Part 2, section 12.2.3.5); a longer one makes a signature costly.

    Raises:
        EvidenceMalformedError: modulus and exponent are not a key, or one that is too small or
            large.
    """
    bits, exponent_bits = modulus.bit_length(), exponent.bit_length()
    if not MIN_RSA_BITS <= bits <= _MAX_RSA_BITS or exponent_bits > _MAX_EXPONENT_BITS:
        raise EvidenceMalformedError(f"an RSA key of {bits} bits, its exponent of {exponent_bits}")
    try:
        return rsa.RSAPublicNumbers(exponent, modulus).public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise EvidenceMalformedError(f"the RSA key is not valid: {error}") from error


def _elliptic(reader: TpmReader) -> ec.EllipticCurvePublicKey:
    _symmetric(reader)
    _scheme(reader)
    named = reader.number(2)
    if reader.number(2) != Algorithm.NULL:  # TPMT_KDF_SCHEME
        reader.take(2)
    x, y = reader.sized(), reader.sized()
    curve = _CURVES.get(named)
    if curve is None:
        raise EvidenceMalformedError(
            f"the public area is of a key on curve {named:#06x}", advice="P-256 and P-384 are taken"
        )
    try:
        numbers = ec.EllipticCurvePublicNumbers(
            int.from_bytes(x, "big"), int.from_bytes(y, "big"), curve
        )
        return numbers.public_key()
    except ValueError as error:
        raise EvidenceMalformedError("the public area's point is not on its curve") from error


def require_restricted_signer(public: PublicArea) -> None:
    """Require a key that signs only what its TPM made, and that never left its TPM.

    fixedTPM, fixedParent and sensitiveDataOrigin mean that it was made in this TPM and is bound to
    it; restricted and sign mean that it signs no outside data that begins like the TPM's own (Part
    1, section 25.1.4).

    Raises:
        EvidenceError: ``tpm_key``: it is another kind of key.
    """
    missing = _SIGNER & ~public.attributes
    if missing or public.attributes & Attribute.DECRYPT:
        raise EvidenceError(
            f"the attestation key's attributes are {int(public.attributes):#010x}, "
            f"it must be a restricted signing key that is bound to its TPM",
            reason="tpm_key",
            advice="make it with fixedTPM, fixedParent, sensitiveDataOrigin, restricted and sign",
        )


def parse_signature(raw: bytes) -> Signature:
    """Parse a TPMT_SIGNATURE.

    Raises:
        EvidenceMalformedError: it is cut short, or its scheme or hash is not accepted.
    """
    reader = TpmReader(raw, what="the signature")
    scheme, hashed = reader.number(2), reader.number(2)
    try:
        scheme, hashed = Algorithm(scheme), Algorithm(hashed)
    except ValueError:
        scheme = Algorithm.NULL
    if scheme in {Algorithm.RSASSA, Algorithm.RSAPSS}:
        value = reader.sized()
    elif scheme == Algorithm.ECDSA:
        r, s = reader.sized(), reader.sized()
        value = encode_dss_signature(int.from_bytes(r, "big"), int.from_bytes(s, "big"))
    else:
        raise EvidenceMalformedError(
            f"the signature is by scheme {scheme:#06x}",
            advice="RSASSA, RSAPSS and ECDSA are accepted",
        )
    reader.done()
    if hashed not in STRONG:
        raise EvidenceMalformedError(
            f"the signature is over a hash by algorithm {hashed:#06x}",
            advice="SHA-256, SHA-384 and SHA-512 are accepted",
        )
    return Signature(scheme=scheme, hash_algorithm=Algorithm(hashed), value=value)


def verify_signature(key: AttestationKey, signature: Signature, signed: bytes) -> None:
    """Check a signature by a TPM's key over ``signed`` (Part 1, appendices B.6, B.7 and C.4.2).

    Raises:
        EvidenceError: ``signature_invalid``: it is not by this key, or not over these bytes.
    """
    algorithm = _HASHES[signature.hash_algorithm]
    try:
        if isinstance(key, rsa.RSAPublicKey):
            if signature.scheme == Algorithm.RSASSA:
                key.verify(signature.value, signed, padding.PKCS1v15(), algorithm)
                return
            if signature.scheme == Algorithm.RSAPSS:
                # The TPM chooses the length of the salt: the largest possible, or that of the hash
                # (FIPS).
                pss = padding.PSS(mgf=padding.MGF1(algorithm), salt_length=padding.PSS.AUTO)
                key.verify(signature.value, signed, pss, algorithm)
                return
        elif signature.scheme == Algorithm.ECDSA:
            key.verify(signature.value, signed, ec.ECDSA(algorithm))
            return
    except InvalidSignature as error:
        raise EvidenceError(
            "the signature is not by the attestation key over this quote",
            reason="signature_invalid",
        ) from error
    raise EvidenceError(
        f"the signature's scheme {signature.scheme.name} does not fit the attestation key",
        reason="signature_invalid",
    )
