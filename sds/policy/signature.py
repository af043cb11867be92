"""Signatures on policy: DSSE envelopes, the keys that verify them, the signers that make them.

Owns the signed file's outer format. A signed policy is a DSSE envelope in JSON
(https://github.com/secure-systems-lab/dsse, protocol 1.0.2): ``payload`` is the policy document's
bytes as its author wrote them, ``signatures`` holds one entry per signer. Signatures are made and
checked by securesystemslib; this module adds what that library leaves open: strict JSON without
repeated or unknown fields, canonical base64, and keys that differ in more than their names.

Invariant: a threshold counts distinct public keys, never names, key ids or signatures.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
import subprocess
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NewType, Protocol

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import CryptoSigner, Signature, SSlibKey

from sds.errors import ConfigurationError, PolicyError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

SignedPolicy = NewType("SignedPolicy", bytes)
"""A signed policy file's bytes: nothing in it has been checked."""

PAYLOAD_TYPE: Final = "application/vnd.attested-sds.policy.v1+yaml"
MAX_SIGNED_BYTES: Final = 12 * 1024 * 1024
"""Larger files are refused before they are parsed; 100,000 short rules fit."""
_SIGNER_SECONDS: Final = 300
"""How long an external signer may take: a person may have to touch a token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationKey:
    """A public key whose signatures may count.

    Attributes:
        name: what people call it: the file's name, or the name in the policy.
        key_id: SHA-256 that names the key in envelopes, lower-case hex.
        pem: SubjectPublicKeyInfo in PEM.
    """

    name: str
    key_id: str
    pem: str = field(repr=False)
    key: Any = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustedKeys:
    """Who may sign: ``threshold`` distinct ones of ``keys`` must have."""

    keys: tuple[VerificationKey, ...]
    threshold: int

    def __post_init__(self) -> None:
        """Hold the invariant: distinct keys, and a threshold that they can reach.

        Raises:
            ConfigurationError: no key, a repeated key, or a threshold out of range.
        """
        if not self.keys:
            raise ConfigurationError(
                "no key is trusted to sign policy", advice="name at least one public key"
            )
        names: dict[str, str] = {}
        for key in self.keys:
            if key.key_id in names:
                raise ConfigurationError(
                    f"the policy keys {names[key.key_id]!r} and {key.name!r} are the same key",
                    advice="name each signer's own key once: a threshold counts distinct keys",
                )
            names[key.key_id] = key.name
        if not 1 <= self.threshold <= len(self.keys):
            raise ConfigurationError(
                f"a threshold of {self.threshold} cannot be reached with {len(self.keys)} keys",
                advice="use a threshold from 1 to the number of keys",
            )


class PolicySigner(Protocol):
    """Signs the pre-authentication encoding of an envelope (securesystemslib's ``Signer``)."""

    def sign(self, payload: bytes) -> Any:
        """A securesystemslib ``Signature`` over these bytes."""
        ...


# --- keys ---------------------------------------------------------------------------------------


def verification_key(pem: str, *, name: str) -> VerificationKey:
    """Read a public key in PEM (SubjectPublicKeyInfo): Ed25519, or ECDSA on P-256 or P-384.

    Raises:
        ConfigurationError: not such a key.
    """
    advice = "give a public key of Ed25519, P-256 or P-384 in PEM, as `sds policy keygen` writes it"
    if "PRIVATE KEY" in pem:
        raise ConfigurationError(f"the policy key {name!r} is a private key", advice=advice)
    try:
        public = serialization.load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigurationError(
            f"the policy key {name!r} cannot be read as a public key in PEM", advice=advice
        ) from error
    curves = (ec.SECP256R1, ec.SECP384R1)
    usable = isinstance(public, ed25519.Ed25519PublicKey) or (
        isinstance(public, ec.EllipticCurvePublicKey) and isinstance(public.curve, curves)
    )
    if not usable:
        raise ConfigurationError(
            f"the policy key {name!r} is of a kind that may not sign policy", advice=advice
        )
    key = SSlibKey.from_crypto(public)
    text = public.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    ).decode()
    return VerificationKey(name=name, key_id=key.keyid, pem=text, key=key)


def read_verification_key(path: Path) -> VerificationKey:
    """Read a public key file; its name without ending is the key's name.

    Raises:
        ConfigurationError: the file cannot be read, or is not such a key.
    """
    return verification_key(_read_key_file(path), name=path.stem)


def file_signer(path: Path) -> tuple[PolicySigner, VerificationKey]:
    """A signer from an unencrypted private key file (PKCS#8, PEM), and its public half.

    Raises:
        ConfigurationError: the file cannot be read, or is not a private key that may sign.
    """
    advice = "give a private key in PEM (PKCS#8, without passphrase), or use --signer-command"
    pem = _read_key_file(path)
    try:
        private = serialization.load_pem_private_key(pem.encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        # The cause is left out: parsers quote what they read.
        raise ConfigurationError(
            f"{path} cannot be read as a private key", advice=advice
        ) from error.with_traceback(None)
    public = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    key = verification_key(public.decode(), name=path.stem)
    signer: PolicySigner = CryptoSigner(private, key.key)
    return signer, key


def _read_key_file(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError as error:
        raise ConfigurationError(f"the key file {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"the key file {path} is not PEM") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandSigner:
    """A signer that runs a command, so that the key can stay on a token or in a key service.

    The command gets the DSSE pre-authentication encoding (the bytes to sign, not their digest)
    on its standard input, and writes the raw signature to its standard output: 64 bytes for
    Ed25519, DER for ECDSA (over SHA-256 for P-256, SHA-384 for P-384).
    """

    command: str
    key: VerificationKey

    def sign(self, payload: bytes) -> Any:
        """Run the command.

        Raises:
            PolicyError: ``policy_signing``: it cannot be run, fails, or gives nothing.
        """
        words = shlex.split(self.command)
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


# --- envelopes ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedEnvelope:
    """A parsed envelope; its signatures have not been checked.

    Attributes:
        payload: the policy document's bytes.
        key_ids: the signers that it names.
    """

    payload: bytes = field(repr=False)
    key_ids: tuple[str, ...]
    envelope: Any = field(repr=False, compare=False)

    @property
    def digest(self) -> bytes:
        """SHA-256 of the document: 32 bytes that name this policy in evidence and logs."""
        return hashlib.sha256(self.payload).digest()


def parse_envelope(signed: SignedPolicy) -> SignedEnvelope:
    """Parse a signed policy file.

    Raises:
        PolicyError: ``policy_unsigned``: a YAML document, or an envelope without a signature.
        PolicyError: ``policy_malformed``: not a DSSE envelope of a policy: too large, not JSON, a
            repeated, missing or unknown field, base64 that is not canonical, another payload type.
    """
    if len(signed) > MAX_SIGNED_BYTES:
        raise PolicyError(
            f"the signed policy has {len(signed)} bytes, more than {MAX_SIGNED_BYTES}",
            advice="use patterns in place of one rule per workload",
            reason="policy_malformed",
        )
    if not signed.lstrip()[:1] == b"{":
        raise PolicyError(
            "this is not a signed policy: no JSON object",
            advice="sign the document with `sds policy sign`",
            reason="policy_unsigned",
        )
    try:
        outer = json.loads(signed.decode("utf-8"), object_pairs_hook=_no_repeats)
    except (ValueError, RecursionError) as error:
        raise PolicyError(
            f"the signed policy is not JSON: {error}", reason="policy_malformed"
        ) from error
    fields = _fields(
        outer, "the envelope", {"payload": str, "payloadType": str, "signatures": list}
    )
    if fields["payloadType"] != PAYLOAD_TYPE:
        raise PolicyError(
            f"the payload type is {fields['payloadType'][:100]!r}, not {PAYLOAD_TYPE!r}",
            reason="policy_malformed",
        )
    payload = _canonical_base64(fields["payload"], "payload")
    key_ids = []
    for number, entry in enumerate(fields["signatures"]):
        where = f"signatures[{number}]"
        signature = _fields(entry, where, {"keyid": str, "sig": str})
        _canonical_base64(signature["sig"], f"{where}.sig")
        key_ids.append(signature["keyid"])
    if len(set(key_ids)) != len(key_ids):
        raise PolicyError(
            "the envelope holds two signatures of one key id", reason="policy_malformed"
        )
    if not key_ids:
        raise PolicyError(
            "the envelope holds no signature",
            advice="sign the document with `sds policy sign`",
            reason="policy_unsigned",
        )
    return SignedEnvelope(
        payload=payload, key_ids=tuple(key_ids), envelope=Envelope.from_dict(outer)
    )


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a field stands there twice")
    return fields


def _fields(value: Any, where: str, wanted: dict[str, type]) -> dict[str, Any]:
    if not isinstance(value, dict) or set(value) != set(wanted):
        raise PolicyError(
            f"{where} must have exactly the fields {', '.join(wanted)}", reason="policy_malformed"
        )
    for name, kind in wanted.items():
        if not isinstance(value[name], kind):
            raise PolicyError(f"{name} of {where} is of the wrong type", reason="policy_malformed")
    return value


def _canonical_base64(text: str, where: str) -> bytes:
    try:
        decoded = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise PolicyError(
            f"{where} of the envelope is not base64", reason="policy_malformed"
        ) from error
    if base64.b64encode(decoded).decode() != text:
        raise PolicyError(
            f"{where} of the envelope is not canonical base64", reason="policy_malformed"
        )
    return decoded


def check_signatures(envelope: SignedEnvelope, trusted: TrustedKeys) -> tuple[str, ...]:
    """Check that enough trusted keys signed; returns the names of those that did, sorted.

    Raises:
        PolicyError: ``policy_unsigned``: none of the signatures is by a trusted key and holds.
        PolicyError: ``policy_below_threshold``: fewer distinct trusted keys than the threshold did.
    """
    names = []
    encoded = envelope.envelope.pae()
    for key in trusted.keys:
        signature = envelope.envelope.signatures.get(key.key_id)
        if signature is None:
            continue
        try:
            key.key.verify_signature(signature, encoded)
        except UnverifiedSignatureError:
            continue
        names.append(key.name)
    if not names:
        raise PolicyError(
            "no signature of the policy is by a trusted key and holds "
            f"(it names {', '.join(key_id[:12] for key_id in envelope.key_ids[:8])}; trusted are "
            f"{', '.join(f'{key.name} {key.key_id[:12]}' for key in trusted.keys)})",
            advice="the file was altered, or other keys signed it",
            reason="policy_unsigned",
        )
    if len(names) < trusted.threshold:
        raise PolicyError(
            f"{len(names)} of {len(trusted.keys)} trusted keys signed the policy "
            f"({', '.join(sorted(names))}), {trusted.threshold} must",
            advice="let the others sign too: `sds policy sign SIGNED.json --key …`",
            reason="policy_below_threshold",
        )
    return tuple(sorted(names))


def new_envelope(payload: bytes) -> SignedEnvelope:
    """An envelope around a policy document, without signatures yet."""
    return SignedEnvelope(payload=payload, key_ids=(), envelope=Envelope(payload, PAYLOAD_TYPE, {}))


def add_signatures(
    envelope: SignedEnvelope, signers: Iterable[tuple[PolicySigner, VerificationKey]]
) -> SignedPolicy:
    """Sign, keep the signatures that are there, and return the signed file's bytes.

    Raises:
        PolicyError: ``policy_signing``: a signer gave a signature that does not hold under its
            public key.
    """
    whole = Envelope(envelope.payload, PAYLOAD_TYPE, dict(envelope.envelope.signatures))
    for signer, key in signers:
        signature = whole.sign(signer)
        try:
            key.key.verify_signature(signature, whole.pae())
        except UnverifiedSignatureError as error:
            raise PolicyError(
                f"the signature made for the key {key.name!r} does not hold under it",
                advice="check that the signer uses that key, and signs what it is given "
                "(not a digest of it)",
                reason="policy_signing",
            ) from error
    return serialize(whole)


def serialize(envelope: Any) -> SignedPolicy:
    """The envelope as a file: compact JSON, signatures by key id, one newline at the end."""
    outer = envelope.to_dict()
    outer["signatures"].sort(key=lambda entry: entry["keyid"])
    text = json.dumps(outer, separators=(",", ":"), sort_keys=True)
    return SignedPolicy(text.encode() + b"\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSigner:
    """A signer on a PKCS#11 token, through securesystemslib's ``HSMSigner``; ECDSA only.

    Attributes:
        uri: as securesystemslib writes it: ``hsm:2?label=…``. The path of the PKCS#11 module is
            taken from the environment variable ``PYKCS11LIB``.
        key: the public half of the token's key.
        pin: the user's PIN.
    """

    uri: str
    key: VerificationKey
    pin: str = field(repr=False)

    def sign(self, payload: bytes) -> Any:
        """Sign on the token.

        Raises:
            ConfigurationError: python-pkcs11 is not installed, or the URI, key or module does not
                fit.
            PolicyError: ``policy_signing``: the token refused.
        """
        # Late: these load the PKCS#11 binding, which is an extra.
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


def names_of(keys: Sequence[VerificationKey]) -> str:
    """The keys as people read them: names and the start of their key ids."""
    return ", ".join(f"{key.name} ({key.key_id[:12]})" for key in keys)
