from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from sds import errors
from sds.attestation.evidence import Claims, EvidenceKind
from sds.identity import KeyType, SpiffeId
from sds.policy.nodes import RequestedCertificate
from sds.rules.pattern import parse_dns_pattern, parse_spiffe_pattern
from tests.support.authority import AGENT, configured, rule
from tests.support.certificates import NOW
from tests.support.refusals import refused

CLAIMS = Claims(kind=EvidenceKind.SEV_SNP, measurement=AGENT, simulated=False)
WISH = RequestedCertificate(
    spiffe_id=SpiffeId.parse("spiffe://example.org/ns/a/sa/web"),
    dns_names=("web.test",),
    lifetime=timedelta(minutes=5),
    key_type=KeyType.EC_P256,
)
ROOT = replace(WISH, spiffe_id=SpiffeId.parse("spiffe://example.org"), dns_names=(), signing=True)


def decide(wish: RequestedCertificate, *rules: Any, measurement: str = AGENT) -> Any:
    policy = configured(*(rules or (rule(),)))
    return policy.decide(replace(CLAIMS, measurement=measurement), wish, now=NOW)


def test_a_wish_within_a_rule_is_granted_and_clamped() -> None:
    assert decide(WISH).lifetime == timedelta(minutes=5)
    assert decide(replace(WISH, lifetime=timedelta(days=2))).lifetime == timedelta(hours=1)
    assert decide(WISH).path_length is None
    assert decide(ROOT, rule(signing_path_length=2)).path_length == 2


@pytest.mark.parametrize(
    ("reason", "wish", "changes"),
    [
        ("measurement_not_allowed", WISH, {"measurement": "bb" * 48}),
        (
            "spiffe_id_not_allowed",
            replace(WISH, spiffe_id=SpiffeId.parse("spiffe://example.org/other/web")),
            {},
        ),
        (
            "spiffe_id_not_allowed",
            replace(WISH, spiffe_id=SpiffeId.parse("spiffe://example.org")),
            {"spiffe_ids": (parse_spiffe_pattern("spiffe://example.org"),)},
        ),
        ("dns_name_not_allowed", replace(WISH, dns_names=("web.test", "a.org")), {}),
        ("key_type_not_allowed", WISH, {"key_types": frozenset({KeyType.EC_P384})}),
        ("lifetime_not_allowed", replace(WISH, lifetime=timedelta(0)), {}),
        ("signing_not_allowed", ROOT, {}),
        ("signing_not_allowed", replace(WISH, signing=True), {"signing_path_length": 0}),
        (
            "dns_name_not_allowed",
            replace(ROOT, dns_names=("web.test",)),
            {"signing_path_length": 0},
        ),
    ],
)
def test_each_part_of_a_wish_is_refused_by_its_own_name(
    reason: str, wish: RequestedCertificate, changes: dict[str, Any]
) -> None:
    with pytest.raises(errors.RefusedError) as raised:
        decide(wish, rule(**changes))
    assert raised.value.reason == reason


def test_rules_are_not_mixed_and_the_nearest_refusal_is_told() -> None:
    other = rule(
        spiffe_ids=(parse_spiffe_pattern("spiffe://example.org/db/*"),),
        dns_names=(parse_dns_pattern("db.internal"),),
    )
    with refused("dns_name_not_allowed"):
        decide(replace(WISH, dns_names=("db.internal",)), other, rule())
    assert decide(WISH, other, rule()).lifetime == WISH.lifetime
