"""``sds policy lint`` about evidence and confidential guests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from sds import cli
from tests.support.policies import document, yaml_bytes

if TYPE_CHECKING:
    from pathlib import Path

S = "spiffe://example.org"
GUESTS = {"name": "guests", "measurements": ["ab" * 48], "grants": [{"spiffe_ids": f"{S}/ns/**"}]}
NODES = {"name": "nodes", "kinds": ["kubernetes-token"], "grants": [{"spiffe_ids": f"{S}/ns/**"}]}
DIGEST = "sha256:" + "ab" * 32
WINDOW = {"not_before": "2026-01-01T00:00:00Z", "not_after": "2026-01-20T00:00:00Z"}


def lint(folder: Path, **fields: Any) -> tuple[int, str]:
    file = folder / "policy.yaml"
    file.write_bytes(yaml_bytes(document(**{**WINDOW, **fields})))
    arguments = ["policy", "lint", str(file), "--at", "2026-01-02T00:00:00Z"]
    result = CliRunner().invoke(cli.main, arguments)
    assert "Traceback" not in result.output
    return result.exit_code, result.output


def rule(spiffe_id: str = "", **match: str) -> dict[str, Any]:
    name = spiffe_id or "spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}"
    return {
        "name": "pods",
        "match": {k.replace("_", ":", 1): v for k, v in match.items()},
        "spiffe_id": name,
    }


@pytest.mark.parametrize(
    ("nodes", "rules", "wrong"),
    [
        ([GUESTS], [rule(k8s_ns="*")], True),
        ([GUESTS], [rule(k8s_ns="*", k8s_sa="web")], True),
        ([GUESTS], [rule(f"{S}/ns/a/sa/b", k8s_sa="web")], True),
        ([NODES, GUESTS], [rule(k8s_ns="*")], True),
        # Whoever writes a pod into etcd writes these too, or every pod has them.
        ([GUESTS], [rule(k8s_ns="*", unix_uid="1")], True),
        ([GUESTS], [rule(k8s_ns="*", socket_name="node")], True),
        ([GUESTS], [rule(k8s_ns="*", **{"cri_container-name": "web"})], True),
        ([GUESTS], [rule(k8s_ns="*", **{"cri_image-config": DIGEST})], False),
        ([GUESTS], [rule(k8s_ns="*", **{"cri_pod-digest": DIGEST})], False),
        ([GUESTS], [rule(f"{S}/ns/a/sa/b", unix_uid="1")], False),  # perhaps of the guest itself
        ([GUESTS], [rule("spiffe://{trust_domain}/ns/x", socket_name="x")], False),
        ([GUESTS], [rule(f"{S}/other/{{namespace}}", k8s_ns="*")], False),
        ([NODES], [rule(k8s_ns="*")], False),
        ([], [rule(k8s_ns="*")], False),
    ],
)
def test_rules_of_guests_that_rest_on_claims_alone_are_errors(
    tmp_path: Path, nodes: list[Any], rules: list[Any], *, wrong: bool
) -> None:
    status, text = lint(tmp_path, nodes=nodes, workloads=rules)
    assert status == int(wrong), text
    assert ("error: workloads: pods rests on the API server's claims alone" in text) is wrong


@pytest.mark.parametrize(
    ("rules", "more", "said"),
    [
        ([rule(unix_uid="1")], [rule(k8s_ns="*")], True),
        ([rule(unix_uid="1", unix_path="/bin/x")], [rule(**{"cri_pod-digest": DIGEST})], True),
        ([rule(**{"cri_container-name": "web"})], [], True),
        ([rule(unix_uid="1", k8s_ns="a")], [rule(k8s_ns="*")], False),
        ([rule(unix_uid="1", unix_sha256="ab" * 32)], [rule(k8s_ns="*")], False),
        ([rule(unix_uid="1")], [], False),  # nothing says that there are pods
    ],
)
def test_rules_that_any_pod_can_satisfy_are_warned_of(
    tmp_path: Path, rules: list[Any], more: list[Any], *, said: bool
) -> None:
    others = [{**each, "name": f"other{at}"} for at, each in enumerate(more)]
    _, text = lint(tmp_path, nodes=[NODES], workloads=[*rules, *others])
    assert ("rule pods: the author of a pod chooses all that it asks for" in text) is said, text


def test_names_from_claims_and_long_windows_are_warned_of_in_guests(tmp_path: Path) -> None:
    mixed = [rule(k8s_ns="*", **{"cri_pod-digest": DIGEST})]
    _, text = lint(tmp_path, nodes=[GUESTS], workloads=mixed, not_after="2026-03-01T00:00:00Z")
    assert "is filled from the API server's claims (namespace, service_account)" in text
    assert "more than 31 days" in text
    _, text = lint(tmp_path, nodes=[NODES], workloads=mixed, not_after="2026-03-01T00:00:00Z")
    assert "31 days" not in text
    assert "API server's claims" not in text


SNP = {"products": ["genoa"], "minimum_tcb": {"genoa": {"snp": 1}}}
STRICT_TDX = {
    "rtmr1": ["ab" * 48],
    "minimum_tcb_evaluation_number": 17,
    "require_exchange_key": True,
}


@pytest.mark.parametrize(
    ("kinds", "values", "said"),
    [
        ([], {}, ["snp names no minimum_tcb"]),
        ([], {"snp": SNP}, []),
        # A product that no minimum names is accepted with any firmware.
        ([], {"snp": SNP | {"products": []}}, ["names no minimum_tcb of milan, turin"]),
        ([], {"snp": SNP | {"products": ["genoa", "turin"]}}, ["no minimum_tcb of turin"]),
        ([], {"snp": {"minimum_firmware": [1, 55, 1]}}, []),
        (["sev-snp"], {"snp": {**SNP, "permit_debug": True}}, ["snp.permit_debug"]),
        (
            ["sev-snp"],
            {"snp": {**SNP, "csp_ids": ["aws"]}},
            ["on AWS the launch measurement covers the firmware only"],
        ),
        (
            ["sev-snp"],
            {"snp": {**SNP, "csp_ids": ["aws"], "host_data": ["ab" * 32]}},
            [],
        ),
        (
            ["tdx"],
            {},
            ["tdx names no RTMR", "minimum_tcb_evaluation_number", "require_exchange_key"],
        ),
        (["tdx"], {"tdx": STRICT_TDX}, []),
        (
            ["azure-snp-vtpm"],
            {},
            ["minimum_tcb", "whatever its PCRs are", "names no measurements of its own"],
        ),
        (
            ["azure-snp-vtpm"],
            {
                "snp": SNP,
                "others": {
                    "azure-snp-vtpm": {"pcrs": {"4": ["ab" * 32]}, "measurements": ["ab" * 48]}
                },
            },
            [],
        ),
        (
            ["azure-snp-vtpm"],
            {
                "snp": SNP,
                "others": {
                    "azure-snp-vtpm": {
                        "pcrs": {"4": ["ab" * 32]},
                        "measurements": ["ab" * 48],
                        "require_secure_boot": True,
                    }
                },
            },
            ["name PCR 7"],
        ),
        (
            ["azure-snp-vtpm"],
            {
                "snp": SNP,
                "others": {
                    "azure-snp-vtpm": {
                        "pcrs": {"7": ["ab" * 32]},
                        "measurements": ["ab" * 48],
                        "require_secure_boot": True,
                    }
                },
            },
            [],
        ),
        (["tpm"], {"others": {"tpm": {"aks": ["ab" * 32]}}}, ["whatever its PCRs are"]),
        (["tdx"], {"tdx": {**STRICT_TDX, "permit_debug": True}}, ["tdx.permit_debug"]),
        (["tdx"], {"tdx": {**STRICT_TDX, "tcb_statuses": ["OutOfDate"]}}, ["OutOfDate accepts"]),
        (
            [],
            {"tdx": {"minimum_tcb_evaluation_number": 17}},
            ["tdx names no RTMR", "require_exchange_key"],
        ),
    ],
)
def test_evidence_that_proves_little(
    tmp_path: Path, kinds: list[str], values: dict[str, Any], said: list[str]
) -> None:
    for role in ("agents", "authorities"):
        group = {**GUESTS, "kinds": kinds}
        status, text = lint(tmp_path, nodes=[group], reference_values={role: values})
        assert status == 0
        told = [
            line
            for line in text.splitlines()
            if f"reference_values.{role}" in line and "can pose" not in line
        ]
        assert len(told) == len(said), text
        for words in said:
            assert words in text


@pytest.mark.parametrize(
    ("nodes", "names", "warned"),
    [
        ([GUESTS], ["*.shop.svc"], True),
        ([GUESTS], ["{container_name}.shop.svc"], True),
        ([GUESTS], ["orders.shop.svc"], False),
        ([GUESTS], [], False),
        ([NODES], ["*.shop.svc"], False),
    ],
)
def test_names_of_services_in_guests_are_warned_of(
    tmp_path: Path, nodes: list[Any], names: list[str], *, warned: bool
) -> None:
    match = {"k8s_ns": "a", "cri_pod-digest": DIGEST}
    one = rule(f"{S}/ns/a/sa/b", **match) | {"service_dns_names": names}
    status, text = lint(tmp_path, nodes=nodes, workloads=[one])
    assert status == 0
    assert ("moves such a name to another pod" in text) is warned, text


def test_registers_in_a_group_count(tmp_path: Path) -> None:
    group = {**GUESTS, "kinds": ["tdx"], "attributes": {"rtmr2": ["ab" * 48]}}
    values = {"tdx": {"minimum_tcb_evaluation_number": 17}}
    _, text = lint(tmp_path, nodes=[group], reference_values={"agents": values})
    assert "RTMR" not in text


ISSUERS = {"name": "issuers", "measurements": ["cd" * 48], "authority": {"path_length": 0}}


@pytest.mark.parametrize(
    ("agents", "lost"),
    [
        (None, []),
        ([], []),
        (["ab" * 48, "cd" * 48], []),
        (["ab" * 48], ["nodes: issuers names measurements", "issuing replicas ask the root"]),
        (["cd" * 48], ["nodes: guests names measurements", "(agents ask)"]),
    ],
)
def test_groups_that_the_reference_values_of_agents_refuse(
    tmp_path: Path, agents: list[str] | None, lost: list[str]
) -> None:
    values = {} if agents is None else {"agents": {"measurements": agents}}
    _, text = lint(tmp_path, nodes=[GUESTS, ISSUERS], reference_values=values)
    for each in lost:
        assert each in text
    assert text.count("that reference_values.agents does not accept") == len(lost) // 2


def test_dns_names_from_claims_are_warned_of_in_guests(tmp_path: Path) -> None:
    given = {**rule(f"{S}/ns/pay"), "match": {"cri:pod-digest": "sha256:" + "ab" * 32}}
    given["dns_names"] = ["{namespace}.example.org"]
    _, text = lint(tmp_path, nodes=[GUESTS], workloads=[given])
    assert "the name that pods gives is filled from the API server's claims (namespace)" in text


@pytest.mark.parametrize(("digits", "noticed"), [("00", True), ("01", False)])
def test_the_zeros_of_an_example_are_noticed(tmp_path: Path, digits: str, *, noticed: bool) -> None:
    values = {"authorities": {"measurements": [digits * 48]}}
    guests = {**GUESTS, "measurements": ["ab" * 48, digits * 48]}
    _, text = lint(tmp_path, nodes=[guests], reference_values=values)
    assert ("nodes: guests names the zeros of an example" in text) is noticed
    said = "warning: reference_values.authorities.measurements has the zeros of an example"
    assert (said in text) is noticed


@pytest.mark.parametrize(
    ("authorities", "warned"),
    [({}, True), ({"measurements": ["ab" * 48]}, False), (None, False)],
)
def test_authorities_that_may_be_any_machine_are_noticed(
    tmp_path: Path, authorities: dict[str, Any] | None, *, warned: bool
) -> None:
    values = {} if authorities is None else {"authorities": authorities}
    _, text = lint(tmp_path, reference_values=values)
    assert ("can pose as the authority" in text) is warned
