"""One CSR that carries its own evidence: PKCS#10 with the attribute id-aa-attestation.

Follows draft-ietf-lamps-csr-attestation-27, section 4: the attribute's one value is an
``AttestationBundle`` with one ``AttestationStatement``, evidence in an OCTET STRING, and the
certificates that help to verify it beside it. Invariants: exactly one attribute, value and
statement are accepted; the CSR's own signature was verified before anything of it is used; the
evidence binds the key and a nonce (``sds.exchange.challenge``), never the CSR that contains it.

No object identifier is registered for SNP reports or TDX quotes as statements, so ours are
UUID-based (ITU-T X.667, arc 2.25) and fixed for good.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from sds.attestation.evidence import Evidence, EvidenceKind
from sds.attestation.registry import KINDS
from sds.errors import CertificateError
from sds.identity import Identity, SpiffeId
from sds.pki import csr_public_key, der, make_csr, signature_hash
from sds.untrusted_input import reading

if TYPE_CHECKING:
    from sds.pki import PrivateKey, PublicKey

ATTESTATION_ATTRIBUTE: Final = "1.2.840.113549.1.9.16.2.59"
"""id-aa-attestation."""
_MAX_CERTIFICATES: Final = 8
_MOST_OTHER_BYTES: Final = 16 * 1024
"""The most bytes of a CSR beside its evidence: each name of three bytes becomes an object."""
_ATTRIBUTES: Final = 0xA0


def statements() -> dict[EvidenceKind, str]:
    """Map each kind that may travel inside a CSR to the object identifier of its statement."""
    return {
        EvidenceKind(name): registered.statement
        for name, registered in KINDS.items()
        if registered.statement is not None
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class AttestedCsr:
    """The content of an attested CSR. Its signature was verified; its evidence was not.

    Attributes:
        public_key: the key to be certified.
        spiffe_id: its only URI SAN.
        dns_names: its DNS SANs, in order.
        evidence: its evidence, unverified.
    """

    public_key: PublicKey = field(repr=False)
    spiffe_id: SpiffeId
    dns_names: tuple[str, ...]
    evidence: Evidence


def make_attested_csr(key: PrivateKey, identity: Identity, evidence: Evidence) -> bytes:
    """Make a PKCS#10 request in DER with ``evidence`` in it.

    Args:
        key: signs the CSR; ``evidence`` must bind its public half.
        identity: the requested SANs.
        evidence: binds the authority's nonce and ``key``.

    Raises:
        CertificateError: ``csr_invalid``: this kind of evidence has no statement type.
    """
    statement_type = statements().get(evidence.kind)
    if statement_type is None:
        raise CertificateError(
            f"evidence of the kind {evidence.kind} cannot travel inside a CSR", reason="csr_invalid"
        )
    statement = der.sequence(
        der.from_object_identifier(statement_type), der.from_octets(evidence.report)
    )
    certificates = [der.sequence(*evidence.certificates)] if evidence.certificates else []
    bundle = der.sequence(der.sequence(statement), *certificates)
    attribute = der.sequence(der.from_object_identifier(ATTESTATION_ATTRIBUTE), der.set_of(bundle))
    info, algorithm, _ = der.elements(make_csr(key, identity))
    *fields, attributes = der.elements(info)
    every = [*der.elements(attributes, _ATTRIBUTES), attribute]
    info = der.sequence(*fields, der.emit(_ATTRIBUTES, b"".join(sorted(every))))
    return der.sequence(info, algorithm, der.from_whole_bytes(_sign(key, info)))


def _sign(key: PrivateKey, data: bytes) -> bytes:
    algorithm = signature_hash(key)
    if algorithm is None:
        return key.sign(data)  # type: ignore[call-arg]  # Ed25519 takes no hash
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.sign(data, ec.ECDSA(algorithm))
    assert isinstance(key, rsa.RSAPrivateKey)
    return key.sign(data, padding.PKCS1v15(), algorithm)


def parse_attested_csr(encoded: bytes) -> AttestedCsr:
    """Parse and check an attested CSR.

    The checks, in order: 1. PKCS#10 with a valid signature, 2. one id-aa-attestation attribute with
    one value, 3. one statement of a type that we know, an OCTET STRING, and at most eight X.509
    certificates, 4. not too much beside them, 5. exactly one URI SAN, a SPIFFE ID, and no SANs but
    DNS names beside it.

    Raises:
        CertificateError: ``csr_invalid``: one of these checks failed.
        IdentityError: a name is not valid.
        KeyTypeError: the key is of an unknown kind.
    """
    public_key = csr_public_key(encoded)  # 1
    try:
        evidence = _evidence(encoded)  # 2, 3
    except ValueError as error:
        raise CertificateError(
            f"the attestation attribute cannot be parsed: {error}", reason="csr_invalid"
        ) from error
    others = len(encoded) - len(evidence.report) - sum(map(len, evidence.certificates))
    if others > _MOST_OTHER_BYTES:  # 4
        raise CertificateError(
            f"the CSR has {others} bytes beside its evidence, more than {_MOST_OTHER_BYTES}",
            advice="ask for fewer names",
            reason="csr_invalid",
        )
    spiffe_id, dns_names = _names(encoded)  # 5
    return AttestedCsr(
        public_key=public_key,
        spiffe_id=SpiffeId.parse(spiffe_id),
        dns_names=dns_names,
        evidence=evidence,
    )


def _names(encoded: bytes) -> tuple[str, tuple[str, ...]]:
    with reading(
        "the CSR's extensions have no SANs that can be parsed",
        CertificateError,
        reason="csr_invalid",
    ):
        names = (
            x509.load_der_x509_csr(encoded)
            .extensions.get_extension_for_class(x509.SubjectAlternativeName)
            .value
        )
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    dns_names = names.get_values_for_type(x509.DNSName)
    if len(uris) != 1 or len(uris) + len(dns_names) != len(list(names)):
        raise CertificateError(
            f"the CSR has {len(uris)} URI SANs and {len(list(names))} SANs in all",
            advice="ask for one SPIFFE ID and DNS names",
            reason="csr_invalid",
        )
    return uris[0], tuple(dns_names)


def _evidence(encoded: bytes) -> Evidence:
    info, _, signature = der.elements(encoded)
    # RFC 5480 and 8017 signatures are whole bytes, and X.690, section 11.2.1 leaves one encoding.
    der.whole_bytes(signature)
    _, _, _, attributes = der.elements(info)
    found = [
        values
        for name, values in map(der.elements, der.elements(attributes, _ATTRIBUTES))
        if der.object_identifier(name) == ATTESTATION_ATTRIBUTE
    ]
    if len(found) != 1:
        raise CertificateError(
            f"the CSR has {len(found)} attestation attributes ({ATTESTATION_ATTRIBUTE}), not one",
            advice="make it with `sds csr new`",
            reason="csr_invalid",
        )
    bundles = der.elements(found[0], der.SET)
    if len(bundles) != 1:
        raise CertificateError(
            f"the attestation attribute has {len(bundles)} values, not one", reason="csr_invalid"
        )
    attested, *optional = der.elements(bundles[0])
    if len(optional) > 1:
        raise ValueError("an AttestationBundle with more than statements and certificates")
    given = der.elements(attested)
    if len(given) != 1:
        raise CertificateError(
            f"the attestation bundle has {len(given)} statements, not one", reason="csr_invalid"
        )
    certificates = der.elements(optional[0]) if optional else []
    if len(certificates) > _MAX_CERTIFICATES:
        raise CertificateError(
            f"the attestation bundle has more than {_MAX_CERTIFICATES} certificates",
            reason="csr_invalid",
        )
    for certificate in certificates:
        # LimitedCertChoices: of its alternatives, we use only the X.509 certificate.
        der.elements(certificate)
    kind, report = _statement(given[0])
    return Evidence(kind=kind, report=report, certificates=tuple(certificates))


def _statement(encoded: bytes) -> tuple[EvidenceKind, bytes]:
    name, statement = der.elements(encoded)
    found = der.object_identifier(name)
    kinds = {oid: kind for kind, oid in statements().items()}
    kind = kinds.get(found)
    if kind is None:
        raise CertificateError(
            f"the statement type {found} is not known",
            advice=f"known are {', '.join(f'{oid} ({kind})' for oid, kind in kinds.items())}",
            reason="csr_invalid",
        )
    return kind, der.content_of(statement, der.OCTET_STRING)
