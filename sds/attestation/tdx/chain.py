"""Checks Intel's certificate chains: PCK chain and TCB signing chain (PCK profile 1.5).

Owns the pin of the Intel SGX root, and what each certificate may be. Invariant: trust comes only
from the SHA-256 of a root's DER; certificates that travel with quote or collateral, or ship with
this package, add none.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from sds.attestation.pem import UNREADABLE, der_certificates
from sds.errors import EvidenceError, EvidenceMalformedError
from sds.untrusted_input import reading

if TYPE_CHECKING:
    from collections.abc import Iterable

INTEL_ROOT: Final = "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"
"""The SHA-256 of the DER of "Intel SGX Root CA"."""
PCK_NAME: Final = "Intel SGX PCK Certificate"
PCK_ISSUERS: Final = frozenset({"Intel SGX PCK Platform CA", "Intel SGX PCK Processor CA"})
TCB_SIGNER_NAME: Final = "Intel SGX TCB Signing"
ROOT_NAME: Final = "Intel SGX Root CA"
PCK_CHAIN: Final = (frozenset({PCK_NAME}), PCK_ISSUERS, frozenset({ROOT_NAME}))
TCB_SIGNING_CHAIN: Final = (frozenset({TCB_SIGNER_NAME}), frozenset({ROOT_NAME}))
_MOST_BYTES: Final = 16 * 1024
"""The most bytes of a chain: Intel's have about 4 KiB, and strangers' are parsed too."""
PCK_EXTENSION: Final = "1.2.840.113741.1.13.1"
_KNOWN: Final = frozenset(
    {
        x509.BasicConstraints.oid.dotted_string,
        x509.KeyUsage.oid.dotted_string,
        x509.SubjectKeyIdentifier.oid.dotted_string,
        x509.AuthorityKeyIdentifier.oid.dotted_string,
        x509.CRLDistributionPoints.oid.dotted_string,
        PCK_EXTENSION,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class IntelChain:
    """A chain with valid signatures that ends in a pinned root; times are checked elsewhere."""

    certificates: tuple[x509.Certificate, ...]
    simulated: bool

    @property
    def leaf(self) -> x509.Certificate:
        """Return the first certificate."""
        return self.certificates[0]

    @property
    def key(self) -> ec.EllipticCurvePublicKey:
        """Return the first certificate's key."""
        key = self.leaf.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)  # link_chain checked it
        return key

    @property
    def root(self) -> x509.Certificate:
        """Return the last certificate."""
        return self.certificates[-1]


def link_chain(
    pem: bytes, *, names: tuple[frozenset[str], ...], trusted: Iterable[bytes], what: str
) -> IntelChain:
    """Check a chain as Intel sends it: leaf first, root last.

    Args:
        pem: the chain.
        names: the common names that each certificate may have, in order.
        trusted: SHA-256 digests of roots trusted beside Intel's.
        what: names the chain in errors.

    Raises:
        EvidenceError: ``certificate_malformed``: 1. it is too large, or cannot be parsed; 2. it has
            another length or other names; 3. a certificate's constraints, key usage, extensions or
            key are not as specified.
        EvidenceError: ``chain_untrusted``: 4. the root is not pinned; 5. a signature is invalid.
    """
    # 1.
    if len(pem) > _MOST_BYTES:
        raise EvidenceError(
            f"{what} has {len(pem)} bytes, more than {_MOST_BYTES}", reason="certificate_malformed"
        )
    try:
        ders = der_certificates(pem, what=what)
        with reading(what, EvidenceError, reason="certificate_malformed"):
            chain = tuple(map(x509.load_der_x509_certificate, ders[: len(names) + 1]))
            found = tuple(common_name(certificate) for certificate in chain)
    except EvidenceMalformedError as error:
        raise EvidenceError(f"{what}: {error}", reason="certificate_malformed") from error
    # 2.
    if len(chain) != len(names) or any(
        name not in allowed for name, allowed in zip(found, names, strict=True)
    ):
        raise EvidenceError(
            f"{what}: names are {', '.join(found)[:300]}", reason="certificate_malformed"
        )
    # 3.
    for below, certificate in enumerate(chain):
        _require_extensions(certificate, below=below, what=what)
    # 4.
    digest = hashlib.sha256(ders[-1]).digest()
    simulated = digest.hex() != INTEL_ROOT
    if simulated and digest not in set(trusted):
        raise EvidenceError(
            f"{what} ends in {digest.hex()}, which is not the Intel SGX root",
            reason="chain_untrusted",
            advice="configure it as a trusted root only if it is meant to be one",
        )
    # 5. The root too: Intel's is self-signed.
    for certificate, issuer in zip(chain, (*chain[1:], chain[-1]), strict=True):
        try:
            certificate.verify_directly_issued_by(issuer)
        except (*UNREADABLE, InvalidSignature) as error:
            raise EvidenceError(
                f"{what}: {common_name(certificate)} was not signed by {common_name(issuer)}",
                reason="chain_untrusted",
            ) from error
    return IntelChain(certificates=chain, simulated=simulated)


def _require_extensions(certificate: x509.Certificate, *, below: int, what: str) -> None:
    name = common_name(certificate)
    try:
        key = certificate.public_key()
        found = certificate.extensions
        constraints = found.get_extension_for_class(x509.BasicConstraints).value
        usage = found.get_extension_for_class(x509.KeyUsage).value
    except (*UNREADABLE, x509.ExtensionNotFound) as error:
        raise EvidenceError(
            f"{what}: key or extensions of {name}: {error}", reason="certificate_malformed"
        ) from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise EvidenceError(
            f"{what}: the key of {name} is not on P-256", reason="certificate_malformed"
        )
    unknown = {entry.oid.dotted_string for entry in found} - _KNOWN
    if unknown:
        raise EvidenceError(
            f"{what}: {name} has the unknown extension {min(unknown)}",
            reason="certificate_malformed",
        )
    if below == 0:
        holds = not constraints.ca and usage.digital_signature
    else:
        length = constraints.path_length
        holds = constraints.ca and usage.key_cert_sign and (length is None or length >= below - 1)
    if not holds:
        raise EvidenceError(
            f"{what}: constraints or key usage forbid this use of {name}",
            reason="certificate_malformed",
        )


@functools.cache
def intel_certificates() -> tuple[x509.Certificate, ...]:
    """Return Intel's root and PCK authorities, which ship with this package and add no trust."""
    text = resources.files(__package__).joinpath("intel.pem").read_bytes()
    ders = der_certificates(text, what="intel.pem")
    return tuple(map(x509.load_der_x509_certificate, ders))


def root_digest(der: bytes) -> bytes:
    """Return the digest by which a configured root is recognised.

    Raises:
        EvidenceError: ``certificate_malformed``: it is not a certificate.
    """
    with reading("a trusted root cannot be read", EvidenceError, reason="certificate_malformed"):
        certificate = x509.load_der_x509_certificate(der)
        key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise EvidenceError(
            "a trusted root of TDX has no key on an elliptic curve", reason="certificate_malformed"
        )
    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).digest()


def common_name(certificate: x509.Certificate) -> str:
    """Return the CN of the subject; empty if there is not exactly one."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else ""
