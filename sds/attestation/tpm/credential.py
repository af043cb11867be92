"""Makes credentials that only one TPM can open: MakeCredential in software (TCG Part 1, 24).

Owns the encryption of a secret to an endorsement key, bound to the name of another key. Invariant:
a TPM gives the secret back only if it has the private parts of both, and the second has exactly
this name. Sources: Part 1, sections 11.4.10 (KDFa, KDFe), 24.4 to 24.6, B.10.4 and C.6.4.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from sds.attestation.tpm.wire import sized

if TYPE_CHECKING:
    from sds.attestation.tpm.keys import AttestationKey

_IDENTITY: Final = b"IDENTITY\0"
_BLOCK: Final = 16
_KEY_BITS: Final = 128
_HASH_BITS: Final = 256


def make_credential(endorsement: AttestationKey, name: bytes, secret: bytes) -> tuple[bytes, bytes]:
    """Encrypt ``secret`` to an endorsement key of the profile's templates L-1 and L-2.

    Args:
        endorsement: RSA 2048 or P-256, with SHA-256 and AES-128-CFB.
        name: the name of the key that must be in the same TPM.
        secret: at most as long as the key's digest, which is 32 bytes.

    Returns:
        The TPMS_ID_OBJECT (Part 2, section 12.4.3), and the encrypted seed.
    """
    seed, encrypted = _seed(endorsement)
    key = _kdf_a(seed, b"STORAGE", name, _KEY_BITS)
    encryptor = Cipher(algorithms.AES(key), CFB(bytes(_BLOCK))).encryptor()
    identity = encryptor.update(sized(secret)) + encryptor.finalize()
    outer = hmac.digest(_kdf_a(seed, b"INTEGRITY", b"", _HASH_BITS), identity + name, "sha256")
    return sized(outer) + identity, encrypted


def _seed(endorsement: AttestationKey) -> tuple[bytes, bytes]:
    if isinstance(endorsement, rsa.RSAPublicKey):
        seed = os.urandom(_HASH_BITS // 8)
        oaep = padding.OAEP(
            mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=_IDENTITY
        )
        return seed, endorsement.encrypt(seed, oaep)
    ours = ec.generate_private_key(endorsement.curve)
    point, theirs = ours.public_key().public_numbers(), endorsement.public_numbers()
    size = (endorsement.curve.key_size + 7) // 8
    shared = ours.exchange(ec.ECDH(), endorsement)
    x, y = point.x.to_bytes(size, "big"), point.y.to_bytes(size, "big")
    # KDFe with SHA-256 and one block (Part 1, section 11.4.10.3; SP 800-56A).
    message = b"\0\0\0\1" + shared + _IDENTITY + x + theirs.x.to_bytes(size, "big")
    return hashlib.sha256(message).digest(), sized(x) + sized(y)


def _kdf_a(key: bytes, label: bytes, context: bytes, bits: int) -> bytes:
    """Compute KDFa with SHA-256, one block (Part 1, 11.4.10.2; SP 800-108, counter mode)."""
    message = b"\0\0\0\1" + label + b"\0" + context + bits.to_bytes(4, "big")
    return hmac.digest(key, message, "sha256")[: bits // 8]
