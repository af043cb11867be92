import dataclasses
from datetime import timedelta

import pytest
from pydantic import ValidationError

from sds.errors import KubernetesError, WorkloadError
from sds.identity import MAX_DNS_NAMES, KeyType, SpiffeId, parse_trust_domain
from sds.workload.entitlement import Selector
from sds.workload.facts import Facts, merge
from sds.workload.mapping import (
    Decision,
    Defaults,
    Matching,
    WorkloadRule,
    decide,
    selector_types,
)
from sds.workload.service_dns_names import service_dns_names

DEFAULTS = Defaults(trust_domain=parse_trust_domain("example.org"))
POD = {
    "k8s:ns": "shop",
    "k8s:sa": "web",
    "k8s:pod-name": "web-1",
    "k8s:pod-label:app": "web",
    "k8s:image-digest": "sha256:" + "ab" * 32,
    "unix:uid": "101",
}


def facts(selectors: dict[str, str] = POD, services: tuple[tuple[str, str], ...] = ()) -> Facts:
    return Facts(
        selectors=frozenset(Selector(*pair) for pair in selectors.items()),
        services=frozenset(services),
    )


def rule(name: str = "r", spiffe_id: str = "", **more: object) -> WorkloadRule:
    document = {
        "name": name,
        "match": {"k8s:ns": "shop"},
        "spiffe_id": spiffe_id or f"spiffe://{{trust_domain}}/{name}",
        **more,
    }
    return WorkloadRule.model_validate(document)


def decided(
    rules: list[WorkloadRule], found: Facts, matching: Matching = Matching.FIRST
) -> Decision:
    return decide(rules, found, matching=matching, defaults=DEFAULTS)


def ids(decision: Decision) -> list[str]:
    return [str(identity.spiffe_id) for identity in decision.identities]


def test_templates_are_filled_from_facts() -> None:
    template = "spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}"
    decision = decided([rule(spiffe_id=template, lifetime="10m", key_type="ec-p384")], facts())
    (identity,) = decision.identities
    assert identity.spiffe_id == SpiffeId.parse("spiffe://example.org/ns/shop/sa/web")
    assert (identity.lifetime, identity.key_type) == (timedelta(minutes=10), KeyType.EC_P384)
    assert decision.granted[0].rule == "r"


def test_first_match_and_all_matches_in_the_order_of_the_rules() -> None:
    rules = [rule("other", match={"k8s:ns": "x"}), rule("b"), rule("a")]
    assert ids(decided(rules, facts())) == ["spiffe://example.org/b"]
    both = decided(rules, facts(), Matching.ALL)
    assert ids(both) == ["spiffe://example.org/b", "spiffe://example.org/a"]


@pytest.mark.parametrize(
    ("match", "expected"),
    [
        ({"k8s:ns": "shop", "k8s:sa": "web"}, True),
        ({"k8s:ns": "shop", "k8s:sa": "api"}, False),
        ({"k8s:sa": ["api", "web"]}, True),
        ({"k8s:sa": "we*"}, True),
        ({"k8s:sa": "*"}, True),
        ({"k8s:container-name": "*"}, False),
        ({"k8s:pod-label:app": "web"}, True),
        ({"k8s:pod-label:tier": "web"}, False),
        ({"k8s:image-digest": "sha256:" + "ab" * 32}, True),
        ({"unix:uid": "101"}, True),
        ({"unix:uid": "10"}, False),
        ({"unix:gid": "101"}, False),
    ],
)
def test_conditions(match: dict[str, object], expected: bool) -> None:  # noqa: FBT001
    assert bool(decided([rule(match=match)], facts()).identities) is expected


@pytest.mark.parametrize("matching", Matching)
def test_a_rule_on_something_unknown_holds_the_decision_up(matching: Matching) -> None:
    rules = [rule("exact", match={"k8s:image-digest": "sha256:x"}), rule("late")]
    down = KubernetesError("down", reason="kubelet")
    known = Facts(selectors=facts().selectors, unknown={"k8s:image-digest": down})
    decision = decided(rules, known, matching)
    assert (decision.identities, decision.undetermined) == ((), down)
    # A later rule does not hold up an earlier one that matches, except where all count.
    turned = decided(rules[::-1], known, matching)
    assert bool(turned.identities) is (matching is Matching.FIRST)


def test_a_known_mismatch_decides_a_rule_whatever_else_is_unknown() -> None:
    first = rule("first", match={"k8s:image-digest": "sha256:x", "k8s:ns": "elsewhere"})
    known = Facts(
        selectors=facts().selectors,
        unknown={"k8s:image-digest": KubernetesError("down", reason="kubelet")},
    )
    assert ids(decided([first, rule("second")], known)) == ["spiffe://example.org/second"]


def test_an_attestor_that_cannot_tell_makes_all_its_types_unknown() -> None:
    known = merge(
        [
            Facts(unknown={"unix:": WorkloadError("no", reason="executable_unreadable")}),
            facts({"k8s:ns": "shop"}),
        ]
    )
    decision = decided([rule("u", match={"unix:uid": "0"}), rule("k")], known)
    assert decision.undetermined is not None
    assert decision.undetermined.reason == "executable_unreadable"
    template_only = rule("t", spiffe_id="spiffe://example.org/{uid}")
    assert decided([template_only], known).undetermined is not None


@pytest.mark.parametrize("matching", Matching)
def test_a_pattern_of_services_names_waits_for_what_it_is_filled_with(matching: Matching) -> None:
    late = WorkloadError("the container is not known", reason="undetermined")
    known = dataclasses.replace(
        facts(services=(("shop", "web"),)), unknown={"k8s:container-name": late}
    )
    named = rule("named", service_dns_names=["{container_name}.{namespace}.svc"])
    decision = decided([named, rule("next")], known, matching)
    assert (decision.identities, decision.undetermined) == ((), late)
    assert decision.problems == ()


@pytest.mark.parametrize(
    ("found", "template"),
    [
        ({"k8s:ns": "shop"}, "spiffe://{trust_domain}/{service_account}"),
        ({"k8s:ns": "shop", "k8s:sa": ".."}, "spiffe://{trust_domain}/{service_account}"),
        ({"k8s:ns": "shop", "k8s:sa": "a/b"}, "spiffe://{trust_domain}/{service_account}"),
        ({"k8s:ns": "shop", "k8s:pod-label:x": ""}, "spiffe://{trust_domain}/{pod_label:x}"),
    ],
)
def test_a_template_without_a_valid_name_grants_nothing_and_passes_nobody_on(
    found: dict[str, str], template: str
) -> None:
    decision = decided([rule("bad", spiffe_id=template), rule("next")], facts(found))
    assert (decision.identities, decision.undetermined) == ((), None)
    assert decision.problems[0].startswith("rule bad: ")


def test_names_of_services_are_bounded_by_patterns() -> None:
    services = (("shop", "web"), ("shop", "web-admin"))
    (identity,) = decided([rule()], facts(services=services)).identities
    assert identity.dns_names == tuple(
        sorted(
            f"{name}.shop{rest}"
            for name in ("web", "web-admin")
            for rest in ("", ".svc", ".svc.cluster.local")
        )
    )
    narrow = rule(service_dns_names=["web.{namespace}.svc"], dns_names=["{pod_name}.example.org"])
    (identity,) = decided([narrow], facts(services=services)).identities
    assert identity.dns_names == ("web-1.example.org", "web.shop.svc")
    bare = rule(service_dns_names=["web*"])
    (identity,) = decided([bare], facts(services=services)).identities
    assert identity.dns_names == ("web", "web-admin")
    assert "web.shop.svc.my.zone" in service_dns_names(services, cluster_domain="my.zone")


def test_names_of_services_are_none_by_default_in_a_guest() -> None:
    services = (("shop", "web"),)
    guest = dataclasses.replace(DEFAULTS, service_dns_names=())
    for given, expected in ((None, ()), (["web.shop.svc"], ("web.shop.svc",)), ([], ())):
        one = rule() if given is None else rule(service_dns_names=given)
        found = decide(
            [one], facts(services=services), matching=Matching.FIRST, defaults=guest
        ).identities
        assert [each.dns_names for each in found] == [expected]


def test_the_types_that_rules_ask_for() -> None:
    rules = [rule(match={"unix:path": "/x"}, spiffe_id="spiffe://{trust_domain}/{container_name}")]
    assert selector_types(rules) == {"unix:path", "k8s:container-name"}
    labelled = rule(spiffe_id="spiffe://{trust_domain}/{pod_label:a.b/c}")
    assert "k8s:pod-label:a.b/c" in selector_types([labelled])
    named = rule(service_dns_names=["{container_name}.{namespace}.svc"])
    assert selector_types([named]) == {"k8s:ns", "k8s:container-name"}


def test_services_with_more_names_than_a_certificate_has_cost_nobody_an_identity() -> None:
    def asked(count: int, given: WorkloadRule) -> Decision:
        services = tuple(("shop", f"s{number}") for number in range(count))
        return decided([given], facts(services=services))

    usual = rule(dns_names=["own.test"])
    (most,) = asked(33, usual).identities
    assert len(most.dns_names) == MAX_DNS_NAMES
    too_many = asked(34, usual)
    assert [identity.dns_names for identity in too_many.identities] == [("own.test",)]
    assert "103 DNS names, and a certificate has at most 100" in too_many.problems[0]
    narrower = rule(dns_names=["own.test"], service_dns_names=["*.{namespace}.svc"])
    (narrow,) = asked(99, narrower).identities
    assert len(narrow.dns_names) == MAX_DNS_NAMES


def test_a_name_of_a_service_that_no_certificate_can_have_costs_nobody_an_identity() -> None:
    zone = ".".join(["z" * 50] * 3)
    defaults = dataclasses.replace(DEFAULTS, cluster_domain=zone)
    services = (("shop", "w" * 63), ("n" * 63, "w" * 63), ("shop", "Not_A_Label"))
    one = rule(service_dns_names=["**.svc." + zone])
    (identity,) = decide(
        [one], facts(services=services), matching=Matching.FIRST, defaults=defaults
    ).identities
    assert identity.dns_names == (f"{'w' * 63}.shop.svc.{zone}",)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"match": {}}, "at least 1 item"),
        ({"match": {"k8s:nss": "x"}}, "unknown selector 'k8s:nss'; known are"),
        ({"match": {"k8s:pod-label:": "x"}}, "not a Kubernetes label key"),
        ({"match": {"k8s:ns": "a*b"}}, "a star only at the end"),
        ({"match": {"k8s:ns": ""}}, "write a value"),
        ({"match": {"k8s:ns": []}}, "at least 1 item"),
        ({"spiffe_id": "spiffe://{trust_domain}/{name}"}, "unknown field {name}"),
        ({"spiffe_id": "spiffe://{trust_domain/x"}, "unbalanced braces"),
        ({"spiffe_id": "spiffe://{trust_domain}/a//b"}, "no caller can get a name of"),
        ({"spiffe_id": "{trust_domain}/a"}, "no caller can get a name of"),
        ({"dns_names": ["-.{namespace}"]}, "no caller can get a name of"),
        ({"service_dns_names": ["Web.{namespace}"]}, "no caller can get a name of"),
        ({"selector": {}}, "Extra inputs are not permitted"),
        ({"name": "a b"}, "should match pattern"),
        ({"lifetime": "1500ms"}, "use 2s or more"),
        ({"lifetime": "1s"}, "use 2s or more"),
    ],
)
def test_a_bad_rule_says_what_is_wrong(change: dict[str, object], text: str) -> None:
    document = {"name": "r", "match": {"k8s:ns": "x"}, "spiffe_id": "spiffe://e.org/x", **change}
    with pytest.raises(ValidationError) as caught:
        WorkloadRule.model_validate(document)
    assert text in str(caught.value)
