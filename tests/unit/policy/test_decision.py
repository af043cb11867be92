"""What a policy allows, and what it does not."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from sds.attestation.evidence import Claims, EvidenceKind
from sds.errors import ConfigurationError, RefusedError, WorkloadError
from sds.identity import KeyType, SpiffeId
from sds.policy.decision import Decisions
from sds.policy.document import PolicyDocument
from sds.policy.nodes import RequestedCertificate
from sds.rules.pattern import format_spiffe_pattern
from sds.settings import yamlfile
from sds.workload.entitlement import Selector
from sds.workload.facts import Facts
from tests.support.policies import document

HOUR = timedelta(hours=1)
M1, M2 = "aa" * 48, "bb" * 48


def decisions(**fields: Any) -> Decisions:
    return Decisions(yamlfile.validate(document(**fields), PolicyDocument, what="test"))


def sid(path: str, domain: str = "example.org") -> SpiffeId:
    return SpiffeId.parse(f"spiffe://{domain}/{path}")


def texts(globs: tuple[Any, ...]) -> list[str]:
    return [format_spiffe_pattern(glob) for glob in globs]


S = "spiffe://example.org"
RULES = decisions(
    services={"db": f"{S}/db/*", "pay": [f"{S}/pay", f"{S}/old-pay"], "any": f"{S}/**"},
    allow=[
        {"from": f"{S}/web", "to": [f"{S}/db/1", f"{S}/pay"]},
        {"from": f"{S}/ops/**", "to": f"{S}/**"},
        {"from": "spiffe://partner.org/gate", "to": f"{S}/pay"},
        {"from": f"{S}/ops/deploy", "to": f"{S}/pay"},
    ],
)


@pytest.mark.parametrize(
    ("source", "target", "may"),
    [
        (sid("web"), sid("db/1"), True),
        (sid("web"), sid("db/2"), False),
        (sid("db/1"), sid("web"), False),
        (sid("ops/x/y"), sid("db/2"), True),
        (sid("ops"), sid("db/2"), False),
        (sid("gate", "partner.org"), sid("pay"), True),
        (sid("gate"), sid("pay"), False),
        (sid("web"), sid("web"), False),
    ],
)
def test_who_may_talk_to_whom(source: SpiffeId, target: SpiffeId, *, may: bool) -> None:
    assert RULES.may_talk(source, target) is may


def test_validation_contexts() -> None:
    # The rule for ops/deploy says nothing that the rule for ops/** does not.
    assert texts(RULES.inbound(sid("pay"))) == [
        f"{S}/ops/**",
        f"{S}/web",
        "spiffe://partner.org/gate",
    ]
    assert texts(RULES.inbound(sid("db/2"))) == [f"{S}/ops/**"]
    assert RULES.inbound(SpiffeId.parse(S)) == ()
    assert texts(RULES.outbound(sid("web"), "db")) == [f"{S}/db/1"]
    assert texts(RULES.outbound(sid("web"), "pay")) == [f"{S}/pay"]
    assert texts(RULES.outbound(sid("ops/x"), "db")) == [f"{S}/db/*"]
    assert texts(RULES.outbound(sid("web"), "any")) == [f"{S}/db/1", f"{S}/pay"]
    assert texts(RULES.outbound(sid("web"), f"{S}/pay")) == [f"{S}/pay"]
    assert RULES.outbound(sid("web"), f"{S}/db/2") == ()
    assert RULES.outbound(sid("web"), "unknown") == ()
    assert RULES.outbound(sid("web"), "spiffe://BAD") == ()
    assert RULES.outbound(sid("nobody"), "db") == ()


def claims(measurement: str = M1, **attributes: str) -> Claims:
    return Claims(
        kind=EvidenceKind.SEV_SNP,
        measurement=measurement,
        simulated=False,
        attributes=attributes,
    )


NODES = decisions(
    limits={"max_lifetime": "2h", "key_types": ["ec-p256", "ec-p384"]},
    nodes=[
        {
            "name": "web",
            "measurements": [M1],
            "attributes": {"product": ["milan", "genoa*"]},
            "grants": [
                {"spiffe_ids": f"{S}/web", "dns_names": ["web.example.org"], "max_lifetime": "1h"},
                {"spiffe_ids": [f"{S}/web", f"{S}/job/*"], "dns_names": ["*.jobs.example.org"]},
            ],
        },
        {
            "name": "kube",
            "kinds": ["kubernetes-token"],
            "nodes": ["worker-*"],
            "grants": [{"spiffe_ids": f"{S}/kube/**", "key_types": ["ec-p384"]}],
        },
    ],
)


def ask(who: Claims, path: str, *dns: str, **more: Any) -> timedelta:
    fields = {"lifetime": HOUR * 5, **more}
    wanted = RequestedCertificate(spiffe_id=sid(path), dns_names=dns, **fields)
    return NODES.permit(who, wanted).lifetime


def test_nodes_get_what_their_group_is_granted() -> None:
    milan = claims(product="milan")
    assert ask(milan, "web", "web.example.org") == HOUR
    assert ask(milan, "web", "web.example.org", lifetime=timedelta(minutes=5)) == HOUR / 12
    assert ask(milan, "web", "a.jobs.example.org") == 2 * HOUR
    assert ask(claims(product="genoa-siena"), "job/1", key_type=KeyType.EC_P256) == 2 * HOUR
    token = Claims(kind=EvidenceKind.KUBERNETES_TOKEN, measurement="worker-3", simulated=False)
    assert ask(token, "kube/a/b", key_type=KeyType.EC_P384) == 2 * HOUR


def test_a_name_of_a_node_is_no_measurement() -> None:
    """Who can write to etcd names a node at will, also like a confidential guest's measurement."""
    guests = {"name": "guests", "measurements": [M1], "grants": [{"spiffe_ids": f"{S}/pay"}]}
    hosts = {"name": "hosts", "nodes": ["aa*"], "grants": [{"spiffe_ids": f"{S}/logs"}]}
    rules = decisions(nodes=[guests, hosts])
    token = Claims(kind=EvidenceKind.KUBERNETES_TOKEN, measurement=M1, simulated=False)
    pay, logs = (
        RequestedCertificate(spiffe_id=sid(name), lifetime=HOUR) for name in ("pay", "logs")
    )
    assert rules.permit(claims(), pay).group == "guests"
    assert rules.permit(token, logs).group == "hosts"
    with pytest.raises(RefusedError, match="hosts may not ask for"):
        rules.permit(token, pay)
    # Nor is a measurement the name of a node: somebody else's guest may begin with any digits.
    with pytest.raises(RefusedError, match="guests may not ask for"):
        rules.permit(claims(), logs)


@pytest.mark.parametrize(
    ("who", "path", "dns", "more", "said"),
    [
        (claims(product="turin"), "web", (), {}, "no node group"),
        (claims(), "web", (), {}, "no node group"),
        (claims(M2, product="milan"), "web", (), {}, "no node group"),
        (claims(product="milan"), "db", (), {}, "may not ask for"),
        (claims(product="milan"), "kube/x", (), {}, "may not ask for"),
        # Names of two grants are not mixed.
        (
            claims(product="milan"),
            "web",
            ("web.example.org", "a.jobs.example.org"),
            {},
            "may not have the DNS name",
        ),
        (claims(product="milan"), "web", ("b.example.org",), {}, "may not have the DNS name"),
        (claims(product="milan"), "web", (), {"key_type": KeyType.RSA_2048}, "key of type"),
        (
            Claims(kind=EvidenceKind.KUBERNETES_TOKEN, measurement="x", simulated=False),
            "kube/x",
            (),
            {},
            "no node group",
        ),
    ],
)
def test_nodes_get_nothing_else(
    who: Claims, path: str, dns: tuple[str, ...], more: dict[str, Any], said: str
) -> None:
    with pytest.raises(RefusedError, match=said):
        ask(who, path, *dns, **more)


def test_a_policy_without_nodes_grants_nothing() -> None:
    with pytest.raises(RefusedError):
        decisions().permit(claims(), RequestedCertificate(spiffe_id=sid("web"), lifetime=HOUR))


WORKLOADS = decisions(
    workloads=[
        {
            "name": "pinned",
            "match": {"k8s:ns": "shop", "k8s:sa": "pay", "k8s:image-digest": "sha256:aa"},
            "spiffe_id": "spiffe://{trust_domain}/pay",
        },
        {
            "name": "stopped",
            "match": {"k8s:ns": "shop", "k8s:sa": "pay"},
            "spiffe_id": "spiffe://{trust_domain}/unpinned-pay",
        },
        {
            "name": "rest",
            "match": {"k8s:ns": "*"},
            "spiffe_id": "spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}",
        },
    ]
)


def facts(unknown: tuple[str, ...] = (), **values: str) -> Facts:
    return Facts(
        selectors=frozenset(
            Selector("k8s:" + name.replace("_", "-"), value) for name, value in values.items()
        ),
        unknown={name: WorkloadError("not known") for name in unknown},
    )


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        (facts(ns="shop", sa="pay", image_digest="sha256:aa"), "spiffe://example.org/pay"),
        (facts(ns="shop", sa="pay", image_digest="sha256:bb"), "spiffe://example.org/unpinned-pay"),
        (facts(ns="x", sa="y", image_digest="sha256:bb"), "spiffe://example.org/ns/x/sa/y"),
        (facts(sa="y"), None),
    ],
)
def test_workloads(what: Facts, expected: str | None) -> None:
    found = [str(one.spiffe_id) for one in WORKLOADS.recognise(what).identities]
    assert found == ([] if expected is None else [expected])


def test_a_fact_that_is_unknown_holds_the_decision_up() -> None:
    decision = WORKLOADS.recognise(facts(("k8s:image-digest",), ns="shop", sa="pay"))
    assert decision.undetermined is not None
    assert not decision.identities


def test_a_node_grant_outside_the_trust_domain() -> None:
    with pytest.raises(ConfigurationError, match=r"is not in example\.org"):
        decisions(
            nodes=[{"name": "n", "grants": [{"spiffe_ids": "spiffe://other.org/x"}]}],
        )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"nodes": ["worker-*-a"]}, "a star only at the end"),
        ({"nodes": [""]}, "write a value"),
        ({"attributes": {"product": ["*nan"]}}, "a star only at the end"),
        ({"attributes": {"product": []}}, "attributes"),
    ],
)
def test_a_group_that_no_node_can_belong_to(change: dict[str, Any], said: str) -> None:
    grants = [{"spiffe_ids": f"{S}/web"}]
    with pytest.raises(ConfigurationError, match=said):
        decisions(nodes=[{"name": "n", "grants": grants, **change}])


def test_an_authority_hears_which_keys_it_may_have() -> None:
    nodes = [{"name": "n", "measurements": [M1], "authority": {"key_types": ["ec-p384"]}}]
    wanted = RequestedCertificate(
        spiffe_id=SpiffeId.parse(S), lifetime=HOUR, key_type=KeyType.EC_P256, signing=True
    )
    with pytest.raises(RefusedError, match=r"use one of ec-p384\)"):
        decisions(nodes=nodes).permit(claims(), wanted)


def test_rules_that_join_too_many_patterns_are_refused() -> None:
    many = [f"{S}/{number}" for number in range(501)]
    with pytest.raises(ConfigurationError, match="251001 pairs of patterns, more than 250000"):
        decisions(allow=[{"from": many, "to": many}])
