from __future__ import annotations

import contextlib
import itertools
import json
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest

from sds.workload.kubernetes import pod_list
from sds.workload.kubernetes.pod_list import PodList
from sds.workload.kubernetes.scheduled import ScheduledPods
from sds.workload.kubernetes.selectors import MOST, MOST_OF_A_NAMESPACE
from sds.workload.kubernetes.services import MOST_SERVICES, ServiceIndex
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
    assert index.apply("ADDED", service("web", {"app": "web"}))
    assert not index.apply("MODIFIED", service("web", {"app": "web"}))
    assert index.apply("ADDED", service("canary", {"app": "web", "track": "canary"}))
    assert index.apply("ADDED", service("web", {"app": "web"}, namespace="other"))
    assert not index.apply("ADDED", service("everything", {}))
    labels = {"app": "web", "pod-template-hash": "x"}
    assert index.selecting("shop", labels) == {("shop", "web")}
    assert index.selecting("shop", {**labels, "track": "canary"}) == {
        ("shop", "web"),
        ("shop", "canary"),
    }
    assert index.selecting("shop", {}) == frozenset()
    assert index.apply("DELETED", service("web", {"app": "web"}))
    assert not index.apply("DELETED", service("web", {"app": "web"}))
    assert index.selecting("shop", labels) == frozenset()
    web, none = service("web", {"app": "web"}), service("none", {})
    assert listed_again(index, web, none)
    assert not listed_again(index, web)
    assert index.selecting("other", labels) == frozenset()
    assert index.apply("MODIFIED", service("web", {}))  # it lost its selector
    assert not index._selectors._kept
    assert not index._selectors._size


def listed_again(index: ServiceIndex, *items: dict[str, Any]) -> bool:
    index.begin()
    for each in items:
        index.read(each)
    return index.replace([])


LABELS = {f"{'l' * 300}{each}": "x" * 60 for each in range(256)}


def greedy(number: int, namespace: str = "evil") -> dict[str, Any]:
    """A Service whose selector has as many labels as may be, and is expensive to compare."""
    return service(f"greedy-{number}", LABELS, namespace=namespace)


ONE = 256 * (300 + 3 + 60 + 120) + 400
"""About the bytes of one."""
MANY = MOST_OF_A_NAMESPACE // ONE + 2


@pytest.mark.parametrize("listed", [True, False])
def test_a_namespace_with_too_much_in_it_has_no_names_and_takes_no_memory(*, listed: bool) -> None:
    """Else who may edit one namespace ends the agents of all nodes."""
    index = ServiceIndex()
    items = [service("web", {"app": "web"}), *map(greedy, range(MANY))]
    if listed:
        assert listed_again(index, *items)
        assert not listed_again(index, *items)
    else:
        assert index.apply("ADDED", items[0])
        for each in items[1:]:
            index.apply("ADDED", each)
    assert index.overfull == {"evil"}
    assert index.selecting("evil", LABELS) == frozenset()
    assert index.selecting("shop", {"app": "web"}) == {("shop", "web")}
    assert not index._selectors._overfull["evil"].selectors
    assert not index.apply("ADDED", greedy(MANY))


def test_namespaces_take_a_bounded_amount_of_memory_together() -> None:
    """A tenant may have many: ten of them took 100 MB, more than an agent has to spare."""
    index = ServiceIndex()
    index.apply("ADDED", service("web", {"app": "web"}))
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for namespace in range(12):
            for number in range(MANY - 3):
                labels = {
                    f"{namespace}.{number}.{key}": f"x{value}" for key, value in LABELS.items()
                }
                item = service(f"{number}", labels, namespace=f"evil-{namespace}")
                index.apply("ADDED", item)
        grew = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grew < MOST
    assert len(index.overfull) > 8
    assert index.selecting("shop", {"app": "web"}) == {("shop", "web")}, "a small one stays"


def test_many_small_services_take_no_more_memory_than_is_counted() -> None:
    index = ServiceIndex()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        number = 0
        while not index.overfull:
            number += 1
            grew = tracemalloc.get_traced_memory()[0] - before
            index.apply("ADDED", service(f"s{number}", {f"l{number}": f"v{number}"}))
    finally:
        tracemalloc.stop()
    assert 0.5 * MOST_OF_A_NAMESPACE < grew < MOST_OF_A_NAMESPACE


def test_labels_that_their_author_changes_take_a_bounded_amount_of_memory() -> None:
    index = ServiceIndex()
    index.apply("ADDED", service("web", {"app": "web"}))
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(400):
            labels = {f"{'l' * 300}{number}.{each}": "x" for each in range(256)}
            assert index.selecting("shop", {"app": "web"} | labels) == {("shop", "web")}
        grew = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grew < 16 << 20


def test_very_many_services_of_one_pod_make_no_long_answer() -> None:
    index = ServiceIndex()
    for number in range(2 * MOST_SERVICES):
        index.apply("ADDED", service(f"s{number}", {"app": "web"}))
    assert len(index.selecting("shop", {"app": "web"})) == MOST_SERVICES + 1


def delete_until_listed(index: ServiceIndex, items: list[dict[str, Any]]) -> None:
    """Delete Services, the last first, until the index asks for a list; leave the others."""
    with contextlib.suppress(ListAgainError):
        while items:
            index.apply("DELETED", items.pop())


def test_a_namespace_that_shrinks_is_listed_again() -> None:
    index = ServiceIndex()
    items = [greedy(number) for number in range(MANY)]
    for each in items:
        index.apply("ADDED", each)
    left = list(items)
    delete_until_listed(index, left)
    assert 0.3 * MANY < len(left) < 0.6 * MANY
    assert listed_again(index, *left)
    assert not index.overfull
    assert len(index.selecting("evil", LABELS)) == len(left)
    for each in left:
        assert index.apply("DELETED", each)
    assert not index._selectors._kept


def test_a_namespace_that_gave_way_is_listed_again_when_others_shrink() -> None:
    index = ServiceIndex()
    items: list[dict[str, Any]] = []
    for name in itertools.count():
        if index.overfull:
            break
        for number in range(MANY * 4 // 10):
            items.append(greedy(number, f"ns-{name}"))
            index.apply("ADDED", items[-1])
    (gave_way,) = index.overfull
    left = [each for each in items if each["metadata"]["namespace"] != gave_way]
    delete_until_listed(index, left)
    assert 0.4 * len(items) < len(left) < 0.7 * len(items), "much smaller, so that it stays so"
    left += [each for each in items if each["metadata"]["namespace"] == gave_way]
    assert listed_again(index, *left)
    assert not index.overfull
