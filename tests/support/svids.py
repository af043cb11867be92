"""SVIDs and bundles for tests of serving: made with the library, put into the store."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sds.pki import private_key_pem
from sds.secrets.key_memory import SecretBytes
from sds.secrets.store import Svid
from tests.support.certificates import Signer, Wish, ca_wish, key_usage, self_signed

if TYPE_CHECKING:
    from sds.identity import Identity


def root(trust_domain: str) -> Signer:
    """A root of the trust domain, with its SPIFFE ID, valid now."""
    now = datetime.now(UTC)
    wish = ca_wish(trust_domain)
    return self_signed(
        Wish(
            subject=wish.subject,
            constraints=wish.constraints,
            usage=wish.usage,
            extended=(),
            names=(x509.UniformResourceIdentifier(f"spiffe://{trust_domain}"),),
            not_before=now - timedelta(hours=1),
            not_after=now + timedelta(hours=1),
        )
    )


def mint(signer: Signer, identity: Identity) -> Svid:
    """An SVID of this identity, valid now, with a key of its own."""
    now = datetime.now(UTC)
    names = [x509.UniformResourceIdentifier(str(identity.spiffe_id))]
    leaf = signer.issue(
        Wish(
            names=(*names, *map(x509.DNSName, identity.dns_names)),
            usage=key_usage("digital_signature"),
            not_before=now - timedelta(minutes=1),
            not_after=now + timedelta(minutes=30),
        )
    )
    spki = leaf.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return Svid(
        identity=identity,
        chain=(leaf.der,),
        private_key=SecretBytes(private_key_pem(leaf.key)),
        key_id=hashlib.sha256(spki).hexdigest(),
        serial=leaf.certificate.serial_number,
        not_before=leaf.certificate.not_valid_before_utc,
        not_after=leaf.certificate.not_valid_after_utc,
        received_at=now,
        root=hashlib.sha256(signer.der).hexdigest(),
    )
