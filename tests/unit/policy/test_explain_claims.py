"""``sds policy explain`` says which parts of a rule are claims of kubelet and API server."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from sds import cli
from tests.support.policies import document, yaml_bytes

if TYPE_CHECKING:
    from pathlib import Path

S = "spiffe://example.org"
POD = {"k8s:ns": "shop", "k8s:sa": "pay"}
RESTS = "workloads: rule pay rests on claims of kubelet and API server"
FILLS = "workloads: rule pay fills its names from claims of kubelet and API server: "


def claim_lines(folder: Path, caller: dict[str, str], **rule: Any) -> list[str]:
    """What ``explain`` says of claims when a caller with these selectors asks."""
    given = {"name": "pay", "match": caller, "spiffe_id": f"{S}/pay", **rule}
    other = {"name": "other", "match": {"k8s:ns": "other"}, "spiffe_id": f"{S}/other"}
    file = folder / "policy.yaml"
    file.write_bytes(yaml_bytes(document(workloads=[given, other], matching="all")))
    asked = [word for pair in caller.items() for word in ("--caller", "=".join(pair))]
    words = ["policy", "explain", str(file), *asked, "--output", "json"]
    result = CliRunner().invoke(cli.main, words)
    assert result.exit_code == 0, result.output
    return [line for line in json.loads(result.stdout)["because"] if "claims" in line]


@pytest.mark.parametrize(
    ("caller", "said"),
    [
        (POD, [f"{RESTS} alone: k8s:ns, k8s:sa"]),
        ({**POD, "k8s:image-digest": "sha256:" + "ab" * 32}, None),
        (
            {**POD, "k8s:pod-label:tier": "back"},
            [f"{RESTS} alone: k8s:ns, k8s:pod-label:tier, k8s:sa"],
        ),
        ({**POD, "cri:pod-digest": "sha256:" + "ab" * 32}, [f"{RESTS}: k8s:ns, k8s:sa"]),
        ({**POD, "unix:uid": "1000"}, [f"{RESTS}: k8s:ns, k8s:sa"]),
        ({"cri:pod-digest": "sha256:" + "ab" * 32}, []),
        ({"unix:uid": "1000", "socket:name": "pay"}, []),
    ],
)
def test_what_a_rule_matches(
    tmp_path: Path, caller: dict[str, str], said: list[str] | None
) -> None:
    if said is None:
        said = [f"{RESTS} alone: k8s:image-digest, k8s:ns, k8s:sa"]
    assert claim_lines(tmp_path, caller) == said


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"spiffe_id": f"{S}/{{namespace}}/{{service_account}}"}, "namespace, service_account"),
        ({"spiffe_id": "spiffe://{trust_domain}/{uid}"}, ""),
        ({"dns_names": ["{namespace}.example.org", "pay.example.org"]}, "namespace"),
        (
            {"spiffe_id": f"{S}/{{namespace}}", "dns_names": ["{namespace}.{pod_label:tier}.org"]},
            "namespace, pod_label:tier",
        ),
    ],
)
def test_what_fills_the_names_of_a_rule(tmp_path: Path, rule: dict[str, Any], said: str) -> None:
    caller = {**POD, "k8s:pod-label:tier": "back", "unix:uid": "1000"}
    lines = [line for line in claim_lines(tmp_path, caller, **rule) if "fills" in line]
    assert lines == ([FILLS + said] if said else [])


def test_rules_that_do_not_match_are_not_spoken_of(tmp_path: Path) -> None:
    (line,) = claim_lines(tmp_path, POD)
    assert "other" not in line
