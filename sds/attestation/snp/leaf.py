"""The certificate of the key that signs reports: VCEK or VLEK (AMD 57230, sections 2 and 3).

Owns the meaning of AMD's extensions. Invariant: a :class:`Leaf` has every extension that its
product and kind must have, each once, and no other.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from sds.attestation.snp.certificate import UNREADABLE_DER, Certificate
from sds.attestation.snp.report import TURIN_CHIP_ID_BYTES, Product, SigningKey
from sds.errors import EvidenceError
from sds.pki import der

_ARC: Final = "1.3.6.1.4.1.3704.1"
STRUCTURE_VERSION: Final = f"{_ARC}.1"
PRODUCT_NAME: Final = f"{_ARC}.2"
HARDWARE_ID: Final = f"{_ARC}.4"
CSP_ID: Final = f"{_ARC}.5"
_EARLIER: Final = {
    f"{_ARC}.3.1": 0,
    f"{_ARC}.3.2": 1,
    f"{_ARC}.3.4": 2,
    f"{_ARC}.3.5": 3,
    f"{_ARC}.3.6": 4,
    f"{_ARC}.3.7": 5,
    f"{_ARC}.3.3": 6,
    f"{_ARC}.3.8": 7,
}
TCB_EXTENSIONS: Final[dict[Product, dict[str, int]]] = {
    Product.MILAN: _EARLIER,
    Product.GENOA: _EARLIER,
    Product.TURIN: {
        f"{_ARC}.3.9": 0,
        f"{_ARC}.3.1": 1,
        f"{_ARC}.3.2": 2,
        f"{_ARC}.3.3": 3,
        f"{_ARC}.3.5": 4,
        f"{_ARC}.3.6": 5,
        f"{_ARC}.3.7": 6,
        f"{_ARC}.3.8": 7,
    },
}
"""For each product and extension: the byte of REPORTED_TCB (file order) that it must equal."""
STRUCTURE_VERSIONS: Final = {Product.MILAN: 0, Product.GENOA: 0, Product.TURIN: 1}
CHIP_ID_BYTES: Final = 64
# "Milan-B0", "Genoa", "Turin": the name, and in older certificates the stepping.
_PRODUCT: Final = re.compile(r"(Milan|Genoa|Turin)(?:-[A-Z][0-9])?", re.ASCII)
_KINDS: Final = {"SEV-VCEK": SigningKey.VCEK, "SEV-VLEK": SigningKey.VLEK}


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """The content of a VCEK or VLEK; the chain shows whether it is genuine.

    Attributes:
        certificate: the certificate.
        kind: VCEK (of one chip) or VLEK (of one cloud provider).
        product: the product that it was made for.
        tcb: the TCB that it was made for, as eight bytes in the order of REPORTED_TCB.
        hardware_id: the CHIP_ID that the report must have, padded to 64 bytes; None in a VLEK.
        csp_id: the provider; in a VLEK only.
        public_key: the key, on P-384.
    """

    certificate: Certificate = field(repr=False)
    kind: SigningKey
    product: Product
    tcb: bytes
    hardware_id: bytes | None
    csp_id: str | None
    public_key: ec.EllipticCurvePublicKey = field(repr=False)

    @property
    def issuer_common_name(self) -> str:
        """Return the CN of the ASK or ASVK of this product and kind."""
        name = self.product.certificate_name
        return f"SEV-{name}" if self.kind is SigningKey.VCEK else f"SEV-VLEK-{name}"


def read_leaf(encoded: bytes) -> Leaf:
    """Read a VCEK or VLEK.

    Raises:
        EvidenceError: ``certificate_malformed``: it cannot be parsed, an extension is missing,
            unknown, given twice or of the wrong form, or the key is not P-384.
    """
    try:
        return _read(Certificate.parse(encoded))
    except UNREADABLE_DER as error:
        raise EvidenceError(
            f"an extension cannot be read: {error}", reason="certificate_malformed"
        ) from error


def _read(certificate: Certificate) -> Leaf:
    values = {extension.oid: extension.value for extension in certificate.extensions}
    kind = _KINDS.get(certificate.common_name)
    if kind is None:
        raise EvidenceError(
            f"the common name is {certificate.common_name[:64]!r}, not SEV-VCEK or SEV-VLEK",
            reason="certificate_malformed",
        )
    if PRODUCT_NAME not in values:
        raise EvidenceError("the extension productName is missing", reason="certificate_malformed")
    name = der.ia5_string(values[PRODUCT_NAME])
    matched = _PRODUCT.fullmatch(name)
    if matched is None:
        raise EvidenceError(
            f"productName {name[:64]!r} is not known", reason="certificate_malformed"
        )
    product = Product(matched[1].lower())
    identity = HARDWARE_ID if kind is SigningKey.VCEK else CSP_ID
    expected = {STRUCTURE_VERSION, PRODUCT_NAME, identity, *TCB_EXTENSIONS[product]}
    for what, oids in (
        ("missing", expected - values.keys()),
        ("unknown", values.keys() - expected),
    ):
        if oids:
            raise EvidenceError(
                f"{certificate.common_name} for {product.certificate_name}: extension "
                f"{min(oids)} is {what}",
                reason="certificate_malformed",
            )
    version = _integer(values[STRUCTURE_VERSION])
    if version != STRUCTURE_VERSIONS[product]:
        raise EvidenceError(
            f"structVersion is {version}, {STRUCTURE_VERSIONS[product]} is expected for "
            f"{product.certificate_name}",
            reason="certificate_malformed",
        )
    tcb = bytearray(8)
    for oid, index in TCB_EXTENSIONS[product].items():
        tcb[index] = _integer(values[oid])
    key = certificate.public_key
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise EvidenceError("the key is not on the curve P-384", reason="certificate_malformed")
    return Leaf(
        certificate=certificate,
        kind=kind,
        product=product,
        tcb=bytes(tcb),
        hardware_id=_hardware_id(values[HARDWARE_ID], product) if HARDWARE_ID in expected else None,
        csp_id=_csp_id(values[CSP_ID]) if CSP_ID in expected else None,
        public_key=key,
    )


def _integer(value: bytes) -> int:
    # A value of one byte has one encoding: two header bytes and at most one leading zero.
    native = der.integer(value)
    if not 0 <= native <= 0xFF:  # noqa: PLR2004  a byte
        raise EvidenceError(
            f"a version is not an INTEGER from 0 to 255: {value.hex()[:32]}",
            reason="certificate_malformed",
        )
    return native


def _hardware_id(value: bytes, product: Product) -> bytes:
    # 57230: 64 bytes. Turin's chips have eight, which CHIP_ID has first, with zeros after them.
    # Some of AMD's certificates wrap it in another OCTET STRING.
    length = TURIN_CHIP_ID_BYTES if product is Product.TURIN else CHIP_ID_BYTES
    if len(value) == length + 2 and value.startswith(bytes([4, length])):
        value = value[2:]
    if len(value) != length:
        raise EvidenceError(
            f"hwID has {len(value)} bytes, {length} are expected", reason="certificate_malformed"
        )
    if not any(value):
        raise EvidenceError("hwID is zero", reason="certificate_malformed")
    return value.ljust(CHIP_ID_BYTES, b"\0")


def _csp_id(value: bytes) -> str:
    text = der.ia5_string(value)
    if not text or len(text) > 256 or not text.isprintable():  # noqa: PLR2004  a name, bounded
        raise EvidenceError(
            "cspID is not printable text of 1 to 256 characters", reason="certificate_malformed"
        )
    return text
