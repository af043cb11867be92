"""Signing keys and signed policies for tests."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from securesystemslib.signer import CryptoSigner

from sds.identity import TrustDomain, parse_trust_domain
from sds.policy.envelope import SignedPolicy, add_signatures, new_envelope
from sds.policy.keys import VerificationKey, verification_key
from sds.policy.threshold import TrustedKeys

NOW = datetime(2026, 6, 1, tzinfo=UTC)
DOMAIN: TrustDomain = parse_trust_domain("example.org")


@dataclass(frozen=True, slots=True)
class Signatory:
    """One who signs policy in a test."""

    name: str
    private: Any = field(default_factory=ed25519.Ed25519PrivateKey.generate, repr=False)

    @property
    def public(self) -> VerificationKey:
        pem = self.private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return verification_key(pem.decode(), name=self.name)

    @property
    def private_pem(self) -> bytes:
        pem: bytes = self.private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return pem

    @classmethod
    def ecdsa(cls, name: str, curve: ec.EllipticCurve | None = None) -> Signatory:
        return cls(name, ec.generate_private_key(curve or ec.SECP256R1()))


def document(epoch: int = 1, **fields: Any) -> dict[str, Any]:
    """The smallest document, with these fields over it."""
    return {
        "version": 1,
        "trust_domain": "example.org",
        "epoch": epoch,
        "not_before": "2026-01-01T00:00:00Z",
        "not_after": "2027-01-01T00:00:00Z",
        **fields,
    }


def yaml_bytes(fields: dict[str, Any]) -> bytes:
    text: str = yaml.safe_dump(fields, sort_keys=False)
    return text.encode()


def sign(payload: bytes | dict[str, Any], *signatories: Signatory) -> SignedPolicy:
    """The document, signed by all of these."""
    data = payload if isinstance(payload, bytes) else yaml_bytes(payload)
    return add_signatures(
        new_envelope(data), [(CryptoSigner(one.private), one.public) for one in signatories]
    )


def trusting(*signatories: Signatory, threshold: int = 1) -> TrustedKeys:
    return TrustedKeys(keys=tuple(one.public for one in signatories), threshold=threshold)
