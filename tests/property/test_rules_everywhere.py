"""One rule language: every entry point reads the same text alike and decides the same way.

Entry points: the authority's configuration file, the agent's configuration file, a signed policy
at the authority and at the agent, cases of ``sds policy test``, and ``sds policy explain``.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sds.agent.config import AgentConfig
from sds.attestation.evidence import Claims, EvidenceKind
from sds.ca.config import AuthorityConfig
from sds.ca.signed_policy import SignedIssuancePolicy
from sds.clock import SystemClock
from sds.errors import ConfigurationError, RefusedError
from sds.identity import KeyType, SpiffeId
from sds.policy.cases import CaseFile, run
from sds.policy.decision import Decisions
from sds.policy.document import PolicyDocument
from sds.policy.explanation import explain_caller, explain_node
from sds.policy.holder import PolicyHolder
from sds.policy.nodes import Permit, RequestedCertificate
from sds.policy.succession import PolicySuccession
from sds.rules.duration import format_duration, parse_duration
from sds.settings import yamlfile
from sds.workload.entitlement import Selector
from sds.workload.facts import Facts
from tests.support.policies import DOMAIN, NOW, Signatory, document, sign, trusting

if TYPE_CHECKING:
    from sds.ca.issuance import IssuancePolicy

S = "spiffe://example.org"
HEX = ("aa" * 48, "bb" * 32)
ALICE = Signatory("alice")


def config(**fields: Any) -> AuthorityConfig:
    signer = {"kind": "self-signed", "lifetime": "400d"}
    data = {"trust_domain": "example.org", "signer": signer, **fields}
    return yamlfile.validate(data, AuthorityConfig, what="ca.yaml")


def agent(**fields: Any) -> AgentConfig:
    data = {
        "trust_domain": "example.org",
        "run_dir": "/run/x",
        "authority": {"addresses": ["localhost:1"]},
        "node": {"attestors": ["kubernetes"]},
        **fields,
    }
    return yamlfile.validate(data, AgentConfig, what="agent.yaml")


def policy(**fields: Any) -> PolicyDocument:
    return yamlfile.validate(document(**fields), PolicyDocument, what="policy.yaml")


def signed(**fields: Any) -> PolicyHolder:
    now = SystemClock().now().wall
    window = {"not_before": (now - timedelta(hours=1)).isoformat()}
    window["not_after"] = (now + timedelta(hours=1)).isoformat()
    holder = PolicyHolder(
        PolicySuccession(trust_domain=DOMAIN, trusted=trusting(ALICE)), clock=SystemClock()
    )
    outcome = holder.take(sign({**document(), **window, **fields}, ALICE), origin="test")
    assert outcome.taken is not None, outcome.refusal
    return holder


# --- durations ----------------------------------------------------------------------------------

UNITS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
DURATIONS = st.lists(
    st.tuples(st.integers(0, 400), st.sampled_from(list(UNITS))), min_size=1, max_size=4
)


@given(DURATIONS)
@settings(max_examples=200)
def test_a_duration_means_the_same_wherever_it_stands(parts: list[tuple[int, str]]) -> None:
    text = "".join(f"{number}{unit}" for number, unit in parts)
    expected = timedelta(milliseconds=sum(number * UNITS[unit] for number, unit in parts))
    rule = {"measurement": HEX[0], "spiffe_ids": [f"{S}/a"], "max_lifetime": text}
    case = {"node": {"measurement": HEX[0]}, "expect": "allowed"}
    case["asks"] = {"spiffe_id": f"{S}/a", "lifetime": text}
    if not expected or expected > timedelta(days=90):
        if not expected:
            with pytest.raises(ConfigurationError):
                config(identities=[rule])
            with pytest.raises(ConfigurationError):
                policy(limits={"max_lifetime": text})
        return
    assert config(identities=[rule]).identities[0].max_lifetime == expected
    assert policy(limits={"max_lifetime": text}).limits.max_lifetime == expected
    cases = CaseFile.model_validate({"cases": [case]})
    assert cases.cases[0].asks is not None
    assert cases.cases[0].asks.lifetime == expected
    assert parse_duration(format_duration(expected)) == expected
    if expected >= timedelta(seconds=2) and not expected.microseconds:
        workload = {"name": "r", "match": {"k8s:ns": "*"}, "spiffe_id": f"{S}/a"}
        for rules in (
            agent(workloads=[{**workload, "lifetime": text}]).rules.rules,
            policy(workloads=[{**workload, "lifetime": text}]).workloads,
        ):
            assert rules[0].lifetime == expected


@given(st.integers(1, 7_776_000))
def test_a_bare_number_is_seconds_everywhere(seconds: int) -> None:
    rule = {"measurement": HEX[0], "spiffe_ids": [f"{S}/a"], "max_lifetime": seconds}
    expected = timedelta(seconds=seconds)
    assert config(identities=[rule]).identities[0].max_lifetime == expected
    assert policy(limits={"max_lifetime": seconds}).limits.max_lifetime == expected


# --- which node may have which certificate ------------------------------------------------------

SEGMENT = st.sampled_from(["a", "b", "ab"])
PATTERN_SEGMENT = st.sampled_from(["a", "b", "ab", "a*", "*"])
NAMES = st.lists(SEGMENT, min_size=1, max_size=3).map(lambda parts: "/".join((S, *parts)))
PATTERNS = st.tuples(st.lists(PATTERN_SEGMENT, max_size=3), st.booleans()).map(
    lambda pair: "/".join((S, *pair[0], *(["**"] if pair[1] or not pair[0] else [])))
)
DNS = st.lists(SEGMENT, min_size=1, max_size=2).map(lambda labels: ".".join((*labels, "org")))
DNS_PATTERNS = st.tuples(st.booleans(), st.lists(PATTERN_SEGMENT, max_size=2)).map(
    lambda pair: ".".join((*(["**"] if pair[0] else []), *pair[1], "org"))
)
KEYS = st.lists(
    st.sampled_from(["ec-p256", "ec-p384", "rsa-2048"]), min_size=1, max_size=3, unique=True
)
RULES = st.lists(
    st.fixed_dictionaries(
        {
            "measurement": st.sampled_from(HEX),
            "spiffe_ids": st.lists(PATTERNS, min_size=1, max_size=2),
            "dns_names": st.lists(DNS_PATTERNS, max_size=2),
            "max_lifetime": st.sampled_from(["10s", "1m30s", 3600]),
            "key_types": KEYS,
        },
        optional={"signing": st.fixed_dictionaries({"path_length": st.integers(0, 3)})},
    ),
    max_size=4,
)
WANTED = st.builds(
    RequestedCertificate,
    spiffe_id=NAMES.map(SpiffeId.parse),
    dns_names=st.lists(DNS, max_size=2, unique=True).map(tuple),
    lifetime=st.sampled_from([timedelta(seconds=5), timedelta(hours=2)]),
    key_type=st.sampled_from([KeyType.EC_P256, KeyType.RSA_2048]),
    signing=st.sampled_from([False]),
) | st.builds(
    RequestedCertificate,
    spiffe_id=st.sampled_from([SpiffeId.parse(S), SpiffeId.parse(f"{S}/a")]),
    lifetime=st.just(timedelta(minutes=1)),
    key_type=st.sampled_from([KeyType.EC_P256, KeyType.RSA_2048]),
    signing=st.sampled_from([True]),
)


def as_groups(rules: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rules of the authority's file as an author of a policy writes them."""
    groups = []
    for number, rule in enumerate(rules):
        bounds = {name: rule[name] for name in ("max_lifetime", "key_types")}
        grant = {"spiffe_ids": rule["spiffe_ids"], "dns_names": rule["dns_names"], **bounds}
        group: dict[str, Any] = {"name": f"g{number}", "measurements": [rule["measurement"]]}
        group["grants"] = [grant]
        if "signing" in rule:
            group["authority"] = {**rule["signing"], **bounds}
        groups.append(group)
    return groups


def outcome(policy: IssuancePolicy, claims: Claims, wanted: RequestedCertificate) -> Any:
    try:
        permit = policy.decide(claims, wanted, now=NOW)
    except RefusedError as error:
        return error.reason
    return permit.lifetime, permit.path_length


def by_hand(rules: list[dict[str, Any]], claims: Claims, wanted: RequestedCertificate) -> Any:
    """What docs/exchange.md says, with patterns matched by a method of its own."""
    steps = ["measurement", "signing", "spiffe_id", "dns_name", "key_type"]
    nearest = 0
    for rule in rules:
        if rule["measurement"] != claims.measurement:
            continue
        if wanted.signing:
            if "signing" not in rule or wanted.spiffe_id.path:
                nearest = max(nearest, 1)
                continue
        elif not any(matches(one, str(wanted.spiffe_id)) for one in rule["spiffe_ids"]):
            nearest = max(nearest, 2)
            continue
        turned = [".".join(reversed(one.split("."))) for one in rule["dns_names"]]
        names = [".".join(reversed(name.split("."))) for name in wanted.dns_names]
        if not all(any(matches(one, name, ".") for one in turned) for name in names):
            nearest = max(nearest, 3)
            continue
        if wanted.key_type not in rule["key_types"]:
            nearest = max(nearest, 4)
            continue
        lifetime = min(wanted.lifetime, parse_duration(rule["max_lifetime"]))
        return lifetime, rule["signing"]["path_length"] if wanted.signing else None
    return f"{steps[nearest]}_not_allowed"


def matches(pattern: str, text: str, separator: str = "/") -> bool:
    parts, names = pattern.split(separator), text.split(separator)
    if parts[-1] == "**":
        parts = parts[:-1]
        if len(names) <= len(parts):
            return False
        names = names[: len(parts)]
    return len(parts) == len(names) and all(
        name.startswith(part[:-1]) if part.endswith("*") else part == name
        for part, name in zip(parts, names, strict=True)
    )


@given(RULES, WANTED, st.sampled_from(HEX))
@settings(max_examples=300)
def test_certificates_are_decided_alike(
    rules: list[dict[str, Any]], wanted: RequestedCertificate, measurement: str
) -> None:
    claims = Claims(kind=EvidenceKind.SEV_SNP, measurement=measurement, simulated=False)
    expected = by_hand(rules, claims, wanted)
    assert outcome(config(identities=rules).issuance(), claims, wanted) == expected
    groups = as_groups(rules)
    assert outcome(SignedIssuancePolicy(signed(nodes=groups)), claims, wanted) == expected
    if wanted.signing:
        return
    # Explanations and cases do not ask for the kind of key.
    anyhow = RequestedCertificate(
        spiffe_id=wanted.spiffe_id, dns_names=wanted.dns_names, lifetime=wanted.lifetime
    )
    allowed = isinstance(permitted(policy(nodes=groups), claims, anyhow), Permit)
    answer = explain_node(
        policy(nodes=groups), claims, wanted.spiffe_id, wanted.dns_names, wanted.lifetime
    )
    assert answer.allowed is allowed
    case = {
        "node": {"measurement": measurement},
        "asks": {"spiffe_id": str(wanted.spiffe_id), "dns_names": list(wanted.dns_names)},
        "expect": "allowed" if allowed else "refused",
    }
    (result,) = run(policy(nodes=groups), CaseFile.model_validate({"cases": [case]}))
    assert result.passed


def permitted(rules: PolicyDocument, claims: Claims, wanted: RequestedCertificate) -> Any:
    try:
        return Decisions(rules).permit(claims, wanted)
    except RefusedError as error:
        return error.reason


# --- which caller has which identity ------------------------------------------------------------

VALUES = st.sampled_from(["a", "ab", "b"])
VALUE_PATTERNS = st.sampled_from(["a", "ab", "b", "a*", "*"])
WORKLOADS = st.lists(
    st.fixed_dictionaries(
        {
            "match": st.fixed_dictionaries(
                {"k8s:ns": VALUE_PATTERNS | st.lists(VALUE_PATTERNS, min_size=1, max_size=2)},
                optional={"k8s:sa": VALUE_PATTERNS},
            ),
            "spiffe_id": st.sampled_from(
                ["spiffe://{trust_domain}/{namespace}", f"{S}/x/{{service_account}}", f"{S}/x"]
            ),
            "service_dns_names": st.lists(
                st.sampled_from(["*.{namespace}.svc", "a*", "**.{namespace}", "a.b.svc"]),
                max_size=2,
            ),
        }
    ),
    max_size=4,
)
SERVICES = st.lists(st.tuples(VALUES, VALUES), max_size=2, unique=True)


@given(WORKLOADS, VALUES, VALUES, SERVICES, st.sampled_from(["first", "all"]))
@settings(max_examples=300)
@example([], "a", "a", [], "first")
def test_callers_are_recognised_alike(
    drawn: list[dict[str, Any]],
    namespace: str,
    account: str,
    services: list[tuple[str, str]],
    matching: str,
) -> None:
    rules = [{"name": f"r{number}", **rule} for number, rule in enumerate(drawn)]
    facts = Facts(
        selectors=frozenset({Selector("k8s:ns", namespace), Selector("k8s:sa", account)}),
        services=frozenset(services),
    )
    node = {"attestors": ["kubernetes"], "matching": matching}
    in_policy = policy(workloads=rules, matching=matching)
    found = [
        agent(workloads=rules, node=node).rules.decide(facts).identities,
        Decisions(in_policy).recognise(facts).identities,
        signed(workloads=rules, matching=matching).in_force().decisions.recognise(facts).identities,
    ]
    assert found[0] == found[1] == found[2]
    identities = found[0]
    expected = [
        rule["spiffe_id"]
        .replace("{trust_domain}", "example.org")
        .replace("{namespace}", namespace)
        .replace("{service_account}", account)
        for rule in rules
        if all(
            any(matches(one, value) for one in ([wanted] if isinstance(wanted, str) else wanted))
            for wanted, value in (
                (rule["match"]["k8s:ns"], namespace),
                (rule["match"].get("k8s:sa", "*"), account),
            )
        )
    ]
    expected = expected[:1] if matching == "first" else expected
    assert list(dict.fromkeys(str(one.spiffe_id) for one in identities)) == list(
        dict.fromkeys(expected)
    )
    assert explain_caller(in_policy, facts, None).allowed is bool(identities)
    case = {
        "caller": {"k8s:ns": namespace, "k8s:sa": account},
        "services": [f"{one}/{two}" for one, two in services],
        "identities": [str(one.spiffe_id) for one in identities],
    }
    (result,) = run(in_policy, CaseFile.model_validate({"cases": [case]}))
    assert result.passed, (result.expected, result.found)


TEXTS = st.text("a*{}.-/\u00e9", max_size=6)


@given(TEXTS)
@settings(max_examples=300)
def test_what_one_entry_point_refuses_the_others_refuse(text: str) -> None:
    """Patterns, templates and conditions: the same text is good or bad in both kinds of file."""

    def taken(load: Any) -> bool:
        try:
            load()
        except ConfigurationError as error:
            str(error).encode()
            return False
        return True

    rule = {"measurement": HEX[0], "spiffe_ids": [f"{S}/a"], "dns_names": [text]}
    assert taken(lambda: config(identities=[rule])) == taken(
        lambda: policy(nodes=as_groups([{"max_lifetime": 60, "key_types": ["ec-p256"], **rule}]))
    )
    rule = {"measurement": HEX[0], "spiffe_ids": [S + text], "dns_names": []}
    assert taken(lambda: config(identities=[rule])) == taken(
        lambda: policy(nodes=as_groups([{"max_lifetime": 60, "key_types": ["ec-p256"], **rule}]))
    )
    for workload in (
        {"name": "r", "match": {"k8s:ns": text}, "spiffe_id": f"{S}/x"},
        {"name": "r", "match": {"k8s:ns": "*"}, "spiffe_id": f"{S}/{text}"},
        {"name": "r", "match": {"k8s:ns": "*"}, "spiffe_id": f"{S}/x", "dns_names": [text]},
    ):
        assert taken(lambda one=workload: agent(workloads=[one])) == taken(
            lambda one=workload: policy(workloads=[one])
        )
