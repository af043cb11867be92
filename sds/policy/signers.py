"""Makes signatures on policy with a key file, a command or a PKCS#11 token.

Owns the signers. Invariant: no message quotes the content of a private key's file.
"""

from __future__ import annotations

import shlex
import subprocess
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from securesystemslib.signer import CryptoSigner, Signature

from sds.errors import ConfigurationError, PolicyError
from sds.policy.keys import VerificationKey, read_key_file, verification_key
from sds.settings.paths import expect_private

if TYPE_CHECKING:
    from pathlib import Path

    from sds.policy.envelope import PolicySigner

_SIGNER_SECONDS: Final = 300
"""How long an external signer may take: a person may have to touch a token."""


def file_signer(path: Path) -> tuple[PolicySigner, VerificationKey]:
    """Make a signer from an unencrypted private key file (PKCS#8, PEM), and return its public half.

    Raises:
        ConfigurationError: the file cannot be read, or is not a private key that may sign.
    """
    advice = "give a private key in PEM (PKCS#8, without passphrase), or use --signer-command"
    pem = read_key_file(path)
    expect_private(path)
    try:
        private = serialization.load_pem_private_key(pem.encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        # The cause is left out, because parsers quote what they read.
        raise ConfigurationError(
            f"{path} cannot be read as a private key", advice=advice
        ) from error.with_traceback(None)
    public = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    key = verification_key(public.decode(), name=path.stem)
    signer: PolicySigner = CryptoSigner(private, key.key)
    return signer, key


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandSigner:
    """A signer that runs a command, so that the key can stay on a token or in a key service.

    The command gets the DSSE pre-authentication encoding (the bytes to sign, not their digest)
    on its standard input, and writes the raw signature to its standard output: 64 bytes for
    Ed25519, DER for ECDSA (over SHA-256 for P-256, SHA-384 for P-384).
    """

    command: str = field(repr=False)
    key: VerificationKey

    def sign(self, payload: bytes) -> Any:
        """Run the command.

        Raises:
            PolicyError: ``policy_signing``: the command cannot be run, fails, or gives nothing.
        """
        try:
            words = shlex.split(self.command)
        except ValueError as error:
            raise PolicyError(
                f"the signer command cannot be split into words: {error}",  # it may have a PIN
                reason="policy_signing",
                advice="close each quote",
            ) from error
        if not words:
            raise PolicyError("the signer command is empty", reason="policy_signing")
        try:
            done = subprocess.run(  # noqa: S603  the operator names the command, no shell
                words, input=payload, capture_output=True, timeout=_SIGNER_SECONDS, check=False
            )
        except OSError as error:
            raise PolicyError(
                f"the signer command {words[0]!r} cannot be run: {error.strerror}",
                reason="policy_signing",
            ) from error
        except subprocess.TimeoutExpired as error:
            raise PolicyError(
                f"the signer command {words[0]!r} gave nothing in {_SIGNER_SECONDS} s",
                reason="policy_signing",
            ) from error
        if done.returncode != 0 or not done.stdout:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise PolicyError(
                f"the signer command {words[0]!r} failed with status {done.returncode}"
                + (f": {said[-1][:300]}" if said else ""),
                reason="policy_signing",
            )
        return Signature(self.key.key_id, done.stdout.hex())


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSigner:
    """A signer on a PKCS#11 token, through securesystemslib's ``HSMSigner``; ECDSA only.

    Attributes:
        uri: the key's URI in securesystemslib's form: ``hsm:2?label=…``. The environment variable
            ``PYKCS11LIB`` has the path of the PKCS#11 module.
        key: the public half of the token's key.
        pin: the user's PIN.
    """

    uri: str
    key: VerificationKey
    pin: str = field(repr=False)

    def sign(self, payload: bytes) -> Any:
        """Sign on the token.

        Raises:
            ConfigurationError: python-pkcs11 is not installed, or the URI, key or module is wrong.
            PolicyError: ``policy_signing``: the token refused.
        """
        # Imported late, because these load the PKCS#11 binding, which is an extra.
        try:
            from pkcs11.exceptions import PKCS11Error  # noqa: PLC0415
            from securesystemslib.signer import HSMSigner  # noqa: PLC0415
        except ImportError as error:
            raise ConfigurationError(
                "signing through PKCS#11 needs the package python-pkcs11",
                advice="install attested-sds[pkcs11], or use --signer-command with pkcs11-tool",
            ) from error
        try:
            return HSMSigner.from_priv_key_uri(self.uri, self.key.key, lambda _: self.pin).sign(
                payload
            )
        except ValueError as error:
            raise ConfigurationError(
                f"the PKCS#11 signer {self.uri!r} cannot be used: {error}",
                advice="PYKCS11LIB names the token's PKCS#11 module; the URI is hsm:ID?label=LABEL",
            ) from error
        except (PKCS11Error, RuntimeError) as error:
            raise PolicyError(
                f"the token behind {self.uri!r} did not sign: {type(error).__name__} {error}",
                reason="policy_signing",
            ) from error
