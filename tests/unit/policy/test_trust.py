"""From signed bytes to a policy: every check refuses what it must, by its own reason."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from securesystemslib.signer import CryptoSigner

from sds.errors import ConfigurationError, PolicyError
from sds.policy.envelope import MAX_SIGNED_BYTES, SignedPolicy, add_signatures, parse_envelope
from sds.policy.keys import verification_key
from sds.policy.threshold import TrustedKeys
from sds.policy.trust import Epoch, admit, authenticate
from tests.support.policies import DOMAIN, NOW, Signatory, document, sign, trusting, yaml_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from sds.policy.threshold import TrustedKeys as Trusted

ALICE, BOB, CAROL, MALLORY = (Signatory(name) for name in ("alice", "bob", "carol", "mallory"))

MALFORMED = "policy_malformed"
P521 = (
    ec.generate_private_key(ec.SECP521R1())
    .public_key()
    .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    .decode()
)


def check(
    signed: SignedPolicy,
    trusted: Trusted | None = None,
    *,
    now: datetime = NOW,
    seen: Epoch | None = None,
) -> str:
    """The reason of the refusal, or the empty string."""
    try:
        policy = authenticate(signed, trusted=trusted or trusting(ALICE), trust_domain=DOMAIN)
        admit(policy, seen=seen, now=now)
    except PolicyError as error:
        return error.reason
    return ""


def changed(signed: SignedPolicy, change: Callable[[dict[str, Any]], object]) -> SignedPolicy:
    outer = json.loads(signed)
    change(outer)
    return SignedPolicy(json.dumps(outer).encode())


@pytest.mark.parametrize(
    "signatory",
    [ALICE, Signatory.ecdsa("p256"), Signatory.ecdsa("p384", ec.SECP384R1())],
    ids=lambda one: one.name,
)
def test_a_signed_policy_holds(signatory: Signatory) -> None:
    payload = b"# why\n" + yaml_bytes(document(7))
    signed = sign(payload, signatory)
    policy = authenticate(signed, trusted=trusting(signatory), trust_domain=DOMAIN)
    policy = admit(policy, seen=None, now=NOW)
    assert policy.epoch.number == 7
    assert policy.signed_by == (signatory.name,)
    assert policy.signed == signed
    assert policy.epoch.digest == parse_envelope(signed).digest


def test_threshold_counts_distinct_trusted_keys() -> None:
    three = trusting(ALICE, BOB, CAROL, threshold=2)
    assert check(sign(document(), ALICE, BOB), three) == ""
    assert check(sign(document(), ALICE, BOB, CAROL, MALLORY), three) == ""
    assert check(sign(document(), ALICE), three) == "policy_below_threshold"
    assert check(sign(document(), ALICE, MALLORY), three) == "policy_below_threshold"
    assert check(sign(document(), MALLORY), three) == "policy_unsigned"


def test_one_signature_under_two_key_ids_counts_once() -> None:
    signed = sign(document(), ALICE)

    def double(outer: dict[str, Any]) -> None:
        (entry,) = outer["signatures"]
        outer["signatures"] = [entry, {**entry, "keyid": BOB.public.key_id}]

    assert check(changed(signed, double), trusting(ALICE, BOB, threshold=2)) == (
        "policy_below_threshold"
    )


def test_one_key_under_two_names_is_no_threshold() -> None:
    with pytest.raises(ConfigurationError, match="are the same key"):
        TrustedKeys(keys=(ALICE.public, Signatory("other", ALICE.private).public), threshold=2)


@pytest.mark.parametrize("threshold", [0, 3, -1])
def test_a_threshold_that_cannot_be(threshold: int) -> None:
    with pytest.raises(ConfigurationError, match="threshold"):
        trusting(ALICE, BOB, threshold=threshold)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda o: o.update(signatures=[]), "policy_unsigned"),
        (lambda o: o.update(payloadType="text/plain"), "policy_malformed"),
        (lambda o: o.update(payload=o["payload"] + "A"), "policy_malformed"),
        (lambda o: o.update(payload=base64.urlsafe_b64encode(b"\xff" * 9).decode()), MALFORMED),
        (lambda o: o.update(payload=base64.b64encode(b"epoch: 9").decode()), "policy_unsigned"),
        (lambda o: o.update(more=1), "policy_malformed"),
        (lambda o: o.pop("payload"), "policy_malformed"),
        (lambda o: o.update(signatures={}), "policy_malformed"),
        (lambda o: o["signatures"].append(1), "policy_malformed"),
        (lambda o: o["signatures"].append(dict(o["signatures"][0])), "policy_malformed"),
        (lambda o: o["signatures"][0].update(sig="AAAA"), "policy_unsigned"),
        (lambda o: o["signatures"][0].update(sig=""), "policy_unsigned"),
        (lambda o: o["signatures"][0].update(cert="x"), "policy_malformed"),
    ],
)
def test_envelopes_that_were_altered(
    change: Callable[[dict[str, Any]], object], reason: str
) -> None:
    assert check(changed(sign(document(), ALICE), change)) == reason


@pytest.mark.parametrize(
    ("signed", "reason"),
    [
        (b"", "policy_unsigned"),
        (yaml_bytes(document()), "policy_unsigned"),
        (b"{", "policy_malformed"),
        (b"{" + b'"a":' * 100000 + b"1" + b"}" * 100000, "policy_malformed"),
        (b'{"payload":"","payload":"","payloadType":"","signatures":[]}', "policy_malformed"),
        (b"{\xff}", "policy_malformed"),
        (b"{" + b" " * MAX_SIGNED_BYTES, "policy_malformed"),
    ],
)
def test_files_that_are_no_envelope(signed: bytes, reason: str) -> None:
    assert check(SignedPolicy(signed)) == reason


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"- 1",
        b"epoch: 1",
        yaml_bytes(document(colour="red")),
        yaml_bytes(document()) + b"epoch: 2\n",
        yaml_bytes(document(epoch=0)),
        yaml_bytes({**document(), "epoch": "1"}),
        yaml_bytes(document(epoch=2**63)),
        yaml_bytes(document(not_before="2026-01-01T00:00:00")),
        yaml_bytes(document(not_after="2025-01-01T00:00:00Z")),
        yaml_bytes(document(allow=[{"from": [], "to": "spiffe://example.org/a"}])),
        yaml_bytes(document(allow=[{"from": "spiffe://*/a", "to": "spiffe://example.org/a"}])),
        yaml_bytes(document(version=2)),
        b"\xff\xfe",
    ],
)
def test_signed_documents_that_are_none(payload: bytes) -> None:
    assert check(sign(payload, ALICE)) == "policy_malformed"


def test_another_trust_domain() -> None:
    assert check(sign(document(trust_domain="other.org"), ALICE)) == "policy_trust_domain"


@pytest.mark.parametrize(
    ("now", "reason"),
    [
        (datetime(2025, 12, 31, 23, 59, 59, tzinfo=UTC), "policy_not_yet_valid"),
        (datetime(2026, 1, 1, tzinfo=UTC), ""),
        (datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC), ""),
        (datetime(2027, 1, 1, tzinfo=UTC), "policy_expired"),
    ],
)
def test_the_window(now: datetime, reason: str) -> None:
    assert check(sign(document(), ALICE), now=now) == reason


def test_epochs() -> None:
    signed = sign(document(5), ALICE)
    digest = parse_envelope(signed).digest
    assert check(signed, seen=Epoch(number=4, digest=b"x")) == ""
    assert check(signed, seen=Epoch(number=5, digest=digest)) == ""
    assert check(signed, seen=Epoch(number=5, digest=b"x")) == "policy_epoch_conflict"
    assert check(signed, seen=Epoch(number=6, digest=digest)) == "policy_epoch_lower"


def test_new_signers_must_sign_too() -> None:
    fields = document(
        signers={
            "threshold": 2,
            "keys": [{"name": one.name, "public_key": one.public.pem} for one in (BOB, CAROL)],
        }
    )
    assert check(sign(fields, ALICE)) == "policy_below_threshold"
    assert check(sign(fields, ALICE, BOB)) == "policy_below_threshold"
    assert check(sign(fields, BOB, CAROL)) == "policy_unsigned"
    assert check(sign(fields, ALICE, BOB, CAROL)) == ""


def test_signatures_can_be_added_one_after_the_other() -> None:
    fields = yaml_bytes(document())
    first = sign(fields, ALICE)
    both = add_signatures(parse_envelope(first), [(CryptoSigner(BOB.private), BOB.public)])
    assert check(both, trusting(ALICE, BOB, threshold=2)) == ""
    assert both == sign(fields, BOB, ALICE)


@pytest.mark.parametrize(
    "pem",
    [
        "",
        "hello",
        ALICE.private_pem.decode(),
        P521,
    ],
)
def test_keys_that_cannot_sign_policy(pem: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        verification_key(pem, name="k")
    assert "k" in str(caught.value)
    assert "MC4CAQAw" not in str(caught.value)
