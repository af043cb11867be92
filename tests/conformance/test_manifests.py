"""deploy/: every kustomization builds, and every object is one that Kubernetes knows.

Fields and types are checked against the models of the official client library, which are made
from the API's own specification; the configuration files inside, against our own.
"""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
import yaml
from click.testing import CliRunner
from kubernetes_asyncio.client import models

from sds import cli
from sds.agent.config import AgentConfig
from sds.agent.node_settings import CsiSettings
from sds.attestation.guest.tsm import IN_A_CONTAINER, TSM_REPORTS
from sds.authority.istio_settings import IstioSettings
from sds.ca.config import AuthorityConfig, UpstreamSection
from sds.settings import yamlfile
from tests.support import need
from tests.support.process import output

if TYPE_CHECKING:
    from pathlib import Path

DEPLOY = need.ROOT / "deploy"
KUSTOMIZE = "sigs.k8s.io/kustomize/kustomize/v5@v5.7.1"
BUILD_SECONDS = 300.0
BUILDS = [
    "overlays/plain",
    "overlays/snp",
    "overlays/tdx",
    "overlays/istio",
    "sample",
    "sample-csi",
    "sample-policy",
    "components/older-kubelet",
    "components/cri",
    "components/csi",
    "components/local-kubelet",
    "components/monitoring",
]
NUMBERED = re.compile(r"(list|dict)(?:\[|\(str, )(.+?)[\])]")


async def build(folder: Path) -> list[dict[str, Any]]:
    """The objects of a kustomization."""
    if kubectl := shutil.which("kubectl"):
        command: list[str | Path] = [kubectl, "kustomize", folder]
    else:
        command = [await kustomize(), "build", folder]
    status, out, err = await output(command)
    assert status == 0, err
    return [each for each in yaml.safe_load_all(out) if each]


async def kustomize() -> Path:
    """kustomize from the Go module proxy, built into ``.tools/``."""
    program = need.ROOT / ".tools" / "kustomize"
    if not program.exists():
        environment = {"GOBIN": str(program.parent)}
        status, _, err = await output(
            [need.tool("go"), "install", KUSTOMIZE], env=environment, seconds=BUILD_SECONDS
        )
        if status != 0:
            need.missing(f"kubectl or {KUSTOMIZE} ({err[-300:]})")
    return program


@pytest.fixture
def deploy(tmp_path: Path) -> Path:
    """A copy, with the file that an operator adds, and the components put on the overlay."""
    copied = tmp_path / "deploy"
    shutil.copytree(DEPLOY, copied)
    (copied / "overlays/plain/config/authority-root.pem").write_text("")
    return copied


def with_component(deploy: Path, *names: str, overlay: str = "plain") -> Path:
    """A kustomization of an overlay and these components, in this order."""
    folder = deploy / "with-component"
    folder.mkdir(exist_ok=True)
    given = {
        "resources": [f"../overlays/{overlay}"],
        "components": [f"../{name}" for name in names],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(given))
    return folder


@pytest.mark.timeout(BUILD_SECONDS + 60)
@pytest.mark.parametrize("name", BUILDS)
async def test_every_object_is_what_kubernetes_expects(deploy: Path, name: str) -> None:
    folder = deploy / name
    if name.startswith("components/"):
        folder = with_component(deploy, name)
    objects = await build(folder)
    assert objects
    problems = [problem for each in objects for problem in wrong(each)]
    assert not problems, "\n".join(problems)


@pytest.mark.timeout(BUILD_SECONDS + 60)
async def test_components_make_the_same_in_every_order(deploy: Path) -> None:
    """`kustomize edit add component` appends: whoever adds one later has it last."""
    names = sorted(f"components/{path.name}" for path in (deploy / "components").iterdir())
    orders = [names, names[::-1]]
    first, second = [await build(with_component(deploy, *order, overlay="snp")) for order in orders]
    assert [comparable(each) for each in first] == [comparable(each) for each in second]
    (agent,) = [each for each in first if each["kind"] == "DaemonSet"]
    spec = agent["spec"]["template"]["spec"]
    assert "env" not in spec["containers"][0], "the same on every node"
    volumes = [each["name"] for each in spec["volumes"]]
    assert {"runtime", "kubelet-pods", "config", "tsm"} <= set(volumes)
    assert not any("configMap" in each for each in spec["volumes"])


def comparable(value: Any) -> Any:
    """The same for lists of the same things: their order means nothing where patches append."""
    if isinstance(value, dict):
        return {key: comparable(each) for key, each in value.items()}
    if isinstance(value, list):
        return sorted((comparable(each) for each in value), key=repr)
    return value


async def test_kustomize_changes_no_name_that_rules_hold(deploy: Path) -> None:
    """It takes a resourceName for a ConfigMap's where both are equal, and adds a hash."""
    objects = await build(deploy / "overlays/plain")
    accounts = {each["metadata"]["name"] for each in objects if each["kind"] == "ServiceAccount"}
    named = {
        name
        for each in objects
        if each["kind"] == "Role"
        for rule in each["rules"]
        for name in rule["resourceNames"]
    }
    assert named <= accounts


async def test_the_agent_has_no_power_that_is_not_named(deploy: Path) -> None:
    objects = await build(deploy / "overlays/plain")
    roles = {each["metadata"]["name"]: each for each in objects if each["kind"] == "ClusterRole"}
    granted = {
        (resource, verb)
        for rule in roles["attested-sds-agent"]["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert granted == {("nodes/pods", "get"), ("services", "list"), ("services", "watch")}
    for each in objects:
        if each["kind"] in {"DaemonSet", "Deployment", "StatefulSet"}:
            pod = each["spec"]["template"]["spec"]
            (container,) = pod["containers"]
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"]["drop"] == ["ALL"]
            agent = each["kind"] == "DaemonSet"
            assert context["capabilities"].get("add", []) == (["IPC_LOCK"] if agent else [])
            profile = (context if agent else pod["securityContext"])["seccompProfile"]
            assert profile == {"type": "RuntimeDefault"}


async def test_who_may_ask_for_tokens_may_ask_for_those_of_its_own_pod_only(deploy: Path) -> None:
    """A token names the node of the pod that it is bound to, and RBAC cannot say to which pod."""
    objects = await build(deploy / "overlays/plain")
    asking = {
        account
        for each in objects
        if each["kind"] in {"Role", "ClusterRole"}
        for rule in each["rules"]
        if "serviceaccounts/token" in rule.get("resources", ())
        for account in rule.get("resourceNames", ["every account"])
    }
    assert asking
    (policy,) = [each for each in objects if each["kind"] == "ValidatingAdmissionPolicy"]
    (binding,) = [each for each in objects if each["kind"] == "ValidatingAdmissionPolicyBinding"]
    assert binding["spec"] == {
        "policyName": policy["metadata"]["name"],
        "validationActions": ["Deny"],
    }
    spec = policy["spec"]
    assert spec["failurePolicy"] == "Fail"
    (resources,) = spec["matchConstraints"]["resourceRules"]
    assert (resources["resources"], resources["operations"]) == (
        ["serviceaccounts/token"],
        ["CREATE"],
    )
    (condition,), (validation,) = spec["matchConditions"], spec["validations"]
    listed = re.search(r"request\.name in \[(.*?)\]", condition["expression"])
    assert listed is not None
    assert set(re.findall(r"'(.+?)'", listed[1])) == asking
    assert "authentication.kubernetes.io/pod-uid" in validation["expression"]


async def test_the_csi_driver_holds_no_volume_of_another_driver(deploy: Path) -> None:
    """A container keeps the mounts that it found below its own mounts when it began.

    Those below ``pods`` go with their folders. Those below ``plugins`` do not, so the driver of
    such a volume could not give its device back.
    """
    objects = await build(with_component(deploy, "components/csi"))
    (agent,) = [each for each in objects if each["kind"] == "DaemonSet"]
    pod = agent["spec"]["template"]["spec"]
    hosts = [each for each in pod["volumes"] if "hostPath" in each]
    paths = {each["name"]: each["hostPath"]["path"] for each in hosts}
    kubelet = CsiSettings().kubelet_dir
    of_kubelet = {path for path in paths.values() if path.startswith(kubelet)}
    assert of_kubelet == {
        f"{kubelet}/pods",
        f"{kubelet}/plugins/{CsiSettings().driver}",
        f"{kubelet}/plugins_registry",
    }
    mounted = {each["name"]: each["mountPath"] for each in pod["containers"][0]["volumeMounts"]}
    assert {name: mounted[name] for name, path in paths.items() if path in of_kubelet} == {
        name: path for name, path in paths.items() if path in of_kubelet
    }


@pytest.mark.parametrize("overlay", ["snp", "tdx", "static-pod"])
async def test_evidence_is_not_mounted_below_a_containers_own_sys(
    deploy: Path, overlay: str
) -> None:
    """That is a sysfs without configfs, which takes no directory: no container would start."""
    if overlay == "static-pod":
        (file,) = (deploy / "guest" / "static-pod").iterdir()
        pods = [yaml.safe_load(file.read_text())["spec"]]
    else:
        objects = await build(deploy / "overlays" / overlay)
        kinds = {"DaemonSet", "Deployment", "StatefulSet"}
        pods = [each["spec"]["template"]["spec"] for each in objects if each["kind"] in kinds]
        assert len(pods) == len(kinds)
    for pod in pods:
        (container,) = pod["containers"]
        mounted = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
        assert not [path for path in mounted.values() if path.startswith(("/sys/", "/proc/"))]
        (reports,) = [
            each["name"]
            for each in pod["volumes"]
            if each.get("hostPath", {}).get("path") == str(TSM_REPORTS)
        ]
        assert mounted[reports] == str(IN_A_CONTAINER), "where the program looks for it"


async def test_a_pod_that_is_not_ready_stands_in_nobodys_way(deploy: Path) -> None:
    """Correcting a wrong configuration must be enough, and its pods must not hold up their nodes.

    By default a StatefulSet waits until a pod is ready before it replaces it by a corrected one,
    and a budget lets nobody evict pods that run and are not ready. A DaemonSet that tolerates
    everything has a pod on each Windows node, which is never ready, so no update would end.
    """
    objects = await build(deploy / "overlays/plain")
    templates = [each["spec"]["template"] for each in objects if "template" in each.get("spec", {})]
    assert len(templates) == 3
    for template in templates:
        assert template["spec"]["nodeSelector"] == {"kubernetes.io/os": "linux"}
    (root,) = [each["spec"] for each in objects if each["kind"] == "StatefulSet"]
    assert root["podManagementPolicy"] == "Parallel"
    budgets = [each["spec"] for each in objects if each["kind"] == "PodDisruptionBudget"]
    assert budgets
    for budget in budgets:
        assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


async def test_an_upgrade_can_leave_out_the_agents(deploy: Path) -> None:
    """They would restart together with the root, and could not know the old one."""
    page = (need.ROOT / "docs" / "kubernetes.md").read_text()
    (selector,) = re.findall(r'apply -k deploy/overlays/plain -l "(.+?)"', page)
    label, _, value = selector.partition("!=")
    left_out = [
        each["kind"]
        for each in await build(deploy / "overlays/plain")
        if each["metadata"].get("labels", {}).get(label) == value
    ]
    assert left_out == ["DaemonSet"]


async def test_agents_in_the_nodes_network_reach_the_authority(deploy: Path) -> None:
    """Most network plugins know a pod in the node's network by the node's address alone."""
    objects = await build(with_component(deploy, "components/local-kubelet"))
    found = {(each["kind"], each["metadata"]["name"]): each.get("spec", {}) for each in objects}
    assert found["DaemonSet", "attested-sds-agent"]["template"]["spec"]["hostNetwork"] is True
    (rule,) = found["NetworkPolicy", "attested-sds-issuer"]["ingress"]
    assert not rule.get("from"), "a selector of pods"
    assert rule["ports"] == [{"protocol": "TCP", "port": "grpc"}]
    (rule,) = found["NetworkPolicy", "attested-sds-root"]["ingress"]
    assert rule["from"], "issuing replicas have the network of pods"


async def test_the_istio_overlay_has_no_authority_of_ours(deploy: Path) -> None:
    objects = await build(deploy / "overlays/istio")
    kinds = {each["kind"] for each in objects}
    assert not kinds & {"StatefulSet", "Deployment", "PodDisruptionBudget", "Service"}
    (agent,) = [each for each in objects if each["kind"] == "DaemonSet"]
    mounts = agent["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    config = yamlfile.load_file(DEPLOY / "overlays/istio/config/agent.yaml", AgentConfig)
    assert isinstance(config.authority, IstioSettings)
    for file in (config.authority.root, config.authority.token):
        assert str(file.parent) in {mount["mountPath"] for mount in mounts}


@pytest.mark.parametrize("overlay", ["plain", "snp", "tdx"])
def test_configuration_files_hold(overlay: str) -> None:
    folder = DEPLOY / "overlays" / overlay / "config"
    agent = yamlfile.load_file(folder / "agent.yaml", AgentConfig)
    assert agent.rules.rules
    for name in ("issuer", "root"):
        yamlfile.load_file(folder / f"{name}.yaml", AuthorityConfig)


@pytest.mark.parametrize("overlay", ["snp", "tdx"])
def test_what_an_issuer_signs_lives_as_long_as_it_may(overlay: str) -> None:
    """An issuer cuts certificates to its own, and keeps that while a new root settles."""
    folder = DEPLOY / "overlays" / overlay / "config"
    root, issuer = (
        yamlfile.load_file(folder / f"{name}.yaml", AuthorityConfig) for name in ("root", "issuer")
    )
    (given,) = [group.authority for group in root.rules().nodes if group.authority is not None]
    assert isinstance(issuer.signer, UpstreamSection)
    life = min(given.max_lifetime, issuer.signer.lifetime)
    assert life / 2 > 2 * issuer.max_lifetime


async def test_tdx_machines_have_the_collateral_by_which_quotes_are_judged(deploy: Path) -> None:
    folder = DEPLOY / "overlays/tdx/config"
    agent = yamlfile.load_file(folder / "agent.yaml", AgentConfig)
    issuer, root = (
        yamlfile.load_file(folder / f"{name}.yaml", AuthorityConfig) for name in ("issuer", "root")
    )
    assert isinstance(issuer.signer, UpstreamSection)
    above = issuer.signer.verification
    for section in (agent.verification, issuer.verification, above, root.verification):
        assert section is not None
        assert section.fetch is not None
        assert section.fetch.fmspcs
        assert section.collateral is not None
        assert section.collateral.is_relative_to("/tmp"), "the only folder that can be written"
    assert agent.verification.fetch is not None
    asked = urlsplit(agent.verification.fetch.pcs)
    assert issuer.collateral is not None
    objects = {
        (each["kind"], each["metadata"]["name"]): each
        for each in await build(deploy / "overlays/tdx")
    }
    name = "attested-sds-issuer"
    assert asked.hostname == f"{name}.attested-sds.svc"
    service = {one["port"]: one["targetPort"] for one in objects["Service", name]["spec"]["ports"]}
    (container,) = objects["Deployment", name]["spec"]["template"]["spec"]["containers"]
    ports = {one["name"]: one["containerPort"] for one in container["ports"]}
    assert ports[service[asked.port]] == issuer.collateral.address().port
    (rule,) = objects["NetworkPolicy", name]["spec"]["ingress"]
    assert service[asked.port] in {one["port"] for one in rule["ports"]}


async def test_the_sample_with_a_policy_trusts_no_name_of_a_service(deploy: Path) -> None:
    folder = deploy / "sample-policy"
    files = [
        yaml.safe_load(each["data"]["envoy.yaml"])
        for each in await build(folder)
        if each["kind"] == "ConfigMap"
    ]
    contexts = {found for file in files for found in validation_contexts(file)}
    assert contexts == {"inbound", "outbound:spiffe://example.org/ns/shop/sa/orders"}
    result = CliRunner().invoke(cli.main, ["policy", "lint", str(folder / "policy.yaml")])
    assert result.exit_code == 0, result.output
    assert "error" not in result.output.replace("0 errors", "")
    said = [line for line in result.output.splitlines() if line.startswith("warning: ")]
    for_the_reader = ("not_after", "minimum_tcb", "zeros of an example")  # to be filled in
    assert all(any(what in line for what in for_the_reader) for line in said), said


def validation_contexts(value: Any) -> set[str]:
    """The SDS names of all validation contexts in an Envoy configuration; SAN matchers fail."""
    if isinstance(value, list):
        return set[str]().union(*map(validation_contexts, value))
    if not isinstance(value, dict):
        return set()
    assert "auto_san_validation" not in value
    assert "combined_validation_context" not in value
    here = value.get("validation_context_sds_secret_config")
    found = {here["name"]} if here else set()
    return found.union(*map(validation_contexts, value.values()))


def wrong(document: dict[str, Any]) -> list[str]:
    """What the API server would refuse or drop, by the models."""
    group, _, version = document["apiVersion"].rpartition("/")
    kind = document["kind"]
    del group
    model = f"{version[0].upper()}{version[1:]}{kind}"
    if not hasattr(models, model):
        return [f"{document['apiVersion']} {kind} is unknown"]
    return check(document, model, f"{kind} {document['metadata']['name']}")


def check(value: Any, kind: str, where: str) -> list[str]:
    if numbered := NUMBERED.fullmatch(kind):
        container, inner = (list, value) if numbered[1] == "list" else (dict, value)
        if not isinstance(value, container):
            return [f"{where}: {type(value).__name__} where {kind} belongs"]
        pairs = enumerate(inner) if isinstance(inner, list) else inner.items()
        return [each for key, one in pairs for each in check(one, numbered[2], f"{where}[{key}]")]
    simple: Any = {"str": str, "int": int, "bool": bool, "float": (int, float)}.get(kind)
    if simple is not None:
        good = isinstance(value, simple) and (kind == "bool" or not isinstance(value, bool))
        return [] if good else [f"{where}: {value!r} is no {kind}"]
    model = getattr(models, kind, None)
    if model is None or not isinstance(value, dict):  # IntOrString, datetime, object
        return [] if model is None else [f"{where}: {value!r} where {kind} belongs"]
    names = {json: name for name, json in model.attribute_map.items()}
    problems = []
    for key, each in value.items():
        if key not in names:
            problems.append(f"{where}.{key}: {kind} has no such field")
        else:
            problems += check(each, model.openapi_types[names[key]], f"{where}.{key}")
    return problems


def test_istios_two_installers_get_the_same_template() -> None:
    folder = need.ROOT / "deploy" / "overlays" / "istio"
    helm = yaml.safe_load((folder / "injection-template.yaml").read_text())
    operator = yaml.safe_load((folder / "istio-operator.yaml").read_text())["spec"]["values"]
    assert operator["sidecarInjectorWebhook"] == helm["sidecarInjectorWebhook"]
    template = yaml.safe_load(helm["sidecarInjectorWebhook"]["templates"]["attested-sds"])
    # A sidecar of Istio is an init container since it can be one: naming it under containers adds
    # a second one without an image. And "$patch: replace" in a list replaces the whole list.
    assert template == {
        "spec": {
            "volumes": [
                {
                    "name": "workload-socket",
                    "$retainKeys": ["name", "hostPath"],
                    "hostPath": {"path": "/run/attested-sds/node", "type": "Directory"},
                }
            ]
        }
    }
    # istiod is told the account that the overlay's DaemonSet runs as.
    base = folder.parent.parent / "base" / "agent.yaml"
    (daemons,) = (
        each for each in yaml.safe_load_all(base.read_text()) if each["kind"] == "DaemonSet"
    )
    account = daemons["spec"]["template"]["spec"]["serviceAccountName"]
    namespace = yaml.safe_load((folder / "kustomization.yaml").read_text())["namespace"]
    assert operator["pilot"]["env"]["CA_TRUSTED_NODE_ACCOUNTS"] == f"{namespace}/{account}"


def test_the_istio_overlay_asks_for_no_dns_names() -> None:
    """Istio's authority puts none into certificates, and the agent refuses what it cannot get."""
    config = need.ROOT / "deploy" / "overlays" / "istio" / "config" / "agent.yaml"
    for rule in yaml.safe_load(config.read_text())["workloads"]:
        assert rule["service_dns_names"] == []
        assert not rule.get("dns_names")
