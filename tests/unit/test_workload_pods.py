import json
from typing import Any

import pytest

from sds.workload.kubernetes.pods import parse_pod_list
from sds.workload.kubernetes.services import ServiceIndex
from tests.support.kubernetes import container_id, pod, service
from tests.support.refusals import refused

DIGEST = "sha256:" + "cd" * 32


def listed(*items: dict[str, Any]) -> dict[str, Any]:
    document: dict[str, Any] = {"kind": "PodList", "items": list(items)}
    return json.loads(json.dumps(document))  # type: ignore[no-any-return]


def test_a_pod_with_containers_of_every_kind() -> None:
    ids = [container_id() for _ in range(3)]
    item = pod("web-1", labels={"app": "web"}, containers={"main": ids[0], "starting": ""})
    status = item["status"]
    for kind, identifier in zip(("init", "ephemeral"), ids[1:], strict=True):
        status[f"{kind}ContainerStatuses"] = [
            {"name": kind, "imageID": DIGEST, "containerID": f"cri-o://{identifier}"}
        ]
    (found,) = parse_pod_list(listed(item)).values()
    assert (found.namespace, found.name, found.service_account) == ("shop", "web-1", "web")
    assert (found.node, found.labels) == ("node1", {"app": "web"})
    names = {identifier: found.containers[identifier].name for identifier in ids}
    assert names == dict(zip(ids, ["main", "init", "ephemeral"], strict=True))
    assert len(found.containers) == 3


@pytest.mark.parametrize(
    ("image", "digest"),
    [
        (f"registry.example/a/b@{DIGEST}", DIGEST),
        (f"docker-pullable://a@{DIGEST}", DIGEST),
        (DIGEST, DIGEST),
        ("registry.example/a:latest", None),
        (f"{DIGEST}x", None),
    ],
)
def test_image_digests(image: str, digest: str | None) -> None:
    identifier = container_id()
    (found,) = parse_pod_list(listed(pod("x", containers={"c": identifier}, image=image))).values()
    assert found.containers[identifier].image_digest == digest


def test_a_static_pod_has_no_account_and_its_annotations_lead_nowhere() -> None:
    item = pod("etcd-node1", namespace="kube-system", account=None, uid="ab" * 16)
    item["metadata"]["annotations"]["kubernetes.io/config.hash"] = "cd" * 16
    found = parse_pod_list(listed(item))
    assert list(found) == ["ab" * 16]
    assert found["ab" * 16].service_account is None


def test_an_empty_node() -> None:
    assert parse_pod_list({"kind": "PodList", "items": None}) == {}


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        "PodList",
        {"kind": "Status", "code": 403},
        {"kind": "PodList", "items": 1},
        {"kind": "PodList", "items": [None]},
        {"kind": "PodList", "items": [{}]},
        {"kind": "PodList", "items": [{"metadata": {"uid": 1, "name": "a", "namespace": "b"}}]},
        {"kind": "PodList", "items": [pod("a", uid="x"), pod("b", uid="x")]},
    ],
)
def test_what_is_no_pod_list_is_refused(document: Any) -> None:
    with refused("kubelet"):
        parse_pod_list(document)


def test_services_select_by_all_labels_in_their_own_namespace() -> None:
    index = ServiceIndex()
    assert index.put(("shop", "web"), {"app": "web"})
    assert not index.put(("shop", "web"), {"app": "web"})
    assert index.put(("shop", "canary"), {"app": "web", "track": "canary"})
    assert index.put(("other", "web"), {"app": "web"})
    assert not index.put(("shop", "everything"), {})
    labels = {"app": "web", "pod-template-hash": "x"}
    assert index.selecting("shop", labels) == {("shop", "web")}
    assert index.selecting("shop", {**labels, "track": "canary"}) == {
        ("shop", "web"),
        ("shop", "canary"),
    }
    assert index.selecting("shop", {}) == frozenset()
    assert index.remove(("shop", "web"))
    assert not index.remove(("shop", "web"))
    assert index.selecting("shop", labels) == frozenset()
    assert index.replace([service("web", {"app": "web"}), service("none", {})])
    assert not index.replace([service("web", {"app": "web"})])
    assert index.selecting("other", labels) == frozenset()
    assert index.put(("shop", "web"), {})  # it lost its selector
