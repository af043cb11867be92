"""Intel's certificates: PCK chain, TCB signing chain, revocation lists (Intel SGX PCK profile 1.5).

Owns the pin of the Intel SGX root and the meaning of the PCK's extension. Invariant: trust comes
only from the SHA-256 of a root's DER; what travels with quote or collateral adds none.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from asn1crypto import core
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from sds.attestation.pem import UNREADABLE, der_certificates
from sds.attestation.snp.certificate import UNREADABLE_DER
from sds.errors import EvidenceError, EvidenceMalformedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

INTEL_ROOT: Final = "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"
"""SHA-256 of the DER of "Intel SGX Root CA"."""
PCK_NAME: Final = "Intel SGX PCK Certificate"
PCK_ISSUERS: Final = frozenset({"Intel SGX PCK Platform CA", "Intel SGX PCK Processor CA"})
TCB_SIGNER_NAME: Final = "Intel SGX TCB Signing"
ROOT_NAME: Final = "Intel SGX Root CA"
_EXTENSION: Final = "1.2.840.113741.1.13.1"
_COMPONENTS: Final = 16
_FMSPC_BYTES: Final = 6
_PCE_ID_BYTES: Final = 2
_KNOWN: Final = frozenset(
    {
        x509.BasicConstraints.oid.dotted_string,
        x509.KeyUsage.oid.dotted_string,
        x509.SubjectKeyIdentifier.oid.dotted_string,
        x509.AuthorityKeyIdentifier.oid.dotted_string,
        x509.CRLDistributionPoints.oid.dotted_string,
        _EXTENSION,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pck:
    """What the PCK certificate says of the platform.

    Attributes:
        fmspc: family, model, stepping, platform type: names the platform's TCB info.
        pce_id: of the provisioning certification enclave.
        components: the 16 security versions of the SGX TCB.
        pce_svn: security version of that enclave.
        public_key: P-256.
    """

    fmspc: bytes
    pce_id: bytes
    components: tuple[int, ...]
    pce_svn: int
    public_key: ec.EllipticCurvePublicKey = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class IntelChain:
    """A chain whose signatures hold and which ends in a pinned root; times are checked apart."""

    certificates: tuple[x509.Certificate, ...]
    simulated: bool

    @property
    def leaf(self) -> x509.Certificate:
        """The first one."""
        return self.certificates[0]

    @property
    def root(self) -> x509.Certificate:
        """The last one."""
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
        EvidenceError: ``certificate_malformed``: 1. it cannot be parsed; 2. it is not of the
            expected length and names; 3. a certificate's constraints, key usage, extensions or key
            are not as specified.
        EvidenceError: ``chain_untrusted``: 4. the root is not pinned; 5. a signature does not hold.
    """
    # 1.
    try:
        ders = der_certificates(pem, what=what)
        chain = tuple(map(x509.load_der_x509_certificate, ders))
        found = tuple(common_name(certificate) for certificate in chain)
    except (EvidenceMalformedError, *UNREADABLE) as error:
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
            advice="configure it as a trusted root only if it is meant to be one",
            reason="chain_untrusted",
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


def read_pck(certificate: x509.Certificate) -> Pck:
    """Read Intel's extension of a PCK certificate (PCK profile, section 1.3.5).

    Raises:
        EvidenceError: ``certificate_malformed``: it is missing, or not of its form.
    """
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise EvidenceError(
            "the PCK's key is not on an elliptic curve", reason="certificate_malformed"
        )
    try:
        raw = certificate.extensions.get_extension_for_oid(x509.ObjectIdentifier(_EXTENSION)).value
        if not isinstance(raw, x509.UnrecognizedExtension):
            raise TypeError("a known extension")
        top = _pairs(raw.value)
        tcb = _pairs(top[f"{_EXTENSION}.2"].dump())
        components = tuple(
            _byte(tcb[f"{_EXTENSION}.2.{index}"]) for index in range(1, _COMPONENTS + 1)
        )
        pck = Pck(
            fmspc=_octets(top[f"{_EXTENSION}.4"], _FMSPC_BYTES),
            pce_id=_octets(top[f"{_EXTENSION}.3"], _PCE_ID_BYTES),
            components=components,
            pce_svn=_number(tcb[f"{_EXTENSION}.2.{_COMPONENTS + 1}"]),
            public_key=key,
        )
    except (*UNREADABLE, *UNREADABLE_DER, x509.ExtensionNotFound) as error:
        raise EvidenceError(
            f"the PCK's extension cannot be read: {error}", reason="certificate_malformed"
        ) from error
    return pck


def check_revocation(chain: IntelChain, lists: tuple[bytes, ...], now: datetime) -> None:
    """Hold that no certificate of the chain is revoked by a list of its issuer.

    Raises:
        EvidenceError: ``revocation_list``: a list cannot be read, or is not signed by the issuer it
            names.
        EvidenceError: ``revocation_list_stale``: a list is not current.
        EvidenceError: ``certificate_revoked``: a certificate is revoked.
    """
    for der in lists:
        try:
            crl = x509.load_der_x509_crl(der)
            critical = any(entry.critical for entry in crl.extensions)
            serials = {entry.serial_number for entry in crl}
            this_update, next_update = crl.last_update_utc, crl.next_update_utc
        except UNREADABLE as error:
            raise EvidenceError(
                f"a revocation list cannot be read: {error}", reason="revocation_list"
            ) from error
        issuer = next(
            (other for other in chain.certificates[1:] if other.subject == crl.issuer), None
        )
        if issuer is None:
            continue
        key = issuer.public_key()
        if (
            critical
            or next_update is None
            or not isinstance(key, ec.EllipticCurvePublicKey)
            or not crl.is_signature_valid(key)
        ):
            raise EvidenceError(
                f"the list of {common_name(issuer)} does not hold", reason="revocation_list"
            )
        if not this_update <= now <= next_update:
            raise EvidenceError(
                f"the list of {common_name(issuer)} counts from {this_update:%FT%TZ} to "
                f"{next_update:%FT%TZ}, the time is {now:%FT%TZ}",
                reason="revocation_list_stale",
            )
        for certificate in chain.certificates:
            if certificate.issuer == crl.issuer and certificate.serial_number in serials:
                raise EvidenceError(
                    f"{common_name(certificate)} is revoked", reason="certificate_revoked"
                )


def root_digest(der: bytes) -> bytes:
    """How a configured root is recognised.

    Raises:
        EvidenceError: ``certificate_malformed``: it is no certificate.
    """
    try:
        certificate = x509.load_der_x509_certificate(der)
    except UNREADABLE as error:
        raise EvidenceError(
            f"a trusted root cannot be read: {error}", reason="certificate_malformed"
        ) from error
    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).digest()


def common_name(certificate: x509.Certificate) -> str:
    """CN of the subject; empty where there is not exactly one."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else ""


def _pairs(der: bytes) -> Mapping[str, Any]:
    pairs: dict[str, Any] = {}
    for entry in core.SequenceOf.load(der, strict=True, spec=core.Sequence):
        oid = entry[0].dotted
        if oid in pairs:
            raise ValueError(f"{oid} stands there twice")
        pairs[oid] = entry[1]
    return pairs


def _number(value: Any) -> int:
    number = value.native
    if not isinstance(number, int) or not 0 <= number <= 0xFFFF:  # noqa: PLR2004  two bytes
        raise ValueError("a security version that is none")
    return number


def _byte(value: Any) -> int:
    number = _number(value)
    if number > 0xFF:  # noqa: PLR2004  one byte
        raise ValueError("a component above 255")
    return number


def _octets(value: Any, length: int) -> bytes:
    octets = value.native
    if not isinstance(octets, bytes) or len(octets) != length:
        raise ValueError(f"not {length} bytes")
    return octets
