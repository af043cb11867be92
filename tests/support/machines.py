"""Simulated machines for tests: one hierarchy a product and a run (RSA-4096 takes a second)."""

from __future__ import annotations

import functools
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from sds.attestation.snp.report import Product, SigningKey
from sds.attestation.snp.simulated import SimulatedRoot

NOW = datetime(2025, 6, 1, tzinfo=UTC)
"""A moment at which every certificate of these roots is valid."""


@functools.cache
def simulated(
    product: Product = Product.GENOA, kind: SigningKey = SigningKey.VCEK
) -> SimulatedRoot:
    """The root of this product and kind of key."""
    return SimulatedRoot.create(product, kind=kind, now=NOW)


def crl(
    root: SimulatedRoot,
    *serials: int,
    key: rsa.RSAPrivateKey | None = None,
    age: timedelta = timedelta(hours=1),
    critical: bool = False,
    salt: int = 48,
    number: int = 1,
    now: datetime | None = None,
) -> bytes:
    """A revocation list of the root, DER, that was made ``age`` before ``now``."""
    made = (now or NOW) - age
    ark = x509.load_der_x509_certificate(root.ark_der)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(ark.subject)
        .last_update(made)
        .next_update(made + timedelta(days=1))
    )
    builder = builder.add_extension(x509.CRLNumber(number), critical=False)
    if critical:
        builder = builder.add_extension(
            x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"\5\0"), critical=True
        )
    for serial in serials:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(made)
        builder = builder.add_revoked_certificate(entry.build())
    signed = builder.sign(
        key or root.ark_key,
        hashes.SHA384(),
        rsa_padding=padding.PSS(mgf=padding.MGF1(hashes.SHA384()), salt_length=salt),
    )
    return signed.public_bytes(Encoding.DER)
