"""Certificates as AMD's tools write them, for simulated machines.

Owns the DER that no library writes: serial number 0, and a leaf without key usage and basic
constraints (AMD 57230, sections 2 and 3). Names, extensions and their order are AMD's to the byte,
so that other verifiers accept them too. Invariant: it writes whatever it is told to write, so that
tests can make certificates that no real machine has; the verifier decides about trust.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cryptography import x509
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
from sds.pki import der

if TYPE_CHECKING:
    from datetime import datetime

    from cryptography.hazmat.primitives.asymmetric import ec, rsa


_STEPPINGS: Final = {Product.MILAN: "-B0", Product.GENOA: "-B1"}
"""The steppings that VCEKs name beside the product. AMD's newer VCEKs for Genoa leave them out;
go-sev-guest needs them for a report of version 2, which does not name the processor."""


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
    """Make a certificate signed as AMD signs (RSASSA-PSS), with any serial and extensions."""
    algorithm = PSS_ALGORITHMS[0]
    content = der.sequence(
        b"\xa0\x03\x02\x01\x02",
        der.from_integer(serial),
        algorithm,
        issuer,
        der.sequence(*map(der.from_moment, validity)),
        subject,
        public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        der.emit(
            0xA3,
            der.sequence(
                *(
                    der.sequence(
                        der.from_object_identifier(oid),
                        b"\x01\x01\xff" if critical else b"",
                        der.from_octets(value),
                    )
                    for oid, critical, value in extensions
                )
            ),
        ),
    )
    signature = signer.sign(content, PSS_PADDING, hashes.SHA384())
    return der.sequence(content, algorithm, der.from_whole_bytes(signature))


def issuer_extensions(*, path_length: int | None) -> tuple[tuple[str, bool, bytes], ...]:
    """Make basic constraints and key usage, as in AMD's ARK (CRL signing too) and ASK."""
    constraints = b"\x01\x01\xff" + (
        der.from_integer(path_length) if path_length is not None else b""
    )
    usage = "03020106" if path_length is None else "03020104"
    return (
        ("2.5.29.15", True, bytes.fromhex(usage)),
        ("2.5.29.19", True, der.sequence(constraints)),
    )


def authority_extensions(
    product: Product,
    kind: SigningKey,
    *,
    key: rsa.RSAPublicKey,
    issuer: rsa.RSAPublicKey | None,
) -> tuple[tuple[str, bool, bytes], ...]:
    """Make every extension of an ARK (``issuer`` None), ASK or ASVK, in AMD's order.

    Args:
        product: names the revocation list.
        kind: the kind of leaf that the certificate's key signs in the end.
        key: the certificate's own key.
        issuer: the ARK's key, for ASK and ASVK.
    """
    usage, constraints = issuer_extensions(path_length=None if issuer is None else 0)
    own = ("2.5.29.14", False, der.from_octets(_key_identifier(key)))
    place = f"https://kdsintf.amd.com/{'vcek' if kind is SigningKey.VCEK else 'vlek'}/v1/"
    uri = der.emit(0x86, f"{place}{product.certificate_name}/crl".encode())
    point = der.sequence(der.sequence(der.emit(0xA0, der.emit(0xA0, uri))))
    lists = ("2.5.29.31", False, point)
    if issuer is None:
        return usage, own, constraints, lists
    identifier = der.sequence(der.emit(0x80, _key_identifier(issuer)))
    return own, ("2.5.29.35", False, identifier), constraints, usage, lists


def _key_identifier(key: rsa.RSAPublicKey) -> bytes:
    return x509.SubjectKeyIdentifier.from_public_key(key).digest


def leaf_extensions(
    product: Product, kind: SigningKey, *, tcb: bytes, identity: bytes | str
) -> tuple[tuple[str, bool, bytes], ...]:
    """Make AMD's extensions of a VCEK or VLEK (57230, section 3).

    Args:
        product: productName.
        kind: VCEK (with hwID) or VLEK (with cspID).
        tcb: eight bytes as in REPORTED_TCB.
        identity: hwID in bytes, or cspID as text.
    """
    named = (
        (HARDWARE_ID, identity)
        if isinstance(identity, bytes)
        else (CSP_ID, der.from_ia5_string(identity))
    )
    if (kind is SigningKey.VCEK) != isinstance(identity, bytes):
        raise TypeError("a VCEK names a chip, a VLEK a provider")
    stepping = _STEPPINGS.get(product, "") if kind is SigningKey.VCEK else ""
    return tuple(
        (oid, False, value)
        for oid, value in (
            (STRUCTURE_VERSION, der.from_integer(STRUCTURE_VERSIONS[product])),
            (PRODUCT_NAME, der.from_ia5_string(product.certificate_name + stepping)),
            *(
                (oid, der.from_integer(tcb[index]))
                for oid, index in TCB_EXTENSIONS[product].items()
            ),
            named,
        )
    )


def name(common_name: str) -> bytes:
    """Make a distinguished name in DER, as AMD writes it."""
    attributes = (
        ("2.5.4.11", "Engineering"),
        ("2.5.4.6", "US"),
        ("2.5.4.7", "Santa Clara"),
        ("2.5.4.8", "CA"),
        ("2.5.4.10", "Advanced Micro Devices"),
        ("2.5.4.3", common_name),
    )
    return der.sequence(
        *(
            der.set_of(
                der.sequence(
                    der.from_object_identifier(oid),
                    # A country is a PrintableString (RFC 5280, appendix A.1).
                    der.emit(der.PRINTABLE_STRING, text.encode())
                    if oid == "2.5.4.6"
                    else der.from_utf8_string(text),
                )
            )
            for oid, text in attributes
        )
    )
