"""Proves in two rounds that an attestation key is in the TPM of an endorsement key.

Owns the secret of a credential. Invariant: a proof is the secret of a credential that this process
made for this pair of keys, at most one to two times :data:`WINDOW_SECONDS` ago, and only the TPM
with both keys can have decrypted it. No state is kept for it, because the secret is derived from a
key of this process (TCG Part 1, section 24; NIST SP 800-108 is not needed, because the key is used
only as that of a MAC).
"""

from __future__ import annotations

import hashlib
import hmac
import os
from typing import TYPE_CHECKING, Final

from sds.attestation.tpm.credential import make_credential
from sds.attestation.tpm.endorsement import key_digest
from sds.attestation.tpm.wire import TpmReader, sized

if TYPE_CHECKING:
    from datetime import datetime

    from sds.attestation.tpm.keys import AttestationKey

WINDOW_SECONDS: Final = 600
_PROCESS_KEY: Final = os.urandom(32)


def credential_for(endorsement: AttestationKey, name: bytes, now: datetime) -> bytes:
    """Make a credential that only the TPM with both keys opens, as it travels.

    Args:
        endorsement: the endorsement key.
        name: the name of the attestation key.
        now: the time, which the secret binds.
    """
    credential, seed = make_credential(endorsement, name, _secret(endorsement, name, _window(now)))
    return sized(credential) + sized(seed)


def split_credential(challenge: bytes) -> tuple[bytes, bytes]:
    """Split a challenge into credential and encrypted seed.

    Raises:
        EvidenceMalformedError: these are not two buffers.
    """
    reader = TpmReader(challenge, what="the authority's credential")
    found = reader.sized(), reader.sized()
    reader.done()
    return found


def proves(proof: bytes, endorsement: AttestationKey, name: bytes, now: datetime) -> bool:
    """Say whether this is the secret of a recent credential for these keys."""
    window = _window(now)
    return any(
        hmac.compare_digest(proof, _secret(endorsement, name, each))
        for each in (window, window - 1)
    )


def _window(now: datetime) -> int:
    return int(now.timestamp()) // WINDOW_SECONDS


def _secret(endorsement: AttestationKey, name: bytes, window: int) -> bytes:
    bound = hashlib.sha256(name).digest() + bytes.fromhex(key_digest(endorsement))
    return hmac.digest(_PROCESS_KEY, window.to_bytes(8, "big", signed=True) + bound, "sha256")
