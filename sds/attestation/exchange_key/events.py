"""The events by which a guest measures its exchange key, and the check of the proof.

Owns the two events, their replay, and the check of the proof that travels with evidence. Pure.

A runtime register is extended and never set: ``value = H(value || event)`` (TDG.MR.RTMR.EXTEND of
the TDX module; TPM2_PCR_Extend). Early boot, which the launch measurement covers, extends two
events before any container runs: the digest of the exchange key, and the cap. Invariants: evidence
with a proof is accepted only if the events replay to the register, the cap is among them once, as
the last one, the key's event is directly before it, and the key signed this evidence's report data.
So software that runs later can neither add a key nor hide one: an event after the cap changes the
register, and a second cap is refused.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key

from sds.attestation.evidence import length_prefixed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sds.attestation.checks import Checks
    from sds.attestation.evidence import ExchangeProof

KEY_LABEL: Final = b"attested-sds/exchange-key/v1"
CAP_LABEL: Final = b"attested-sds/exchange-cap/v1"
SIGNATURE_LABEL: Final = b"attested-sds/exchange-signature/v1"
MAX_EVENTS: Final = 64
"""The most events in one proof: two are ours, and measured boot may extend others before them."""
_MISSING: Final = "none"


def key_event(public_key: bytes, *, algorithm: str) -> bytes:
    """Return the digest that names a key in the register.

    Args:
        public_key: SubjectPublicKeyInfo, DER.
        algorithm: the register's, as hashlib names it: ``sha384`` for an RTMR.
    """
    return hashlib.new(algorithm, length_prefixed([KEY_LABEL, public_key])).digest()


def cap_event(*, algorithm: str) -> bytes:
    """Return the digest after which no key counts."""
    return hashlib.new(algorithm, length_prefixed([CAP_LABEL])).digest()


def replay(events: Iterable[bytes], *, algorithm: str) -> bytes:
    """Compute the register's value after these events; it starts as zeros."""
    value = bytes(hashlib.new(algorithm).digest_size)
    for event in events:
        value = hashlib.new(algorithm, value + event).digest()
    return value


def signed_text(report_data: bytes) -> bytes:
    """Return what the exchange key signs: a label and the evidence's report data."""
    return length_prefixed([SIGNATURE_LABEL, report_data])


def key_digest(public_key: bytes) -> str:
    """Return the SHA-256 of a key's SubjectPublicKeyInfo in hex: the claim ``exchange_key``."""
    return hashlib.sha256(public_key).hexdigest()


def check_exchange_key(
    checks: Checks,
    proof: ExchangeProof | None,
    *,
    register: bytes,
    report_data: bytes,
    algorithm: str,
    required: bool,
) -> dict[str, str]:
    """Record the checks of a proof, and return the claim ``exchange_key`` if there is one.

    A proof that is not required is checked too.

    Args:
        checks: collects the checks.
        proof: the proof that came with the evidence, unverified.
        register: the register's value in the evidence, whose signature the caller checks.
        report_data: the evidence's report data.
        algorithm: the register's hash.
        required: whether evidence without a proof is refused.
    """
    if proof is None:
        if required:
            checks.add(
                "exchange_key",
                "exchange_key_missing",
                ok=False,
                found=_MISSING,
                expected="a signature by the key that early boot measured into the register",
                advice="set attestation.exchange_key where this evidence is made; a process that "
                "is not the agent or the authority cannot sign",
            )
        return {}
    wrong = _wrong_events(proof, register=register, algorithm=algorithm)
    checks.add(
        "exchange_key_events",
        "exchange_key_register",
        ok=wrong is None,
        found=wrong or f"{len(proof.events)} events, the cap last",
        expected="events that replay to the register: the key, then the cap, and nothing after it",
        advice=""
        if wrong is None
        else "restart the machine, which empties the register; if it "
        "happens again, find out what extends the register there",
    )
    signed = _is_signed(proof, report_data)
    checks.add(
        "exchange_key_signature",
        "exchange_key_signature",
        ok=signed,
        found="valid" if signed else "not a signature of this report data by this key",
        expected="valid",
        advice="" if signed else "another process than the holder of the key made this evidence",
    )
    return {"exchange_key": key_digest(proof.public_key)}


def _wrong_events(proof: ExchangeProof, *, register: bytes, algorithm: str) -> str | None:
    """Return why the events do not show this key, or None if they do."""
    size = len(register)
    if len(proof.events) > MAX_EVENTS or any(len(event) != size for event in proof.events):
        return f"{len(proof.events)} events that are too many, or not {size} bytes long"
    cap = cap_event(algorithm=algorithm)
    if cap not in proof.events:
        return "no cap: a key could still be added"
    if proof.events.index(cap) != len(proof.events) - 1:
        return "events after the first cap"
    key = key_event(proof.public_key, algorithm=algorithm)
    if proof.events[-2:-1] != (key,):
        return "another key before the cap"
    if replay(proof.events, algorithm=algorithm) != register:
        return f"the register is {register.hex()}: another key was measured, or events came later"
    return None


def _is_signed(proof: ExchangeProof, report_data: bytes) -> bool:
    try:
        key = load_der_public_key(proof.public_key)
        if not isinstance(key, Ed25519PublicKey):
            return False
        key.verify(proof.signature, signed_text(report_data))
    except (ValueError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True
