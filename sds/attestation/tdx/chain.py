"""Checks Intel's certificate chains: PCK chain and TCB signing chain (PCK profile 1.5).

Owns the pin of the Intel SGX root, what each certificate may be, and whose revocation lists count.
Invariant: trust comes only from the SHA-256 of a root's DER; certificates that travel with quote or
collateral, or ship with this package, add none.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from sds.attestation.pem import UNREADABLE, der_certificates
from sds.attestation.revocation import (
    Issued,
    Issuer,
    RevocationList,
    read_revocation_list,
    require_not_revoked,
)
from sds.errors import EvidenceError, EvidenceMalformedError
from sds.outside import reading
from sds.pki.der import elements

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

INTEL_ROOT: Final = "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"
"""The SHA-256 of the DER of "Intel SGX Root CA"."""
PCK_NAME: Final = "Intel SGX PCK Certificate"
PCK_ISSUERS: Final = frozenset({"Intel SGX PCK Platform CA", "Intel SGX PCK Processor CA"})
TCB_SIGNER_NAME: Final = "Intel SGX TCB Signing"
ROOT_NAME: Final = "Intel SGX Root CA"
PCK_CHAIN: Final = (frozenset({PCK_NAME}), PCK_ISSUERS, frozenset({ROOT_NAME}))
TCB_SIGNING_CHAIN: Final = (frozenset({TCB_SIGNER_NAME}), frozenset({ROOT_NAME}))
PCK_EXTENSION: Final = "1.2.840.113741.1.13.1"
_ECDSA_SHA256: Final = bytes.fromhex("300a06082a8648ce3d040302")
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
_SUBJECT: Final = 5  # in TBSCertificate (RFC 5280, section 4.1), after the version


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
        EvidenceError: ``certificate_malformed``: 1. it cannot be parsed; 2. it has another length
            or other names; 3. a certificate's constraints, key usage, extensions or key are not as
            specified.
        EvidenceError: ``chain_untrusted``: 4. the root is not pinned; 5. a signature is invalid.
    """
    # 1.
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


def check_revocation(chain: IntelChain, lists: Iterable[RevocationList], now: datetime) -> None:
    """Check that no certificate of the chain is revoked (Intel's QVL, step 4.1.2.5.7).

    Every issuer in the chain must have a list of its own: the root for the authority below it and
    for the TCB signing certificate, the Platform or Processor CA for the PCK.

    Raises:
        EvidenceError: ``revocation_list``: 1. an issuer has no list that it signed.
        EvidenceError: ``revocation_list_stale``: 2. none of an issuer's lists is current.
        EvidenceError: ``certificate_revoked``: 3. a certificate is revoked.
    """
    lists = tuple(lists)
    for index, certificate in enumerate(chain.certificates[1:], start=1):
        issued = [chain.certificates[index - 1]]
        if certificate is chain.root:
            issued.append(certificate)
        require_not_revoked(
            lists,
            issuer_of_lists(certificate),
            [Issued(name=common_name(one), serial=one.serial_number) for one in issued],
            now,
        )


def issuer_of_lists(certificate: x509.Certificate) -> Issuer:
    """Return this certificate's subject as the issuer of revocation lists."""
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)

    def signed(one: RevocationList) -> bool:
        if one.signed.algorithm != _ECDSA_SHA256:
            return False
        try:
            key.verify(one.signed.signature, one.signed.content, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            return False
        return True

    subject = elements(certificate.tbs_certificate_bytes)[_SUBJECT]
    return Issuer(name=common_name(certificate), subject=subject, signed=signed)


def of_intels_kind(one: RevocationList) -> bool:
    """Say whether a list is signed with Intel's algorithm, ECDSA with SHA-256."""
    return one.signed.algorithm == _ECDSA_SHA256


def read_intel_list(
    der: bytes, *, roots: Iterable[bytes] = (), origin: str = "the list"
) -> RevocationList:
    """Read a list, and check that one of our issuers signed it.

    Args:
        der: the list.
        roots: configured roots in DER. The authorities below them come only with evidence, so a
            list that names one of them is checked when the evidence is verified.
        origin: where the list came from, for messages.

    Raises:
        EvidenceError: ``revocation_list``: it cannot be read, is signed with another algorithm, is
            by an unknown issuer, or its signature is invalid.
    """
    one = read_revocation_list(der, origin=origin)
    if not of_intels_kind(one):
        raise EvidenceError(f"{origin} is not signed as Intel signs", reason="revocation_list")
    configured = [x509.load_der_x509_certificate(root) for root in roots]
    issuers = [issuer_of_lists(known) for known in (*intel_certificates(), *configured)]
    if any(issuer.subject == one.issuer and issuer.signed(one) for issuer in issuers):
        return one
    name = x509.load_der_x509_crl(der).issuer.get_attributes_for_oid(NameOID.COMMON_NAME)
    if configured and len(name) == 1 and name[0].value in PCK_ISSUERS:
        return one
    if any(issuer.subject == one.issuer for issuer in issuers):
        raise EvidenceError(
            f"{origin} is damaged or forged: {one.issuer_name} did not sign it",
            reason="revocation_list",
            advice="fetch it again",
        )
    raise EvidenceError(
        f"{origin} is by {one.issuer_name}, which issues nothing that is trusted here",
        reason="revocation_list",
        advice="remove it, or configure the root that it belongs to",
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
