"""The chain that endorses a report: VCEK or VLEK, ASK or ASVK, ARK (AMD 57230).

Owns the certificates of AMD's key hierarchy. Invariants: trust comes only from the pinned
SHA-256 of an ARK or from a root that the configuration names; certificates that travel with the
evidence add none. A VCEK has serial number 0, no key usage and no basic constraints, which
general X.509 path validation refuses: so the rules of AMD's documents are checked here one by one.
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from asn1crypto import core
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import NameOID, SignatureAlgorithmOID

from sds.attestation.snp_report import Product, Tcb
from sds.errors import (
    EndorsementMalformedError,
    EndorsementMissingError,
    EndorsementRevokedError,
    EndorsementUntrustedError,
    EndorsementValidityError,
    RevocationListError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

# SHA-256 of the DER of AMD's root keys' certificates, published at the KDS per product.
ARK_PINS: Final[Mapping[str, Product]] = {
    "69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd": Product.MILAN,
    "4c6598d19c18719c5dfd4a7d335f674e5bfe1d8f800cea2cf270c10d103db2f1": Product.GENOA,
    "1f084161a44bb6d93778a904877d4819cafa5d05ef4193b2ded9dd9c73dd3f6a": Product.TURIN,
}

# AMD 57230, table "VCEK Certificate Extensions" (1.3.6.1.4.1.3704.1).
_ARC = "1.3.6.1.4.1.3704.1"
STRUCT_VERSION: Final = x509.ObjectIdentifier(f"{_ARC}.1")
PRODUCT_NAME: Final = x509.ObjectIdentifier(f"{_ARC}.2")
SPL: Final = {
    name: x509.ObjectIdentifier(f"{_ARC}.3.{last}")
    for name, last in {
        "bootloader": 1,
        "tee": 2,
        "snp": 3,
        "spl4": 4,
        "spl5": 5,
        "spl6": 6,
        "spl7": 7,
        "microcode": 8,
        "fmc": 9,
    }.items()
}
HARDWARE_ID: Final = x509.ObjectIdentifier(f"{_ARC}.4")
CSP_ID: Final = x509.ObjectIdentifier(f"{_ARC}.5")

_PRODUCT_NAMES: Final = {
    "milan": Product.MILAN,
    "genoa": Product.GENOA,
    "siena": Product.GENOA,
    "bergamo": Product.GENOA,
    "turin": Product.TURIN,
}
SALT_BYTES: Final = 48
HARDWARE_ID_BYTES: Final = {Product.MILAN: 64, Product.GENOA: 64, Product.TURIN: 8}
_MAX_CERTIFICATES: Final = 8
_MAX_CERTIFICATE_BYTES: Final = 16_384


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """What a VCEK or VLEK certificate says.

    Attributes:
        kind: ``VCEK`` or ``VLEK``, by the subject's common name.
        product: by the productName extension.
        tcb: the TCB that the key was derived for.
        hardware_id: of a VCEK; empty for a VLEK.
        csp_id: the cloud provider of a VLEK; empty for a VCEK.
        public_key: ECDSA P-384.
    """

    kind: str
    product: Product
    tcb: Tcb
    hardware_id: bytes
    csp_id: str
    public_key: ec.EllipticCurvePublicKey = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endorsement:
    """A chain that holds up to a trusted root (validity at a time is checked apart).

    Attributes:
        leaf: the signing key's certificate, read.
        product: by the pinned root; by the leaf where the root is a configured one.
        simulated: the root is a configured one, not AMD's.
        certificates: leaf, ASK or ASVK, ARK.
    """

    leaf: Leaf
    product: Product
    simulated: bool
    certificates: tuple[x509.Certificate, ...] = field(repr=False)


def load(der: bytes) -> x509.Certificate:
    """Parse one certificate in DER.

    Raises:
        EndorsementMalformedError: it is not one, is too large or repeats an extension.
    """
    if len(der) > _MAX_CERTIFICATE_BYTES:
        raise EndorsementMalformedError(f"a certificate of {len(der)} bytes is too large")
    try:
        with warnings.catch_warnings():
            # AMD 57230: a VCEK's serial number is 0, which cryptography warns about.
            warnings.simplefilter("ignore", CryptographyDeprecationWarning)
            certificate = x509.load_der_x509_certificate(der)
        _ = certificate.extensions
        _ = certificate.subject, certificate.issuer
    except (ValueError, x509.DuplicateExtension, UnsupportedAlgorithm, TypeError) as error:
        raise EndorsementMalformedError(f"a certificate cannot be parsed: {error}") from error
    return certificate


def read_leaf(certificate: x509.Certificate) -> Leaf:
    """Read AMD's extensions of a VCEK or VLEK.

    Raises:
        EndorsementMalformedError: an extension is missing, unknown or not of its type, or the
            key is not on P-384.
    """
    kind = _common_name(certificate.subject).removeprefix("SEV-")
    if kind not in {"VCEK", "VLEK"}:
        raise EndorsementMalformedError(
            f"the leaf's common name is {_common_name(certificate.subject)!r}, "
            "neither SEV-VCEK nor SEV-VLEK"
        )
    values = _extension_values(certificate)
    product = _product(_string(values, PRODUCT_NAME))
    expected = _expected_extensions(kind, product)
    if set(values) != expected:
        odd = sorted(oid.dotted_string for oid in set(values) ^ expected)
        raise EndorsementMalformedError(f"the {kind} has unknown or missing extensions: {odd}")
    _integer(values, STRUCT_VERSION)
    hardware_id = _unwrapped(values.get(HARDWARE_ID, b""), HARDWARE_ID_BYTES[product])
    if kind == "VCEK" and len(hardware_id) != HARDWARE_ID_BYTES[product]:
        raise EndorsementMalformedError(
            f"the VCEK's hardware ID has {len(hardware_id)} bytes, and a {product} has "
            f"{HARDWARE_ID_BYTES[product]}"
        )
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise EndorsementMalformedError(f"the {kind}'s key cannot be parsed: {error}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise EndorsementMalformedError(f"the {kind}'s key is not on the curve P-384")
    return Leaf(
        kind=kind,
        product=product,
        tcb=_tcb(values, product),
        hardware_id=hardware_id,
        csp_id=_string(values, CSP_ID) if kind == "VLEK" else "",
        public_key=key,
    )


def endorse(certificates: Iterable[bytes], *, trusted_roots: Iterable[bytes] = ()) -> Endorsement:
    """Build and verify the chain from what was given, in any order.

    Args:
        certificates: DER: the leaf first; ASK or ASVK and ARK among the others.
        trusted_roots: DER of roots that the configuration trusts beside AMD's pinned ones.

    Raises:
        EndorsementMissingError: leaf, ASK/ASVK or ARK is missing.
        EndorsementMalformedError: a certificate cannot be read.
        EndorsementUntrustedError: a signature does not hold or the root is not trusted.
    """
    given = list(certificates)
    if not given:
        raise EndorsementMissingError(
            "the certificate of the signing key (VCEK or VLEK) is missing",
            advice="give it with the evidence, in a directory or by a cache server",
        )
    if len(given) > _MAX_CERTIFICATES:
        raise EndorsementMalformedError(f"{len(given)} certificates are too many")
    roots = list(trusted_roots)
    configured = {hashlib.sha256(der).hexdigest() for der in roots}
    leaf_certificate = load(given[0])
    leaf = read_leaf(leaf_certificate)
    others = [(der, load(der)) for der in (*given[1:], *roots)]
    intermediate = _issuer(leaf_certificate, [certificate for _, certificate in others], leaf.kind)
    _check_authority(intermediate)
    ark = _issuer(intermediate, [certificate for _, certificate in others], "ASK")
    _check_authority(ark)
    fingerprint = next(
        hashlib.sha256(der).hexdigest() for der, certificate in others if certificate is ark
    )
    product = ARK_PINS.get(fingerprint)
    if product is None and fingerprint not in configured:
        raise EndorsementUntrustedError(
            f"the root with SHA-256 {fingerprint} is neither AMD's nor configured",
            advice="a simulated machine's root must be named in the configuration",
        )
    _check_names(leaf, intermediate, product)
    return Endorsement(
        leaf=leaf,
        product=product or leaf.product,
        simulated=product is None,
        certificates=(leaf_certificate, intermediate, ark),
    )


def check_validity(endorsement: Endorsement, now: datetime) -> None:
    """Every certificate of the chain is valid at ``now``.

    Raises:
        EndorsementValidityError: one is not.
    """
    for certificate in endorsement.certificates:
        start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if not start <= now <= end:
            raise EndorsementValidityError(
                f"{_common_name(certificate.subject)} is valid from {start.isoformat()} to "
                f"{end.isoformat()}, and it is {now.isoformat()}"
            )


def check_revocation(endorsement: Endorsement, lists: Sequence[bytes], now: datetime) -> None:
    """No certificate of the chain is on a revocation list of its root (AMD 57230, CRL).

    Raises:
        RevocationListError: a list is not signed by the chain's root, or not fresh.
        EndorsementRevokedError: a certificate was revoked.
    """
    root = endorsement.certificates[-1]
    for der in lists:
        try:
            revocations = x509.load_der_x509_crl(der)
            _ = revocations.extensions
            key = root.public_key()
        except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension) as error:
            raise RevocationListError(f"the list cannot be parsed: {error}") from error
        if not isinstance(key, rsa.RSAPublicKey) or revocations.issuer != root.subject:
            raise RevocationListError(
                f"the list is {revocations.issuer.rfc4514_string()!r}'s, not the root's"
            )
        try:
            signed = revocations.is_signature_valid(key)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise RevocationListError(f"the list's signature is of no use: {error}") from error
        if not signed:
            raise RevocationListError("the list is not signed by the root of the chain")
        until = revocations.next_update_utc
        if now < revocations.last_update_utc or until is None or now > until:
            raise RevocationListError(
                f"the list is of {revocations.last_update_utc.isoformat()} until "
                f"{until.isoformat() if until else 'no date'}, and it is {now.isoformat()}",
                advice="fetch a fresh one",
            )
        for certificate in endorsement.certificates[:-1]:
            if revocations.get_revoked_certificate_by_serial_number(certificate.serial_number):
                raise EndorsementRevokedError(
                    f"{_common_name(certificate.subject)} (serial number "
                    f"{certificate.serial_number}) was revoked"
                )


def _issuer(
    certificate: x509.Certificate, candidates: Sequence[x509.Certificate], what: str
) -> x509.Certificate:
    """The candidate that issued ``certificate``: name, algorithm and signature."""
    named = [found for found in candidates if found.subject == certificate.issuer]
    if not named:
        raise EndorsementMissingError(
            f"the certificate of {_common_name(certificate.issuer)}, which issued the {what}, "
            "was not given"
        )
    for found in named:
        if _signed_by(certificate, found):
            return found
    raise EndorsementUntrustedError(
        f"the {what} is not signed by {_common_name(certificate.issuer)}: wrong chain, or altered"
    )


def _signed_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """AMD 57230: RSASSA-PSS with SHA-384, MGF1 with SHA-384, salt of 48 bytes, and no other."""
    try:
        parameters = certificate.signature_algorithm_parameters
        if (
            certificate.signature_algorithm_oid != SignatureAlgorithmOID.RSASSA_PSS
            or not isinstance(certificate.signature_hash_algorithm, hashes.SHA384)
            or not isinstance(parameters, padding.PSS)
            or parameters._salt_length != SALT_BYTES  # noqa: SLF001  no public accessor
            or not isinstance(parameters.mgf._algorithm, hashes.SHA384)  # noqa: SLF001
            or not isinstance(issuer.public_key(), rsa.RSAPublicKey)
        ):
            return False
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _check_authority(certificate: x509.Certificate) -> None:
    """ASK, ASVK and ARK are CAs with RSA keys of 4096 bits (AMD 57230)."""
    name = _common_name(certificate.subject)
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
        key = certificate.public_key()
    except (x509.ExtensionNotFound, ValueError, UnsupportedAlgorithm) as error:
        raise EndorsementMalformedError(f"{name} is no CA: {error}") from error
    if not constraints.ca or not usage.key_cert_sign:
        raise EndorsementMalformedError(f"{name} may not sign certificates")
    minimum = 4096
    if not isinstance(key, rsa.RSAPublicKey) or key.key_size < minimum:
        raise EndorsementMalformedError(f"{name} has no RSA key of {minimum} bits")


def _check_names(leaf: Leaf, intermediate: x509.Certificate, product: Product | None) -> None:
    """The leaf is of the root's product, and under the key that signs its kind."""
    if product is not None and leaf.product is not product:
        raise EndorsementUntrustedError(
            f"the leaf is for {leaf.product}, under the root of {product}"
        )
    name = _common_name(intermediate.subject)
    is_vlek_authority = name.startswith("SEV-VLEK-")
    if (leaf.kind == "VLEK") != is_vlek_authority:
        raise EndorsementUntrustedError(f"a {leaf.kind} cannot be issued by {name}")


def _expected_extensions(kind: str, product: Product) -> set[x509.ObjectIdentifier]:
    spl = set(SPL) - ({"spl4"} if product is Product.TURIN else {"fmc"})
    names = {STRUCT_VERSION, PRODUCT_NAME, *(SPL[name] for name in spl)}
    return names | {HARDWARE_ID if kind == "VCEK" else CSP_ID}


def _extension_values(certificate: x509.Certificate) -> dict[x509.ObjectIdentifier, bytes]:
    values = {}
    for extension in certificate.extensions:
        if not isinstance(extension.value, x509.UnrecognizedExtension):
            raise EndorsementMalformedError(
                f"the leaf has the extension {extension.oid.dotted_string}, which is not AMD's"
            )
        values[extension.oid] = extension.value.value
    return values


def _unwrapped(value: bytes, size: int) -> bytes:
    """The hardware ID: bare in most VCEKs, inside one more OCTET STRING in some."""
    prefix = bytes((0x04, size))
    return value[2:] if len(value) == size + 2 and value.startswith(prefix) else value


def _tcb(values: Mapping[x509.ObjectIdentifier, bytes], product: Product) -> Tcb:
    spl = {name: _integer(values, oid, maximum=255) for name, oid in SPL.items() if oid in values}
    order = (
        ("spl5", "spl6", "spl7") if product is Product.TURIN else ("spl4", "spl5", "spl6", "spl7")
    )
    return Tcb(
        fmc=spl.get("fmc"),
        bootloader=spl["bootloader"],
        tee=spl["tee"],
        snp=spl["snp"],
        microcode=spl["microcode"],
        reserved=bytes(spl[name] for name in order),
    )


def _integer(
    values: Mapping[x509.ObjectIdentifier, bytes], oid: x509.ObjectIdentifier, maximum: int = 65535
) -> int:
    try:
        parsed = core.Integer.load(values[oid], strict=True)
        value = int(parsed.native)
    except (KeyError, ValueError, TypeError) as error:
        raise EndorsementMalformedError(
            f"extension {oid.dotted_string} is missing or no integer"
        ) from error
    if not 0 <= value <= maximum or parsed.dump(force=True) != values[oid]:
        raise EndorsementMalformedError(f"extension {oid.dotted_string} is out of range")
    return value


def _string(values: Mapping[x509.ObjectIdentifier, bytes], oid: x509.ObjectIdentifier) -> str:
    try:
        return str(core.IA5String.load(values[oid], strict=True).native)
    except (KeyError, ValueError, TypeError) as error:
        raise EndorsementMalformedError(
            f"extension {oid.dotted_string} is missing or no IA5String"
        ) from error


def _product(name: str) -> Product:
    product = _PRODUCT_NAMES.get(name.partition("-")[0].lower())
    if product is None:
        raise EndorsementMalformedError(f"the product {name!r} is unknown")
    return product


def _common_name(name: x509.Name) -> str:
    found = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if found else name.rfc4514_string()
