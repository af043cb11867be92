"""Certificates as AMD's tools write them, for simulated machines.

Owns the DER that no library writes: serial number 0, and a leaf without key usage and basic
constraints (AMD 57230, sections 2 and 3). Invariant: whatever it is told to write it writes, so
that tests make certificates that no real machine shows; trust is the verifier's business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from asn1crypto import core
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sds.attestation.snp.certificate import PSS_ALGORITHMS, PSS_PADDING
from sds.attestation.snp.leaf import (
    CSP_ID,
    HARDWARE_ID,
    PRODUCT_NAME,
    STRUCTURE_VERSION,
    STRUCTURE_VERSIONS,
    TCB_EXTENSIONS,
)
from sds.attestation.snp.report import Product, SigningKey

if TYPE_CHECKING:
    from datetime import datetime

    from cryptography.hazmat.primitives.asymmetric import ec, rsa

_ORGANIZATION: Final = "attested-sds simulated machine"


def certificate(
    *,
    issuer: bytes,
    subject: bytes,
    public_key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey,
    extensions: tuple[tuple[str, bool, bytes], ...],
    signer: rsa.RSAPrivateKey,
    serial: int,
    validity: tuple[datetime, datetime],
) -> bytes:
    """A certificate signed with RSASSA-PSS as AMD signs; any serial number, any extensions."""
    algorithm = PSS_ALGORITHMS[0]
    content = _sequence(
        b"\xa0\x03\x02\x01\x02",
        core.Integer(serial).dump(),
        algorithm,
        issuer,
        _sequence(*map(_time, validity)),
        subject,
        public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        _tagged(
            0xA3,
            _sequence(
                *(
                    _sequence(
                        core.ObjectIdentifier(oid).dump(),
                        b"\x01\x01\xff" if critical else b"",
                        core.OctetString(value).dump(),
                    )
                    for oid, critical, value in extensions
                )
            ),
        ),
    )
    signature = signer.sign(content, PSS_PADDING, hashes.SHA384())
    return _sequence(content, algorithm, _tagged(0x03, b"\0" + signature))


def issuer_extensions(*, path_length: int | None) -> tuple[tuple[str, bool, bytes], ...]:
    """Basic constraints and key usage (certificate and CRL signing) as in AMD's ARK and ASK."""
    constraints = b"\x01\x01\xff" + (
        core.Integer(path_length).dump() if path_length is not None else b""
    )
    return (
        ("2.5.29.15", True, bytes.fromhex("03020106")),
        ("2.5.29.19", True, _sequence(constraints)),
    )


def leaf_extensions(
    product: Product, kind: SigningKey, *, tcb: bytes, identity: bytes | str
) -> tuple[tuple[str, bool, bytes], ...]:
    """AMD's extensions of a VCEK or VLEK (57230, section 3).

    Args:
        product: productName.
        kind: VCEK (with hwID) or VLEK (with cspID).
        tcb: eight bytes as in REPORTED_TCB.
        identity: hwID in bytes, or cspID as text.
    """
    named = (
        (HARDWARE_ID, identity)
        if isinstance(identity, bytes)
        else (CSP_ID, core.IA5String(identity).dump())
    )
    if (kind is SigningKey.VCEK) != isinstance(identity, bytes):
        raise TypeError("a VCEK names a chip, a VLEK a provider")
    return tuple(
        (oid, False, value)
        for oid, value in (
            (STRUCTURE_VERSION, core.Integer(STRUCTURE_VERSIONS[product]).dump()),
            (PRODUCT_NAME, core.IA5String(product.certificate_name).dump()),
            *(
                (oid, core.Integer(tcb[index]).dump())
                for oid, index in TCB_EXTENSIONS[product].items()
            ),
            named,
        )
    )


def name(common_name: str) -> bytes:
    """A distinguished name in DER, that of a simulation."""
    attributes = (("2.5.4.11", "Simulation"), ("2.5.4.10", _ORGANIZATION), ("2.5.4.3", common_name))
    return _sequence(
        *(
            _tagged(
                0x31,
                _sequence(core.ObjectIdentifier(oid).dump(), core.UTF8String(text).dump()),
            )
            for oid, text in attributes
        )
    )


def _time(moment: datetime) -> bytes:
    # RFC 5280, section 4.1.2.5: UTCTime through 2049, GeneralizedTime from 2050.
    kind = core.UTCTime if moment.year < 2050 else core.GeneralizedTime  # noqa: PLR2004
    der: bytes = kind(moment.replace(microsecond=0)).dump()
    return der


def _sequence(*parts: bytes) -> bytes:
    return _tagged(0x30, b"".join(parts))


def _tagged(tag: int, content: bytes) -> bytes:
    if len(content) < 0x80:  # noqa: PLR2004  X.690, section 8.1.3: the short form
        return bytes([tag, len(content)]) + content
    length = len(content).to_bytes((len(content).bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content
