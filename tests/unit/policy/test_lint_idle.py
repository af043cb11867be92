"""``sds policy lint`` about what a policy says in vain, and the same rules in an agent's file."""

from __future__ import annotations

from typing import Any

import pytest

from sds.agent.build import warnings as agent_warnings
from sds.agent.config import AgentConfig
from sds.policy.document import PolicyDocument
from sds.policy.lint_idle import idle
from sds.workload.mapping import WorkloadRule
from sds.workload.shadowed_rules import shadowed
from tests.support.policies import document

S = "spiffe://example.org"
GRANTS = [{"spiffe_ids": f"{S}/**"}]


def found(**fields: Any) -> list[str]:
    return list(idle(PolicyDocument.model_validate(document(**fields))))


def group(**fields: Any) -> dict[str, Any]:
    return {"name": "g", "grants": GRANTS, **fields}


def rule(name: str, match: dict[str, Any], path: str = "a") -> dict[str, Any]:
    return {"name": name, "match": match, "spiffe_id": f"{S}/{path}"}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"kinds": ["sev-snp"], "nodes": ["node-1"]}, "only Kubernetes tokens have node names"),
        (
            {"kinds": ["kubernetes-token"], "measurements": ["ab" * 48]},
            "a Kubernetes token has no measurement",
        ),
        ({"measurements": ["ab" * 48], "nodes": ["n*"]}, "no other evidence a node's name"),
        ({"kinds": ["kubernetes-token"], "nodes": ["node-1"]}, None),
        ({"kinds": ["sev-snp"], "measurements": ["ab" * 48]}, None),
        ({"nodes": ["node-1"]}, None),
    ],
)
def test_groups_that_no_machine_is_of(fields: dict[str, Any], said: str | None) -> None:
    lines = found(nodes=[group(**fields)])
    assert len(lines) == (said is not None)
    assert said is None or said in lines[0]


@pytest.mark.parametrize(
    ("first", "second", "hidden"),
    [
        ({"k8s:ns": "*"}, {"k8s:ns": "shop"}, True),
        ({"k8s:ns": "sh*"}, {"k8s:ns": "sho*", "k8s:sa": "web"}, True),
        ({"k8s:ns": ["shop", "ops"]}, {"k8s:ns": ["ops", "shop"]}, True),
        ({"k8s:ns": "shop"}, {"k8s:ns": ["shop", "ops"]}, False),
        ({"k8s:ns": "shop"}, {"k8s:ns": "sh*"}, False),
        ({"k8s:ns": "shop", "k8s:sa": "web"}, {"k8s:ns": "shop"}, False),
        ({"k8s:ns": "shop"}, {"unix:uid": "0"}, False),
    ],
)
def test_a_rule_behind_a_wider_one(
    first: dict[str, Any], second: dict[str, Any], *, hidden: bool
) -> None:
    rules = [rule("wide", first), rule("narrow", second)]
    lines = list(shadowed([WorkloadRule.model_validate(one) for one in rules]))
    assert [line.startswith("rule narrow never decides: wide comes") for line in lines] == (
        [True] * hidden
    )
    said = found(workloads=rules, nodes=[])
    assert [line.removeprefix("workloads: ") for line in said] == lines
    assert found(workloads=rules, nodes=[], matching="all") == []
    config = {
        "trust_domain": "example.org",
        "run_dir": "/run/x",
        "authority": {"addresses": ["a:1"]},
        "node": {"attestors": ["unix", "kubernetes"]},
        "workloads": rules,
    }
    told = agent_warnings(AgentConfig.model_validate(config))
    assert [line for line in told if "never decides" in line] == lines


def test_names_that_no_node_may_ask_for() -> None:
    nodes = [group(nodes=["n"], grants=[{"spiffe_ids": f"{S}/shop/*"}])]
    match = {"k8s:ns": "shop"}
    (line,) = found(nodes=nodes, workloads=[rule("r", match, "ops/a")])
    assert line.startswith(f"workloads: no node may ask for the name that r gives, {S}/ops/a")
    assert found(nodes=nodes, workloads=[rule("r", match, "shop/a")]) == []
    assert found(nodes=nodes, workloads=[rule("r", match, "shop/{pod_name}")]) == []


def test_services_of_unknown_trust_domains() -> None:
    (line,) = found(services={"api": [f"{S}/a", "spiffe://other.example/a"]})
    assert line.startswith("services: api: spiffe://other.example/a is in a trust domain")


def test_a_minimum_of_a_product_that_is_not_accepted() -> None:
    snp = {"products": ["milan"], "minimum_tcb": {"milan": {"snp": 1}, "genoa": {"snp": 1}}}
    (line,) = found(reference_values={"agents": {"snp": snp}})
    assert "snp.minimum_tcb of genoa is for nobody" in line
    assert found(reference_values={"agents": {"snp": {**snp, "products": []}}}) == []
