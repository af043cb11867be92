"""The agent's pod of the measured configuration, under the rules of ``sds admission``."""

from __future__ import annotations

import copy
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from click.testing import CliRunner

from sds.admission.judge import AdmittedSandbox, admit_container, admit_sandbox
from sds.cli import main
from sds.workload.cri.image import ImageContent, read_image
from sds.workload.cri.prediction import NodeProfile, predicted_containers, predicted_sandbox
from sds.workload.cri.settings import PodContents
from tests.conformance.test_manifests import build, wrong
from tests.support import need
from tests.support.containerd import image_archive
from tests.support.refusals import refused

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

AGENT, PAUSE = "attested-sds", "registry.k8s.io/pause:3.10"
NODE = NodeProfile(sandbox_image=PAUSE, seccomp_runtime_default="5e" * 32)
Edit = "Callable[[dict[str, Any]], object]"


async def agent_of(overlay: str, folder: Path) -> dict[str, Any]:
    """The spec of the agent's pod, as the shipped files give it."""
    shutil.copytree(need.ROOT / "deploy", folder / "deploy")
    components = ("cri", "measured-configuration", "admitted-agent")
    made = folder / "deploy" / "made"
    made.mkdir()
    (made / "kustomization.yaml").write_text(
        yaml.safe_dump(
            {
                "resources": [f"../overlays/{overlay}"],
                "components": [f"../components/{each}" for each in components],
            }
        )
    )
    objects = await build(made)
    assert [problem for each in objects for problem in wrong(each)] == []
    assert "ConfigMap" not in {each["kind"] for each in objects}
    (daemon,) = (each for each in objects if each["kind"] == "DaemonSet")
    spec: dict[str, Any] = daemon["spec"]["template"]["spec"]
    return spec


class Node:
    """Images, and what ``sds admission`` lists under ``always``."""

    def __init__(self, folder: Path, spec: dict[str, Any]) -> None:
        self.images: dict[str, ImageContent] = {}
        words = ["policy", "pod", str(folder / "pod.yaml"), "--node", str(folder / "node.yaml")]
        for name, config in ((AGENT, {"Entrypoint": ["sds"]}), (PAUSE, {"Cmd": ["/pause"]})):
            archive = folder / f"{len(self.images)}.tar"
            image_archive(archive, name, config, {})
            self.images[name] = read_image(archive)
            words += ["--image", f"{name}={archive}"]
        (folder / "node.yaml").write_text(yaml.safe_dump(NODE.model_dump(mode="json")))
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "agent"}, "spec": spec}
        (folder / "pod.yaml").write_text(yaml.safe_dump(pod))
        said = CliRunner().invoke(main, words, catch_exceptions=False)
        assert said.exit_code == 0, said.output
        self.always = tuple(map(PodContents.model_validate, yaml.safe_load(said.stdout)))

    def admit(self, spec: dict[str, Any]) -> None:
        """Start the pod, one container after the other."""
        sandbox = predicted_sandbox(spec, self.images[PAUSE], NODE)
        admit_sandbox(sandbox, self.always, about="")
        held = AdmittedSandbox(
            pod_uid="u",
            digest=sandbox.digest,
            unmeasured=tuple(sorted(sandbox.unmeasured)),
            pid_file="",
            admitted_at=0.0,
        )
        for name, form in predicted_containers(spec, self.images, NODE).items():
            held = held.with_container(name, name, form)
            admit_container(held, self.always, what=name, about="")


def volume(spec: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(each for each in spec["volumes"] if each["name"] == name)
    return found


def agent(spec: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = spec["containers"][0]
    return found


EDITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "other arguments": lambda spec: agent(spec)["args"].__setitem__(2, "/tmp/agent.yaml"),
    "another command": lambda spec: agent(spec).update(command=["/bin/sh", "-c", "id"]),
    "another directory": lambda spec: volume(spec, "config").update(
        hostPath={"path": "/var/lib/evil", "type": "Directory"}
    ),
    "a ConfigMap again": lambda spec: (
        volume(spec, "config").pop("hostPath"),
        volume(spec, "config").update(configMap={"name": "evil"}),
    ),
    "another runtime": lambda spec: volume(spec, "runtime").update(hostPath={"path": "/run/evil"}),
    "a variable": lambda spec: agent(spec).update(env=[{"name": "PYTHONPATH", "value": "/evil"}]),
    "more powers": lambda spec: agent(spec)["securityContext"]["capabilities"]["add"].append(
        "SYS_ADMIN"
    ),
    "a writable root": lambda spec: agent(spec)["securityContext"].update(
        readOnlyRootFilesystem=False
    ),
    "the network of the node": lambda spec: spec.update(hostNetwork=True),
    "one more container": lambda spec: spec["containers"].append(
        {"name": "more", "image": AGENT, "args": ["whoami"]}
    ),
    "one more at the start": lambda spec: spec.update(
        initContainers=[{"name": "first", "image": PAUSE}]
    ),
}


@pytest.mark.parametrize("overlay", ["snp", "tdx"])
async def test_the_agent_of_the_measured_configuration_is_admitted_as_it_is_and_not_otherwise(
    overlay: str, tmp_path: Path
) -> None:
    spec = await agent_of(overlay, tmp_path)
    assert volume(spec, "config")["hostPath"]["path"] == "/etc/attested-sds"
    node = Node(tmp_path, spec)
    node.admit(spec)
    for what, edit in EDITS.items():
        changed = copy.deepcopy(spec)
        edit(changed)
        assert changed != spec, what
        with refused("admission_not_listed"):
            node.admit(changed)
    # Another image under the same name has another configuration.
    image_archive(tmp_path / "other.tar", AGENT, {"Entrypoint": ["/evil"]}, {})
    node.images[AGENT] = read_image(tmp_path / "other.tar")
    with refused("admission_not_listed"):
        node.admit(spec)
