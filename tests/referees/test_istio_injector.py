"""Istio's own injector on our template: `istioctl`, built from Istio's module.

Istio's templates change from release to release, and a patch that one takes can delete half of a
pod in the next. So the real engine decides: `istioctl manifest generate` makes the injector's
configuration from our file, `istioctl kube-inject` runs it.
"""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.support import need
from tests.support.go_program import GoProgram

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.timeout(3600)

ISTIO = need.ROOT / "deploy" / "overlays" / "istio"
ISTIOCTL = GoProgram(
    name="istioctl",
    package="istio.io/istio/istioctl/cmd/istioctl",
    modules=(
        # Release 1.29.1, and the API that it was built with.
        ("istio.io/istio", "v0.0.0-20260306174214-6991a379e1fc"),
        ("istio.io/api", "v1.29.0-rc.1.0.20260209142455-7fea5efd57ca"),
    ),
    seconds=3000,
    unlisted="github.com/openshift",
)
POD = """
apiVersion: v1
kind: Pod
metadata:
  name: web
  namespace: shop
  annotations: {inject.istio.io/templates: "%s"}
spec:
  serviceAccountName: web
  containers:
    - {name: app, image: registry.example/app:1}
"""
MOUNT = "/var/run/secrets/workload-spiffe-uds"


def istioctl(*arguments: str | Path) -> str:
    done = subprocess.run(
        [ISTIOCTL.binary(), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def manifests() -> list[dict[str, Any]]:
    made = istioctl("manifest", "generate", "-f", ISTIO / "istio-operator.yaml")
    return [each for each in yaml.load_all(made, Loader=yaml.CSafeLoader) if each]


def named(manifests: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    (found,) = (
        each for each in manifests if (each["kind"], each["metadata"]["name"]) == (kind, name)
    )
    return found


def injected(manifests: list[dict[str, Any]], folder: Path, templates: str) -> dict[str, Any]:
    injector = named(manifests, "ConfigMap", "istio-sidecar-injector")["data"]
    files = {
        "inject.yaml": injector["config"],
        "values.json": injector["values"],
        "mesh.yaml": named(manifests, "ConfigMap", "istio")["data"]["mesh"],
        "pod.yaml": POD % templates,
    }
    for name, content in files.items():
        (folder / name).write_text(content)
    made = istioctl(
        # With a revision it does not look for one in a cluster.
        *("kube-inject", "--revision", "default", "-f", folder / "pod.yaml"),
        *("--injectConfigFile", folder / "inject.yaml"),
        *("--valuesFile", folder / "values.json"),
        *("--meshConfigFile", folder / "mesh.yaml"),
    )
    spec: dict[str, Any] = next(yaml.load_all(made, Loader=yaml.CSafeLoader))["spec"]
    return spec


def test_the_template_replaces_one_volume_and_touches_nothing_else(
    manifests: list[dict[str, Any]], tmp_path: Path
) -> None:
    plain = injected(manifests, tmp_path, "sidecar")
    ours = injected(manifests, tmp_path, "sidecar,attested-sds")
    before = {volume["name"]: volume for volume in plain["volumes"]}
    after = {volume["name"]: volume for volume in ours["volumes"]}
    assert after.pop("workload-socket") == {
        "name": "workload-socket",
        "hostPath": {"path": "/run/attested-sds/node", "type": "Directory"},
    }
    assert before.pop("workload-socket") != {}
    assert after == before
    every = [*ours["containers"], *ours.get("initContainers", [])]
    assert all(container.get("image") for container in every)
    (proxy,) = (container for container in every if container["name"] == "istio-proxy")
    assert {"name": "workload-socket", "mountPath": MOUNT} in [
        {key: mount[key] for key in ("name", "mountPath")} for mount in proxy["volumeMounts"]
    ]
    ours["volumes"] = plain["volumes"] = []
    for spec in (ours, plain):
        spec.pop("securityContext", None)
    assert [each["name"] for each in every] == [
        each["name"] for each in [*plain["containers"], *plain.get("initContainers", [])]
    ]


def test_istiod_is_told_the_agents_account(manifests: list[dict[str, Any]]) -> None:
    (container,) = named(manifests, "Deployment", "istiod")["spec"]["template"]["spec"][
        "containers"
    ]
    told = {each["name"]: each.get("value") for each in container["env"]}
    assert told["CA_TRUSTED_NODE_ACCOUNTS"] == "attested-sds/attested-sds-agent"
