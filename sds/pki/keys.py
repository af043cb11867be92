"""Makes and reads private keys and certificate signing requests.

Owns which kinds of key exist and how each signs. Invariant: a private key leaves this module only
as a key object or as the PKCS#8 bytes that its holder asked for; no error text contains any of it.
"""

from __future__ import annotations

import hashlib
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from sds.errors import CertificateError, KeyTypeError
from sds.identity import Identity, KeyType

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey

_RSA_BITS: Final = {KeyType.RSA_2048: 2048, KeyType.RSA_3072: 3072, KeyType.RSA_4096: 4096}
_RSA_TYPES: Final = {bits: key_type for key_type, bits in _RSA_BITS.items()}
_RSA_EXPONENT: Final = 65537
_RSA_LONGEST_EXPONENT: Final = 256


def generate_private_key(key_type: KeyType) -> PrivateKey:
    """Make a key of this kind.

    RSA takes from tens of milliseconds to seconds: call it in a thread.
    """
    match key_type:
        case KeyType.EC_P256:
            return ec.generate_private_key(ec.SECP256R1())
        case KeyType.EC_P384:
            return ec.generate_private_key(ec.SECP384R1())
        case KeyType.ED25519:
            return ed25519.Ed25519PrivateKey.generate()
        case KeyType.RSA_2048 | KeyType.RSA_3072 | KeyType.RSA_4096:
            return rsa.generate_private_key(_RSA_EXPONENT, _RSA_BITS[key_type])


def key_type_of(key: object) -> KeyType:
    """Return the kind of a key; this function alone decides which keys are accepted.

    Raises:
        KeyTypeError: it is of an unknown kind (another curve, RSA size, DSA, ...), or an
            RSA key whose public exponent is even, below 65537 or above 256 bits (FIPS 186-5,
            section 5.1).
    """
    match key:
        case ec.EllipticCurvePrivateKey() | ec.EllipticCurvePublicKey():
            match key.curve:
                case ec.SECP256R1():
                    return KeyType.EC_P256
                case ec.SECP384R1():
                    return KeyType.EC_P384
            found = f"elliptic curve {key.curve.name}"
        case rsa.RSAPrivateKey() | rsa.RSAPublicKey():
            exponent = _exponent(key)
            if key.key_size not in _RSA_TYPES:
                found = f"RSA of {key.key_size} bits"
            elif (
                exponent < _RSA_EXPONENT
                or exponent % 2 == 0
                or exponent.bit_length() > _RSA_LONGEST_EXPONENT
            ):
                found = f"RSA with the public exponent {hex(exponent)[:20]}"
            else:
                return _RSA_TYPES[key.key_size]
        case ed25519.Ed25519PrivateKey() | ed25519.Ed25519PublicKey():
            return KeyType.ED25519
        case _:
            found = type(key).__name__
    raise KeyTypeError(
        f"a key of the kind {found} is not supported", advice=f"use one of {', '.join(KeyType)}"
    )


def _exponent(key: rsa.RSAPrivateKey | rsa.RSAPublicKey) -> int:
    public = key.public_key() if isinstance(key, rsa.RSAPrivateKey) else key
    return public.public_numbers().e


def signature_hash(key: PrivateKey) -> hashes.SHA256 | hashes.SHA384 | None:
    """Return the hash with which this key signs certificates and CSRs (RFC 5758, RFC 8410)."""
    match key_type_of(key):
        case KeyType.ED25519:
            return None
        case KeyType.EC_P384:
            return hashes.SHA384()
        case _:
            return hashes.SHA256()


def private_key_pem(key: PrivateKey) -> bytes:
    """Encode the key as PKCS#8 PEM without encryption (RFC 5958), as Envoy wants it."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def spki_der(key: PublicKey) -> bytes:
    """Return the key as SubjectPublicKeyInfo in DER (RFC 5280, section 4.1.2.7)."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def spki_sha256(key: PublicKey) -> bytes:
    """Return the SHA-256 of the SubjectPublicKeyInfo (32 bytes), which names a key everywhere."""
    return hashlib.sha256(spki_der(key)).digest()


def subject_alternative_name(identity: Identity) -> x509.SubjectAlternativeName:
    """Return the SANs of an identity: its SPIFFE ID first, then its DNS names in order."""
    return x509.SubjectAlternativeName(
        [
            x509.UniformResourceIdentifier(str(identity.spiffe_id)),
            *(x509.DNSName(name) for name in identity.dns_names),
        ]
    )


def make_csr(key: PrivateKey, identity: Identity) -> bytes:
    """Make a PKCS#10 request (RFC 2986) in DER with an empty subject and the identity's SANs.

    The names are there for authorities that read them from the request; ours reads only the key.
    """
    builder = x509.CertificateSigningRequestBuilder(x509.Name([])).add_extension(
        # RFC 5280, section 4.2.1.6: critical, because the subject is empty.
        subject_alternative_name(identity),
        critical=True,
    )
    return builder.sign(key, signature_hash(key)).public_bytes(Encoding.DER)


def csr_public_key(csr: bytes) -> PublicKey:
    """Return the key of a PKCS#10 request in DER, after its own signature was verified.

    Raises:
        CertificateError: ``csr_invalid``: it cannot be parsed, or its signature is invalid (RFC
            2986, section 3).
        KeyTypeError: its key is of an unknown kind.
    """
    try:
        request = x509.load_der_x509_csr(csr)
        key = request.public_key()
        key_type_of(key)  # before the signature: to verify one by 16,384 bits is costly
        valid = request.is_signature_valid
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise CertificateError(
            f"the CSR cannot be parsed: {error}",
            advice="send one PKCS#10 request in DER",
            reason="csr_invalid",
        ) from error
    if not valid:
        raise CertificateError(
            "the CSR's signature is invalid: its sender does not have the key",
            reason="csr_invalid",
        )
    assert isinstance(key, PublicKey)
    return key


def supported_key(certificate: x509.Certificate) -> PublicKey:
    """Return the key of a certificate, which must be of a supported kind.

    Raises:
        CertificateError: ``certificate_malformed``: the key cannot be parsed;
            ``certificate_constraint``: it is of another kind.
    """
    try:
        key = certificate.public_key()
        key_type_of(key)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise CertificateError(
            f"the certificate's key cannot be parsed: {error}", reason="certificate_malformed"
        ) from error
    except KeyTypeError as error:
        raise CertificateError(
            f"the certificate's key cannot be used: {error.message}",
            advice=error.advice,
            reason="certificate_constraint",
        ) from error
    assert isinstance(key, PublicKey)
    return key


def load_private_key(pem: bytes) -> PrivateKey:
    """Read an unencrypted private key in PEM.

    Raises:
        KeyTypeError: it is not a private key, or of an unknown kind. The message never repeats the
            library's text, which might contain parts of the key.
    """
    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise KeyTypeError(
            "this is not a private key that can be read", advice="give unencrypted PKCS#8 in PEM"
        ) from None
    key_type_of(key)
    assert isinstance(key, PrivateKey)
    return key
