from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from sds.workload.kubernetes import pod_list
from sds.workload.kubernetes.pod_list import PodList
from sds.workload.kubernetes.scheduled import ScheduledPods
from sds.workload.kubernetes.services import MOST_OF_A_NAMESPACE, ServiceIndex
from sds.workload.kubernetes.watch import ListAgainError
from tests.support.clock import FakeClock
from tests.support.kubernetes import container_id, pod, service
from tests.support.refusals import refused

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from sds.workload.kubernetes.pods import Pod

DIGEST = "sha256:" + "cd" * 32


class Kubelet:
    def __init__(self, document: Any) -> None:
        self.document = document

    async def chunks(self, path: str) -> AsyncGenerator[bytes, None]:
        assert path == "/pods"
        yield json.dumps(self.document).encode()


async def read(document: Any) -> dict[str, Pod]:
    fresh = await PodList(Kubelet(document), FakeClock())._fresh()
    assert fresh is not None
    return fresh[0]


async def listed(*items: dict[str, Any]) -> dict[str, Pod]:
    return await read({"kind": "PodList", "items": list(items)})


async def test_a_pod_with_containers_of_every_kind() -> None:
    ids = [container_id() for _ in range(3)]
    item = pod("web-1", labels={"app": "web"}, containers={"main": ids[0], "starting": ""})
    status = item["status"]
    for kind, identifier in zip(("init", "ephemeral"), ids[1:], strict=True):
        status[f"{kind}ContainerStatuses"] = [
            {"name": kind, "imageID": DIGEST, "containerID": f"cri-o://{identifier}"}
        ]
    (found,) = (await listed(item)).values()
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
async def test_image_digests(image: str, digest: str | None) -> None:
    identifier = container_id()
    (found,) = (await listed(pod("x", containers={"c": identifier}, image=image))).values()
    assert found.containers[identifier].image_digest == digest


async def test_a_static_pod_has_no_account_and_its_annotations_lead_nowhere() -> None:
    item = pod("etcd-node1", namespace="kube-system", account=None, uid="ab" * 16)
    item["metadata"]["annotations"]["kubernetes.io/config.hash"] = "cd" * 16
    found = await listed(item)
    assert list(found) == ["ab" * 16]
    assert found["ab" * 16].service_account is None


async def test_half_a_character_is_text_that_can_be_sent_and_logged() -> None:
    """It would break the status of the whole agent, which has the names of pods."""
    half = json.loads('"\\ud800"')
    metadata = {"uid": "u", "namespace": "n", "name": half, "labels": {"a": half}}
    (pod,) = (await listed({"metadata": metadata})).values()
    assert (pod.name, dict(pod.labels)) == ("?", {"a": "?"})


async def test_an_empty_node() -> None:
    assert await read({"kind": "PodList", "items": None}) == {}


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
async def test_what_is_no_pod_list_is_refused(document: Any) -> None:
    with refused("kubelet"):
        await read(document)


async def test_what_authors_write_too_much_of_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = {f"label-{number}": "x" for number in range(5_000)}
    (found,) = (await listed(pod("a", labels=labels))).values()
    assert len(found.labels) == 257  # one more than count: the attestor says so
    index = ServiceIndex()
    assert not index.apply("ADDED", service("greedy", labels))
    monkeypatch.setattr(pod_list, "_MOST_PODS", 3)
    with refused("kubelet", match="does not end"):
        await listed(*(pod(f"a-{number}") for number in range(4)))


def test_nodes_that_are_gone_are_forgotten() -> None:
    """A cluster that scales has nodes without end."""
    pods = ScheduledPods()
    for number in range(10):
        item = pod("web-1")
        item["spec"]["nodeName"] = f"node-{number}"
        assert pods.apply("ADDED", item)
    moved = item["metadata"]["uid"]
    assert pods.runs(moved, "node-9")
    assert pods.accounts("node-9") == {("shop", "web")}
    assert pods.apply("DELETED", item)
    assert len(pods._of_node) == 9
    assert not pods.runs(moved, "node-9")
    assert pods.replace([pods.read(item)])
    assert set(pods._of_node) == {"node-9"}


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
    web, none = index.read(service("web", {"app": "web"})), index.read(service("none", {}))
    assert index.replace([web, none])
    assert not index.replace([web])
    assert index.selecting("other", labels) == frozenset()
    assert index.put(("shop", "web"), {})  # it lost its selector


def greedy(number: int) -> dict[str, Any]:
    """A Service whose selector has as many labels as may be, and is expensive to compare."""
    return service(f"greedy-{number}", {f"l{each}": "x" for each in range(256)}, namespace="evil")


MANY = MOST_OF_A_NAMESPACE // 256 + 1
LABELS = {f"l{each}": "x" for each in range(256)}


@pytest.mark.parametrize("listed", [True, False])
def test_a_namespace_with_too_much_in_it_has_no_names_and_takes_no_memory(*, listed: bool) -> None:
    """Else who may edit one namespace ends the agents of all nodes."""
    index = ServiceIndex()
    items = [service("web", {"app": "web"}), *map(greedy, range(MANY))]
    if listed:
        index.begin()
        assert index.replace([index.read(each) for each in items])
        assert not index.replace([index.read(each) for each in items])
    else:
        assert all(index.apply("ADDED", each) for each in items)
    assert index.overfull == {"evil"}
    assert index.selecting("evil", LABELS) == frozenset()
    assert index.selecting("shop", {"app": "web"}) == {("shop", "web")}
    assert not index._namespaces["evil"].selectors
    assert not index.apply("ADDED", greedy(MANY))


def test_what_is_read_of_a_list_is_bounded_while_it_comes() -> None:
    index = ServiceIndex()
    index.begin()
    read = [index.read(greedy(number)) for number in range(2 * MANY)]
    assert sum(selector is not None for _, selector, _ in read) == MANY - 1
    index.begin()
    assert index.read(greedy(0))[1] is not None


def test_a_namespace_that_shrinks_is_listed_again() -> None:
    index = ServiceIndex()
    items = [greedy(number) for number in range(MANY)]
    for each in items:
        index.apply("ADDED", each)
    left = MOST_OF_A_NAMESPACE // 2 // 256
    for each in items[left + 1 :]:
        assert not index.apply("DELETED", each)
    with pytest.raises(ListAgainError):
        index.apply("DELETED", items[left])
    index.begin()
    assert index.replace([index.read(each) for each in items[:left]])
    assert not index.overfull
    assert len(index.selecting("evil", LABELS)) == left
    for each in items[:left]:
        assert index.apply("DELETED", each)
    assert not index._namespaces
