"""The public keys whose signatures on policy may count.

Owns :class:`VerificationKey`. Invariant: a key is named by the SHA-256 that securesystemslib gives
it, so two files with one key are one key.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from securesystemslib.signer import SSlibKey

from sds.errors import ConfigurationError
from sds.files import read_file

if TYPE_CHECKING:
    from pathlib import Path

_MAX_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationKey:
    """A public key whose signatures may count.

    Attributes:
        name: the key's name for people: that of its file, or the name in the policy.
        key_id: the SHA-256 that names the key in envelopes, lower-case hex.
        pem: the key's SubjectPublicKeyInfo in PEM.
    """

    name: str
    key_id: str
    pem: str = field(repr=False)
    key: Any = field(repr=False, compare=False)


def verification_key(pem: str, *, name: str, what: str = "") -> VerificationKey:
    """Read a public key in PEM (SubjectPublicKeyInfo): Ed25519, or ECDSA on P-256 or P-384.

    Args:
        pem: the key.
        name: the key's name.
        what: the key's name in messages; ``name`` if left out.

    Raises:
        ConfigurationError: it is not such a key.
    """
    advice = "give a public key of Ed25519, P-256 or P-384 in PEM, as `sds policy keygen` writes it"
    what = what or repr(name)
    if "PRIVATE KEY" in pem:
        raise ConfigurationError(f"the policy key {what} is a private key", advice=advice)
    try:
        public = serialization.load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigurationError(
            f"the policy key {what} cannot be read as a public key in PEM", advice=advice
        ) from error
    curves = (ec.SECP256R1, ec.SECP384R1)
    usable = isinstance(public, ed25519.Ed25519PublicKey) or (
        isinstance(public, ec.EllipticCurvePublicKey) and isinstance(public.curve, curves)
    )
    if not usable:
        raise ConfigurationError(
            f"the policy key {what} is of a kind that may not sign policy", advice=advice
        )
    key = SSlibKey.from_crypto(public)
    text = public.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    ).decode()
    return VerificationKey(name=name, key_id=key.keyid, pem=text, key=key)


def read_verification_key(path: Path) -> VerificationKey:
    """Read a public key file; the file's name without its suffix names the key.

    Raises:
        ConfigurationError: the file cannot be read, or is not such a key.
    """
    return verification_key(read_key_file(path), name=path.stem, what=str(path))


def read_key_file(path: Path) -> str:
    """Read the text of a key file, without what is not ASCII (a byte order mark, comments).

    Raises:
        ConfigurationError: it cannot be read.
    """
    try:
        return read_file(path, max_bytes=_MAX_BYTES).decode("ascii", "ignore")
    except OSError as error:
        raise ConfigurationError(f"the key file {path} cannot be read: {error.strerror}") from error
