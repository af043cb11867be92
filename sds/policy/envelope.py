"""The signed policy's file: a DSSE envelope around the document's bytes.

Owns this outer format. A signed policy is a DSSE envelope in JSON
(https://github.com/secure-systems-lab/dsse, protocol 1.0.2): ``payload`` is the policy document's
bytes as its author wrote them, ``signatures`` has one entry for each signer. securesystemslib makes
and checks the signatures; this module adds what that library leaves open: strict JSON without
repeated or unknown fields, and canonical base64.

Invariants: :func:`parse_envelope` raises only :class:`sds.errors.PolicyError`, and its result can
be shown to a person.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NewType, Protocol

from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import UnverifiedSignatureError

from sds.errors import PolicyError
from sds.printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sds.policy.keys import VerificationKey

SignedPolicy = NewType("SignedPolicy", bytes)
"""The bytes of a signed policy file; nothing in them was checked."""

PAYLOAD_TYPE: Final = "application/vnd.attested-sds.policy.v1+yaml"
UNUSABLE: Final = b"unusable: "
"""Begins our own words about files that were not offered. An error repeats them and nothing else of
what is no policy, because that may be a key."""
_SHOWN: Final = 600
"""How many bytes of these words an error repeats."""
MAX_SIGNED_BYTES: Final = 12 * 1024 * 1024
"""Larger files are refused before they are parsed; 100,000 short rules fit."""


class PolicySigner(Protocol):
    """Signs the pre-authentication encoding of an envelope (securesystemslib's ``Signer``)."""

    def sign(self, payload: bytes) -> Any:
        """Make a securesystemslib ``Signature`` over these bytes."""
        ...


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
        """Return the SHA-256 of the document, 32 bytes, which names this policy in evidence."""
        return hashlib.sha256(self.payload).digest()


def parse_envelope(signed: SignedPolicy) -> SignedEnvelope:
    """Parse a signed policy file.

    Raises:
        PolicyError: ``policy_unsigned``: a YAML document, or an envelope without a signature.
        PolicyError: ``policy_malformed``: it is not a DSSE envelope of a policy: too large, not
            JSON, a repeated, missing or unknown field, base64 that is not canonical, another
            payload type.
    """
    if len(signed) > MAX_SIGNED_BYTES:
        raise PolicyError(
            f"the signed policy has {len(signed)} bytes, more than {MAX_SIGNED_BYTES}",
            advice="use patterns in place of one rule per workload",
            reason="policy_malformed",
        )
    if signed.lstrip()[:1] != b"{":
        words = signed[:_SHOWN] if signed.startswith(UNUSABLE) else b"no JSON object"
        raise PolicyError(
            f"this is not a signed policy: {printable(words.decode('utf-8', 'replace'))}",
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
        key_id = signature["keyid"]
        if not key_id.isprintable():
            # JSON can contain a lone surrogate or a control character; neither may reach a log.
            raise PolicyError(f"{where}.keyid is not printable text", reason="policy_malformed")
        key_ids.append(key_id)
    if len(set(key_ids)) != len(key_ids):
        raise PolicyError(
            "the envelope has two signatures of one key id", reason="policy_malformed"
        )
    if not key_ids:
        raise PolicyError(
            "the envelope has no signature",
            advice="sign the document with `sds policy sign`",
            reason="policy_unsigned",
        )
    return SignedEnvelope(
        payload=payload, key_ids=tuple(key_ids), envelope=Envelope.from_dict(outer)
    )


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a field appears twice")
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


def new_envelope(payload: bytes) -> SignedEnvelope:
    """Make an envelope around a policy document, without signatures yet."""
    return SignedEnvelope(payload=payload, key_ids=(), envelope=Envelope(payload, PAYLOAD_TYPE, {}))


def add_signatures(
    envelope: SignedEnvelope, signers: Iterable[tuple[PolicySigner, VerificationKey]]
) -> SignedPolicy:
    """Add signatures to the present ones, and return the signed file's bytes.

    Raises:
        PolicyError: ``policy_signing``: a signer gave a signature that is not valid under its
            public key.
    """
    whole = Envelope(envelope.payload, PAYLOAD_TYPE, dict(envelope.envelope.signatures))
    for signer, key in signers:
        signature = whole.sign(signer)
        try:
            key.key.verify_signature(signature, whole.pae())
        except UnverifiedSignatureError as error:
            raise PolicyError(
                f"the signature made for the key {key.name!r} is not valid under it",
                advice="check that the signer uses that key, and signs what it is given "
                "(not a digest of it)",
                reason="policy_signing",
            ) from error
    return serialize(whole)


def serialize(envelope: Any) -> SignedPolicy:
    """Encode the envelope as a file: compact JSON, signatures by key id, one newline at the end."""
    outer = envelope.to_dict()
    outer["signatures"].sort(key=lambda entry: entry["keyid"])
    text = json.dumps(outer, separators=(",", ":"), sort_keys=True)
    return SignedPolicy(text.encode() + b"\n")
