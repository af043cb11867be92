"""Signed policies that cannot be used: each is refused, and the last good one stays."""

from __future__ import annotations

import base64
import json
from datetime import timedelta
from typing import Any

import pytest
import yaml

from sds.clock import SystemClock
from sds.errors import ConfigurationError, PolicyError
from sds.policy.document import PolicyDocument
from sds.policy.envelope import PAYLOAD_TYPE, SignedPolicy, parse_envelope
from sds.policy.holder import PolicyHolder
from sds.policy.succession import PolicySuccession
from sds.settings import yamlfile
from tests.support.policies import DOMAIN, Signatory, document, sign, trusting

ALICE = Signatory("alice")
OTHER = {"trust_domain": "partner.org"}


def window(**fields: Any) -> dict[str, Any]:
    now = SystemClock().now().wall
    return {
        "not_before": (now - timedelta(hours=1)).isoformat(),
        "not_after": (now + timedelta(hours=1)).isoformat(),
        **fields,
    }


def holder() -> PolicyHolder:
    made = PolicyHolder(
        PolicySuccession(trust_domain=DOMAIN, trusted=trusting(ALICE)), clock=SystemClock()
    )
    made.take(sign(document(1, **window()), ALICE), origin="test")
    assert made.epoch == 1
    return made


UNUSABLE: list[dict[str, Any]] = [
    {"federation": [{**OTHER, "endpoint": {"url": "https://example.org:99999/b"}}]},
    {"federation": [{**OTHER, "endpoint": {"url": "https://example..org/b"}}]},
    {"federation": [{**OTHER, "endpoint": {"url": "https://" + "a" * 64 + ".org/b"}}]},
    {"federation": [{**OTHER, "roots": ["not PEM"]}]},
    {"not_before": "0001-01-01T00:00:00+14:00"},
    {"not_after": "9999-12-31T23:59:59-14:00"},
    {"not_after": 1e300},
    {"not_after": float("inf")},
    {"not_after": float("nan")},
    {"epoch": 2**63},
    {"epoch": 2.5},
    {"limits": {"max_lifetime": 10**30}},
    {"limits": {"max_lifetime": "9" * 40 + "d"}},
    {"limits": {"max_lifetime": float("inf")}},
    {"allow": [{"from": "spiffe://example.org/a", "to": "spiffe://example.org/b", "requests": 1}]},
]


@pytest.mark.parametrize("fields", UNUSABLE)
def test_what_cannot_be_used_is_refused_and_the_last_good_policy_stays(
    fields: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    keeps = holder()
    outcome = keeps.take(sign({**document(2, **window()), **fields}, ALICE), origin="test")
    assert outcome.refusal is not None
    assert outcome.refusal.reason == "policy_malformed"
    assert keeps.epoch == 1
    assert keeps.in_force().epoch.number == 1
    assert "an unexpected error" not in caplog.text


def test_deep_documents_are_refused() -> None:
    keeps = holder()
    for payload in (b"a: " + b"[" * 100_000, b"a: " + b"{a: " * 50_000, b"- " * 100_000 + b"a"):
        assert keeps.take(sign(payload, ALICE), origin="test").refusal is not None
    assert keeps.epoch == 1


def test_a_listener_that_raises_keeps_nobody_else_from_hearing() -> None:
    keeps = holder()
    heard: list[int] = []

    def fails() -> None:
        raise RuntimeError

    keeps.listen(fails)
    keeps.listen(lambda: heard.append(keeps.epoch))
    keeps.take(sign(document(2, **window()), ALICE), origin="test")
    assert heard == [2]


def test_listeners_hear_of_a_policy_before_anything_is_written_about_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keeps = holder()
    heard: list[int] = []
    keeps.listen(lambda: heard.append(keeps.epoch))

    def fails(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr("sds.policy.holder.differences", fails)
    with pytest.raises(RuntimeError):
        keeps.take(sign(document(2, **window()), ALICE), origin="test")
    assert heard == [2]


ENVELOPE = {"payload": base64.b64encode(b"a: 1").decode(), "payloadType": PAYLOAD_TYPE}
SIGNATURE = {"keyid": "a" * 64, "sig": "AAAA"}


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({**ENVELOPE, "signatures": [{**SIGNATURE, "keyid": "\ud800"}]}),
        json.dumps({**ENVELOPE, "signatures": [{**SIGNATURE, "keyid": "a\nb"}]}),
        json.dumps({**ENVELOPE, "signatures": [{**SIGNATURE, "keyid": "\x1b[2J"}]}),
        json.dumps({**ENVELOPE, "signatures": [{**SIGNATURE, "sig": "\ud800"}]}),
        json.dumps({**ENVELOPE, "payload": "\ud800", "signatures": [SIGNATURE]}),
        json.dumps({**ENVELOPE, "payloadType": "\ud800", "signatures": [SIGNATURE]}),
        json.dumps({**ENVELOPE, "\ud800": 1, "signatures": [SIGNATURE]}),
        json.dumps({**ENVELOPE, "signatures": [SIGNATURE]})[:-1] + ', "x": NaN}',
        json.dumps({**ENVELOPE, "signatures": [SIGNATURE]})[:-1] + ', "x": 1e999}',
        json.dumps({**ENVELOPE, "signatures": [SIGNATURE]})[:-1] + ', "x": ' + "9" * 10_000 + "}",
        '{"payload": ' + "[" * 100_000,
        '{"a":' * 100_000,
    ],
)
def test_only_our_errors_come_out_of_an_envelope_and_they_can_be_written(text: str) -> None:
    with pytest.raises(PolicyError) as caught:
        parse_envelope(SignedPolicy(text.encode()))
    str(caught.value).encode()
    keeps = holder()
    outcome = keeps.take(text.encode(), origin="test")
    assert outcome.refusal is not None
    str(outcome.refusal).encode()
    assert keeps.epoch == 1


_RULE = {"name": "a", "match": {"k8s:ns": "a"}, "spiffe_id": "spiffe://example.org/a"}
_GRANT = {"spiffe_ids": ["spiffe://example.org/**"]}


@pytest.mark.parametrize(
    ("where", "fields"),
    [
        ("agents", {"reference_values": {"agents": None}}),
        ("authorities", {"reference_values": {"authorities": None}}),
        ("minimum_firmware", {"reference_values": {"agents": {"snp": {"minimum_firmware": None}}}}),
        (
            "minimum_policy_abi",
            {"reference_values": {"agents": {"snp": {"minimum_policy_abi": None}}}},
        ),
        *(
            (
                "exchange_key_pcr",
                {"reference_values": {"agents": {"others": {kind: {"exchange_key_pcr": None}}}}},
            )
            for kind in ("tpm", "azure-snp-vtpm", "azure-tdx-vtpm")
        ),
        ("max_lifetime", {"nodes": [{"name": "a", "grants": [_GRANT | {"max_lifetime": None}]}]}),
        ("service_dns_names", {"workloads": [_RULE | {"service_dns_names": None}]}),
    ],
)
def test_a_field_without_a_value_that_would_require_less_is_refused(
    where: str, fields: dict[str, Any]
) -> None:
    """YAML reads a field whose entries are commented out as null."""
    text = yaml.safe_dump(document(1, **fields))
    with pytest.raises(ConfigurationError, match=rf"{where}: expected a value"):
        yamlfile.validate(yamlfile.parse(text, what="policy"), PolicyDocument, what="policy")
