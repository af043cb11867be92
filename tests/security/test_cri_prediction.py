"""``sds policy pod --image``: what is computed from a manifest is what a real containerd makes."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from sds.workload.cri.canonical import CanonicalContainer, Surroundings, canonical
from sds.workload.cri.image import read_image
from sds.workload.cri.prediction import NodeProfile, predicted_containers, predicted_sandbox
from sds.workload.cri.runtime import Runtime
from tests.support import need
from tests.support.containerd import Containerd, containerd, image_archive
from tests.support.node import short_folder
from tests.support.played_kubelet import MASKED, container, sandbox
from tests.support.process import output, sds

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.e2e, pytest.mark.root]

USERS = {
    "etc/passwd": "root:x:0:0::/:\napp:x:1000:1001::/:\n",
    "etc/group": "root:x:0:\nwheel:x:10:root,app\naudio:x:63:app\nstaff:x:50:\n",
}
IMAGES: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "localhost/bare:1": ({"Cmd": ["/run", "--all"]}, {"run": ""}),
    "localhost/users:1": (
        {"Entrypoint": ["/e"], "Cmd": ["c"], "User": "app", "Env": ["A=1", "B=2"]},
        USERS,
    ),
    "localhost/odd:1": (
        {
            "Entrypoint": ["/e", "x"],
            "Env": ["PATH=/opt", "HOSTNAME=mine", "C="],
            "User": "1000:staff",
            "WorkingDir": "/srv",
            "Volumes": {"/data": {}},
        },
        USERS,
    ),
}
VOLUMES = [
    {"name": "cache", "emptyDir": {}},
    {"name": "settings", "configMap": {"name": "settings"}},
    {"name": "keys", "secret": {"secretName": "keys"}},
    {"name": "about", "downwardAPI": {}},
    {"name": "host", "hostPath": {"path": "/etc"}},
    {"name": "kube-api-access-x7k2p", "projected": {}},
]


def drawing(
    always: dict[str, st.SearchStrategy[Any]],
    optional: dict[str, st.SearchStrategy[Any]] | None = None,
) -> st.SearchStrategy[dict[str, Any]]:
    found: Any = st.fixed_dictionaries
    drawn: st.SearchStrategy[dict[str, Any]] = found(always, optional=optional)
    return drawn


WORDS = st.sampled_from(["/app", "--flag", "$(A)x", "$(MODE)", 'é\n"', ""])
IDS = st.sampled_from([0, 7, 1000])
MOUNTS: st.SearchStrategy[dict[str, Any]] = drawing(
    {
        "name": st.sampled_from([each["name"] for each in VOLUMES]),
        "mountPath": st.sampled_from(
            ["/a", "/a/b/c", "/dev/shm", "/etc/resolv.conf", "/var/run/x", "/b/", "/sys/fs/cgroup"]
        ),
    },
    optional={
        "readOnly": st.booleans(),
        "subPath": st.just("part"),
    },
)
SECURITY: st.SearchStrategy[dict[str, Any]] = drawing(
    {},
    optional={
        "runAsUser": IDS,
        "runAsGroup": IDS,
        "readOnlyRootFilesystem": st.booleans(),
        "allowPrivilegeEscalation": st.booleans(),
        "capabilities": drawing(
            {},
            optional={
                "add": st.lists(st.sampled_from(["NET_ADMIN", "SYS_TIME", "KILL"]), max_size=2),
                "drop": st.lists(st.sampled_from(["ALL", "KILL", "CHOWN"]), max_size=2),
            },
        ),
    },
)
CONTAINERS: st.SearchStrategy[dict[str, Any]] = drawing(
    {
        "name": st.just("main"),
        "image": st.sampled_from(sorted(IMAGES)),
        "env": st.lists(
            st.sampled_from(
                [
                    {"name": "MODE", "value": "production"},
                    {"name": "B", "value": "$(A)!"},
                    {"name": "PATH", "value": "/mine"},
                    {"name": "HOSTNAME", "value": "a b"},
                    {"name": "MODE"},
                ]
            ),
            max_size=3,
        ).map(lambda drawn: [{"name": "A", "value": "a"}, {"name": "MODE", "value": ""}, *drawn]),
        "volumeMounts": st.lists(MOUNTS, max_size=3, unique_by=lambda each: each["mountPath"]),
        "securityContext": SECURITY,
    },
    optional={
        "command": st.lists(WORDS, max_size=2),
        "args": st.lists(WORDS, max_size=2),
        "workingDir": st.just("/w"),
        "terminationMessagePath": st.just("/tmp/said"),
    },
)
PODS: st.SearchStrategy[dict[str, Any]] = drawing(
    {
        "enableServiceLinks": st.sampled_from([False]),
        "volumes": st.just(VOLUMES),
        "containers": CONTAINERS.map(lambda one: [one]),
        "securityContext": drawing(
            {}, optional={"runAsUser": IDS, "fsGroup": IDS, "supplementalGroups": st.just([9, 5])}
        ),
    },
    optional={
        "hostNetwork": st.booleans(),
        "hostPID": st.booleans(),
        "shareProcessNamespace": st.booleans(),
    },
)


def drawn(count: int) -> list[dict[str, Any]]:
    """The same pods on every run."""
    found: list[dict[str, Any]] = []

    @seed(16)
    @settings(
        max_examples=count,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(PODS)
    def draw(spec: dict[str, Any]) -> None:
        found.append(spec)

    draw()
    return found


async def seen(
    runtime: Containerd, client: Runtime, spec: dict[str, Any], kubelet: str
) -> tuple[CanonicalContainer, CanonicalContainer]:
    """The sandbox and the container as the runtime describes them, in canonical form."""
    pod = await runtime.pod(**sandbox(spec))
    name = spec["containers"][0]["image"]
    user = IMAGES[name][0].get("User", "")
    one = container(spec, spec["containers"][0], pod.uid, kubelet, user)
    image = {"image": name}
    made = await runtime.container(pod, image=image, start=False, **one)
    said = await client.sandbox(pod.sandbox)
    around = Surroundings(
        pod_uid=pod.uid,
        sandbox_id=pod.sandbox,
        sandbox_pid=0,
        kubelet=kubelet,
        runtime=runtime.directories,
    )
    first = canonical("", said.image, said.spec, around, container_id=pod.sandbox)
    around = dataclasses.replace(around, sandbox_pid=said.pid)
    (listed,) = await client.containers(made)
    about = await client.container(made)
    second = canonical("main", listed.image, about.spec, around, container_id=made)
    await runtime.remove_pod(pod)
    return first, second


async def test_what_is_computed_is_what_containerd_makes() -> None:
    need.root()
    with short_folder() as folder:
        async with containerd(folder) as runtime, Runtime(runtime.socket) as client:
            images = {"localhost/pause:1": read_image(folder / "image.tar")}
            for number, (name, (config, files)) in enumerate(IMAGES.items()):
                archive = folder / f"image-{number}.tar"
                image_archive(archive, name, config, files)
                await runtime.load(archive)
                images[name] = read_image(archive)
            node = NodeProfile(
                sandbox_image="localhost/pause:1", masked_paths=MASKED, cgroup_namespace=False
            )
            kubelet = str(folder / "kubelet")
            for spec in drawn(12):
                first, second = await seen(runtime, client, spec, kubelet)
                sandbox_lines = predicted_sandbox(spec, images["localhost/pause:1"], node).lines
                assert sandbox_lines == first.lines, json.dumps(spec)
                (found,) = predicted_containers(spec, images, node, kubelet=kubelet).values()
                assert found.lines == second.lines, json.dumps(spec)
                assert found == second


MANIFEST: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "web", "namespace": "shop"},
    "spec": {
        "enableServiceLinks": False,
        "automountServiceAccountToken": False,
        "containers": [
            {
                "name": "main",
                "image": "localhost/users:1",
                "livenessProbe": {"exec": {"command": ["/probe"]}},
            }
        ],
    },
}


async def test_the_command_needs_no_runtime(tmp_path: Path) -> None:
    manifest, image = tmp_path / "pod.yaml", tmp_path / "image.tar"
    manifest.write_text(yaml.safe_dump(MANIFEST))
    image_archive(image, "localhost/users:1", *IMAGES["localhost/users:1"])
    words = ["policy", "pod", str(manifest), "--image", f"localhost/users:1={image}"]
    code, _, errors = await output(sds(*words))
    assert (code, "the sandbox image registry.k8s.io/pause:3.8 is not given" in errors) == (2, True)
    words += ["--image", f"registry.k8s.io/pause:3.8={image}", "--keep-lines"]
    code, said, errors = await output(sds(*words))
    assert code == 0, errors
    (entry,) = yaml.safe_load(said)
    (digest,) = entry["containers"]
    assert 'arg "/e"' in entry["lines"][digest]
    assert len(entry["execs"]) == 1
    assert "cri:pod-digest" in said
