"""Values of selectors that no caller can show are noticed where they are written."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

import pytest

from sds.agent import build
from sds.agent.config import AgentConfig
from sds.policy import lint
from sds.policy.document import PolicyDocument
from sds.workload.mapping import WorkloadRule
from sds.workload.selector_forms import impossible_values
from tests.support.policies import document

DIGEST = hashlib.sha256(b"").hexdigest()


def found(kind: str, value: str | list[str]) -> list[str]:
    rule = {"name": "web", "match": {kind: value}, "spiffe_id": "spiffe://example.org/web"}
    return list(impossible_values([WorkloadRule.model_validate(rule)]))


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("unix:uid", "0"),
        ("unix:uid", "4294967295"),
        ("unix:gid", "10*"),
        ("unix:gid", "*"),
        ("unix:sha256", DIGEST),
        ("unix:sha256", f"{DIGEST[:9]}*"),
        ("k8s:image-digest", f"sha256:{DIGEST}"),
        ("cri:pod-digest", ["sha*", "sha256:*", f"sha256:{DIGEST[:63]}*", f"sha256:{DIGEST}*"]),
        ("k8s:ns", "root"),
        ("k8s:pod-label:app", "root"),
    ],
)
def test_what_a_caller_may_show(kind: str, value: str | list[str]) -> None:
    assert found(kind, value) == []


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        ("unix:uid", "root", "write a number"),
        ("unix:supplementary-gid", "envoy*", "write a number"),
        ("unix:sha256", f"sha256:{DIGEST}", "64 lower-case hexadecimal digits"),
        ("unix:sha256", DIGEST.upper(), "64 lower-case hexadecimal digits"),
        ("k8s:image-digest", DIGEST, "sha256: and 64"),
        ("k8s:image-digest", "sha256:…", "sha256: and 64"),
        ("cri:container-digest", f"sha256:{DIGEST}0*", "sha256: and 64"),
        ("cri:pod-digest", ["sha256:*", "app:1.2"], "no caller has cri:pod-digest 'app:1.2'"),
    ],
)
def test_what_no_caller_can_show(kind: str, value: str | list[str], words: str) -> None:
    (said,) = found(kind, value)
    assert words in said
    assert said.startswith("rule web: no caller has")


def test_the_agent_and_sds_policy_lint_say_it() -> None:
    rule = {
        "name": "web",
        "match": {"unix:uid": "root"},
        "spiffe_id": "spiffe://example.org/web",
    }
    policy = PolicyDocument.model_validate(document(1, workloads=[rule]))
    said = lint.warnings(policy, now=datetime(2026, 1, 1, tzinfo=UTC))
    assert any("workloads: rule web: no caller has unix:uid 'root'" in line for line in said)
    config = AgentConfig.model_validate(
        {
            "trust_domain": "example.org",
            "run_dir": "/run/x",
            "authority": {"addresses": ["ca:1"]},
            "node": {"attestors": ["unix"]},
            "workloads": [rule],
        }
    )
    assert any("rule web: no caller has unix:uid 'root'" in line for line in build.warnings(config))


@pytest.mark.parametrize(
    ("attestors", "match", "said"),
    [
        (["unix", "kubernetes"], {"unix:uid": "1"}, True),
        (["unix", "cri"], {"unix:uid": "1", "unix:path": "/bin/x"}, True),
        (["unix", "kubernetes"], {"unix:uid": "1", "k8s:ns": "shop"}, False),
        (["unix"], {"unix:uid": "1"}, False),
    ],
)
def test_the_agent_says_which_rules_any_pod_can_satisfy(
    attestors: list[str], match: dict[str, str], *, said: bool
) -> None:
    config = AgentConfig.model_validate(
        {
            "trust_domain": "example.org",
            "run_dir": "/run/x",
            "authority": {"addresses": ["ca:1"]},
            "node": {"attestors": attestors},
            "workloads": [{"name": "web", "match": match, "spiffe_id": "spiffe://example.org/web"}],
        }
    )
    told = "rule web: the author of a pod chooses all that it asks for"
    assert any(told in line for line in build.warnings(config)) is said
