"""The kubernetes attestor against a kubelet and an API server over TLS, failing in every way."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from sds.clock import SystemClock
from sds.errors import CgroupError, ConfigurationError, KubernetesError
from sds.workload.kubernetes import api
from sds.workload.kubernetes.api import ApiClient
from sds.workload.kubernetes.attestor import (
    CONTAINER_TYPES,
    KubernetesAttestor,
    Waiting,
)
from sds.workload.kubernetes.pod_list import PodList
from sds.workload.kubernetes.pods import MOST_LABELS
from sds.workload.kubernetes.services import MOST_SERVICES, ServiceWatch
from sds.workload.peer import Peer
from sds.workload.proc import pod_roots, read_cgroup
from tests.support.certificates import ca_wish, self_signed
from tests.support.front_door import until
from tests.support.kubernetes import Cluster, cluster, container_id, pod, service
from tests.support.pem_forms import FORMS
from tests.support.refusals import refused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
    from pathlib import Path

    from sds.workload.facts import Facts

SHORT = Waiting(kubelet=0.6, services=0.3, max_age=0.2)


class Node:
    """A client side of one node."""

    def read_cgroup(self, peer: Peer) -> str:
        return read_cgroup(peer)

    def __init__(self, kube: Cluster, pods: PodList, services: ServiceWatch) -> None:
        self.kube = kube
        self.pods = pods
        self.services = services

    def attestor(
        self, *, containers: bool = False, waiting: Waiting = SHORT
    ) -> Callable[[Peer], Coroutine[None, None, Facts]]:
        """The attestor, for rules that ask for facts of containers or not."""
        attestor = self.made(waiting)
        needed = CONTAINER_TYPES if containers else frozenset[str]()
        return lambda peer: attestor.attest(peer, needed)

    def made(self, waiting: Waiting) -> KubernetesAttestor:
        return KubernetesAttestor(
            self.pods,
            self.services,
            roots=pod_roots({}),
            waiting=waiting,
            read_cgroup=self.read_cgroup,
        )


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    async with contextlib.AsyncExitStack() as stack:
        kube = await stack.enter_async_context(cluster(tmp_path))
        kubelet = await stack.enter_async_context(ApiClient(kube.kubelet(), timeout_seconds=2))
        api = await stack.enter_async_context(ApiClient(kube.api(), timeout_seconds=2))
        clock = SystemClock()
        pods, services = PodList(kubelet, clock), ServiceWatch(api, clock)
        tasks = [asyncio.create_task(each.run()) for each in (pods, services)]
        yield Node(kube, pods, services)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
def peer() -> Iterator[Peer]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        found = Peer.of(ours)
        yield found
        found.close()


class InPod:
    """Puts callers into pods: the text of their control groups."""

    def __init__(self) -> None:
        self.text = "0::/user.slice\n"

    def __call__(self, item: dict[str, Any] | str, container: str | None = None) -> None:
        uid = item if isinstance(item, str) else item["metadata"]["uid"]
        self.text = f"0::/kubepods/burstable/pod{uid}/{container or container_id()}\n"


@pytest.fixture
def in_pod(monkeypatch: pytest.MonkeyPatch) -> InPod:
    place = InPod()
    monkeypatch.setattr(Node, "read_cgroup", lambda _node, _peer: place.text)
    return place


def selectors(facts: Facts) -> set[str]:
    return {str(selector) for selector in facts.selectors}


async def test_everything_about_a_pod(node: Node, peer: Peer, in_pod: InPod) -> None:
    identifier = container_id()
    web = pod("web-1", labels={"app": "web"}, containers={"main": identifier})
    node.kube.pods = [pod("other"), web]
    for name, selector in (("web", "web"), ("api", "api"), ("a", "x"), ("web2", "web")):
        node.kube.put_service(service(name, {"app": selector}))
    node.kube.put_service(service("outside", {"app": "web"}, kind="ExternalName"))
    node.kube.put_service(service("elsewhere", {"app": "web"}, namespace="other"))
    in_pod(web, identifier)
    facts = await node.attestor(containers=True)(peer)
    assert selectors(facts) == {
        "k8s:ns:shop",
        "k8s:sa:web",
        "k8s:node:node1",
        "k8s:pod-name:web-1",
        f"k8s:pod-uid:{web['metadata']['uid']}",
        "k8s:pod-label:app:web",
        "k8s:container-name:main",
        "k8s:image-digest:sha256:" + "ab" * 32,
    }
    assert facts.services == {("shop", "web"), ("shop", "web2")}
    assert (facts.title, dict(facts.unknown)) == ("shop/web-1", {})


async def test_a_process_outside_pods_has_no_fact_and_that_is_known(
    node: Node, peer: Peer, in_pod: InPod
) -> None:
    facts = await node.attestor()(peer)
    assert (selectors(facts), dict(facts.unknown)) == (set(), {})
    assert node.kube.kubelet_requests == 0


async def test_this_very_process_with_its_real_control_groups(node: Node, peer: Peer) -> None:
    facts = await node.attestor()(peer)
    assert not facts.unknown or isinstance(facts.why_unknown("k8s:ns"), KubernetesError)


async def test_control_groups_that_contradict_each_other(
    node: Node, peer: Peer, in_pod: InPod
) -> None:
    in_pod(pod("a"))
    one = in_pod.text
    in_pod(pod("b"))
    in_pod.text = one + in_pod.text.replace("0::", "3:cpu:")
    facts = await node.attestor()(peer)
    assert isinstance(facts.why_unknown("k8s:sa"), CgroupError)


async def test_250_cold_callers_ask_the_kubelet_at_most_three_times(
    node: Node, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list of 250 pods with 20 containers each, every caller from another pod."""
    containers = [{f"c{number}": container_id() for number in range(20)} for _ in range(250)]
    node.kube.pods = [
        pod(f"p{number}", account=f"sa{number}", containers=each)
        for number, each in enumerate(containers)
    ]
    texts = iter(
        [
            f"0::/kubepods/pod{item['metadata']['uid']}/{each['c7']}\n"
            for item, each in zip(node.kube.pods, containers, strict=True)
        ]
    )
    monkeypatch.setattr(Node, "read_cgroup", lambda _node, _peer: next(texts))
    patient = node.attestor(containers=True, waiting=Waiting(kubelet=20, services=0))
    facts = await asyncio.gather(*(patient(peer) for _ in range(250)))
    accounts = [next(iter(each.values("k8s:sa"))) for each in facts]
    assert accounts == [f"sa{number}" for number in range(250)]
    assert node.kube.kubelet_requests <= 3


async def test_a_container_that_is_not_listed_yet_is_waited_for(
    node: Node, peer: Peer, in_pod: InPod
) -> None:
    identifier = container_id()
    item = pod("web-1", containers={"main": ""})
    node.kube.pods = [item]
    in_pod(item, identifier)
    patient = node.attestor(containers=True, waiting=Waiting(kubelet=10, services=0))
    asking = asyncio.create_task(patient(peer))
    await until(lambda: node.kube.kubelet_requests)
    node.kube.pods = [pod("web-1", uid=item["metadata"]["uid"], containers={"main": identifier})]
    assert "k8s:container-name:main" in selectors(await asking)
    # Whoever needs no container fact is not held up by it.
    in_pod(item, container_id())
    facts = await node.attestor()(peer)
    assert "k8s:sa:web" in selectors(facts)
    assert facts.why_unknown("k8s:image-digest") is not None


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (403, "403: the token's account may not do this"),
        (401, "401: the token is missing"),
        (500, "500"),
        (b"<html>", "not JSON"),
        (b"{}", "not a PodList"),
        (b'{"kind": "PodList", "items": [{"metadata": 7}]}', "malformed"),
        (timedelta(seconds=5), "no answer in time|not answered yet"),
    ],
)
async def test_a_kubelet_that_fails_gives_no_identity_then_recovers(
    node: Node, peer: Peer, in_pod: InPod, answer: int | bytes | timedelta, text: str
) -> None:
    item = pod("web-1")
    node.kube.pods = [item]
    node.kube.kubelet_answer = answer
    in_pod(item)
    async with asyncio.timeout(5):  # bounded, whatever the kubelet does
        facts = await node.attestor()(peer)
    assert selectors(facts) == set()
    error = facts.why_unknown("k8s:sa")
    assert isinstance(error, KubernetesError)
    with refused("kubelet", match=text):
        raise error
    assert error.retriable
    node.kube.kubelet_answer = None
    recovered = node.attestor(waiting=Waiting(kubelet=20, services=0))
    assert "k8s:sa:web" in selectors(await recovered(peer))


async def test_an_outage_changes_nobody_who_is_known_and_recognises_nobody_new(
    node: Node, peer: Peer, in_pod: InPod
) -> None:
    known, late = pod("web-1", labels={"v": "1"}), pod("web-2")
    node.kube.pods = [known]
    in_pod(known)
    assert "k8s:sa:web" in selectors(await node.attestor()(peer))
    node.kube.kubelet_answer = 503
    await asyncio.sleep(SHORT.max_age + 0.05)
    assert "k8s:sa:web" in selectors(await node.attestor()(peer))
    in_pod(late)
    node.kube.pods = [known, late]
    assert selectors(await node.attestor()(peer)) == set()


async def test_labels_follow_the_kubelet(node: Node, peer: Peer, in_pod: InPod) -> None:
    item = pod("web-1", labels={"v": "1"})
    node.kube.pods = [item]
    in_pod(item)
    assert "k8s:pod-label:v:1" in selectors(await node.attestor()(peer))
    item["metadata"]["labels"] = {"v": "2"}
    await asyncio.sleep(SHORT.max_age + 0.05)
    assert "k8s:pod-label:v:2" in selectors(await node.attestor()(peer))


async def test_labels_that_are_too_many_are_unknown(node: Node, peer: Peer, in_pod: InPod) -> None:
    """The author of a pod may write tens of thousands, and each look would cost as many."""
    item = pod("web-1", labels={f"l{number}": "1" for number in range(MOST_LABELS + 1)})
    node.kube.pods = [item]
    in_pod(item)
    facts = await node.attestor()(peer)
    assert not any(one.startswith("k8s:pod-label:") for one in selectors(facts))
    assert "k8s:sa:web" in selectors(facts)
    why = facts.why_unknown("k8s:pod-label:l1")
    assert why is not None
    assert why.reason == "too_many_facts"


async def test_services_that_are_too_many_give_no_names(
    node: Node, peer: Peer, in_pod: InPod
) -> None:
    """An editor of one namespace decides how many select a pod of it."""
    item = pod("web-1", labels={"app": "web"})
    node.kube.pods = [item]
    in_pod(item)
    attestor = node.made(Waiting(kubelet=10, services=10, max_age=60))
    index = node.services._index
    await node.services._watch.synced.wait()
    for number in range(MOST_SERVICES + 1):
        index.apply("ADDED", service(f"s{number}", {"app": "web"}))
    facts = await attestor.attest(peer, frozenset())
    assert not facts.services
    assert any("Services select" in one for one in facts.hints)
    index.apply("DELETED", service("s0", {"app": "web"}))
    facts = await attestor.attest(peer, frozenset())
    assert len(facts.services) == MOST_SERVICES


async def test_services_are_followed(node: Node, peer: Peer, in_pod: InPod) -> None:
    item = pod("web-1", labels={"app": "web"})
    node.kube.pods = [item]
    in_pod(item)
    waiting = Waiting(kubelet=10, services=10, max_age=60)
    attestor = node.made(waiting)
    told: list[int] = []
    stop = attestor.listen(lambda: told.append(1))
    assert (await attestor.attest(peer, frozenset())).services == frozenset()
    node.kube.put_service(service("web", {"app": "web"}))
    await until(lambda: len(told) == 2)  # the first list, then the event
    assert (await attestor.attest(peer, frozenset())).services == {("shop", "web")}
    node.kube.put_service(service("web", {"app": "other"}))
    await until(lambda: len(told) == 3)
    assert (await attestor.attest(peer, frozenset())).services == frozenset()
    node.kube.put_service(service("web", {"app": "web"}))
    node.kube.delete_service("shop", "web")
    await until(lambda: len(told) == 4)  # both are told together
    assert (await attestor.attest(peer, frozenset())).services == frozenset()
    stop()


async def test_the_api_server_restarts_compacts_and_fails(
    node: Node, peer: Peer, in_pod: InPod
) -> None:
    item = pod("web-1", labels={"app": "web"})
    node.kube.pods = [item]
    node.kube.put_service(service("old", {"app": "web"}))
    in_pod(item)
    waiting = Waiting(kubelet=10, services=10, max_age=60)
    attestor = node.made(waiting)
    assert (await attestor.attest(peer, frozenset())).services == {("shop", "old")}
    # A removal and an addition while nothing watches, and a history that is gone.
    node.kube.api_answer = 503
    node.kube.drop_watches()
    await until(lambda: node.services.error)
    assert (await attestor.attest(peer, frozenset())).services == {("shop", "old")}
    node.kube.delete_service("shop", "old")
    node.kube.put_service(service("new", {"app": "web"}))
    node.kube.forget_history()
    node.kube.api_answer = None
    await until(lambda: node.services.error is None, seconds=15)
    assert (await attestor.attest(peer, frozenset())).services == {("shop", "new")}


async def test_a_version_that_is_gone_makes_the_watch_list_again(
    node: Node, peer: Peer, in_pod: InPod
) -> None:
    await until(lambda: node.kube.watchers)
    lists = node.kube.lists
    node.kube.forget_history()
    node.kube.drop_watches()
    await until(lambda: node.kube.lists > lists and node.kube.watchers, seconds=15)
    assert node.services.synced


@pytest.mark.parametrize("answer", [b"<html>", b'{"items": [{}]}', b"[]", 403])
async def test_without_services_the_pod_is_recognised_all_the_same(
    tmp_path: Path, peer: Peer, in_pod: InPod, answer: int | bytes
) -> None:
    item = pod("web-1")
    in_pod(item)
    async with (
        cluster(tmp_path) as kube,
        ApiClient(kube.kubelet()) as kubelet,
        ApiClient(kube.api()) as api,
    ):
        kube.pods, kube.api_answer = [item], answer
        pods, services = PodList(kubelet, SystemClock()), ServiceWatch(api, SystemClock())
        tasks = [asyncio.create_task(each.run()) for each in (pods, services)]
        waiting = Waiting(kubelet=10, services=0.3)
        attestor = Node(kube, pods, services).made(waiting)
        facts = await attestor.attest(peer, frozenset())
        assert "k8s:sa:web" in selectors(facts)
        assert facts.services == frozenset()
        assert isinstance(services.error, KubernetesError)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_the_servers_certificate_is_verified(tmp_path: Path) -> None:
    async with cluster(tmp_path) as kube:
        other = tmp_path / "other.pem"
        stranger = self_signed(ca_wish("stranger")).certificate
        other.write_bytes(stranger.public_bytes(Encoding.PEM))
        empty, comment = tmp_path / "empty.pem", tmp_path / "comment.pem"
        empty.touch()
        comment.write_text("# the roots of the cluster\n")
        for server, text in (
            (kube.kubelet(ca_file=other), "certificate verify failed"),
            (kube.kubelet(server_name="node2"), "certificate"),
            (kube.kubelet(ca_file=tmp_path / "absent"), "No such file"),
            (kube.kubelet(ca_file=empty), "no certificates under which"),
            (kube.kubelet(ca_file=comment), "no certificates under which"),
            (kube.kubelet(token_file=tmp_path / "absent"), "No such file"),
        ):
            async with ApiClient(server) as client:
                with refused("kubelet", match=text):
                    await client.get("/pods")
        async with ApiClient(kube.kubelet(server_name="node1")) as client:
            assert b"PodList" in await client.get("/pods")


@pytest.mark.parametrize("form", FORMS)
async def test_a_file_of_roots_counts_in_every_form_that_the_check_reads(
    form: str, tmp_path: Path
) -> None:
    async with cluster(tmp_path) as kube:
        kube.ca_file.write_bytes(FORMS[form](kube.ca_file.read_bytes()))
        async with ApiClient(kube.kubelet()) as client:
            assert b"PodList" in await client.get("/pods")


async def test_skipping_verification_is_loud_and_only_for_loopback(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with cluster(tmp_path) as kube:
        server = kube.kubelet(ca_file=None, insecure_skip_verify=True)
        async with ApiClient(server) as client:
            assert b"PodList" in await client.get("/pods")
        assert "NOT verified" in caplog.text
        for url in ("https://10.0.0.1:10250", "https://localhost:10250", "https://127.0.0.2"):
            with pytest.raises(ConfigurationError, match="must be verified"):
                kube.kubelet(url=url, insecure_skip_verify=True)
        with pytest.raises(ConfigurationError, match="https"):
            kube.kubelet(url="http://127.0.0.1:10255")


async def test_a_renewed_token_is_used_and_no_token_is_shown(tmp_path: Path) -> None:
    async with cluster(tmp_path) as kube, ApiClient(kube.kubelet()) as client:
        kube.token_file.write_text("stale-secret")
        with refused("kubelet", match="401") as caught:
            await client.get("/pods")
        assert "stale-secret" not in repr(caught.value) + str(caught.value)
        kube.token_file.write_text("the-agents-own-token")
        assert b"PodList" in await client.get("/pods")


async def test_a_line_of_a_watch_that_is_too_long_is_our_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "_LINE_BYTES", 1_000)
    async with cluster(tmp_path) as kube, ApiClient(kube.kubelet()) as client:
        kube.pods = [{"x": "x" * 10_000}]
        with refused("kubelet", match="/pods"):
            async for _ in client.lines("/pods", {}, idle_seconds=5):
                pass


async def test_a_token_file_that_hangs_blocks_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()

    def hang(_: Path, *, max_bytes: int) -> bytes:
        assert max_bytes
        answers.wait(5)
        return b""

    monkeypatch.setattr(api, "read_file", hang)
    async with (
        cluster(tmp_path) as kube,
        ApiClient(kube.kubelet(), timeout_seconds=0.05) as client,
    ):
        with refused("kubelet", match="does not answer"):
            await client.get("/pods")
        answers.set()


async def test_a_server_that_says_later_says_when(tmp_path: Path) -> None:
    async with cluster(tmp_path) as kube, ApiClient(kube.kubelet()) as client:
        for status, later in ((429, 7.0), (503, 7.0), (500, 0.0)):
            kube.kubelet_answer = status
            with refused("kubelet", match=str(status)) as caught:
                await client.get("/pods")
            assert isinstance(caught.value, KubernetesError)
            assert caught.value.later == later


def test_the_real_reader_of_control_groups(peer: Peer) -> None:
    assert read_cgroup(peer).count("::") >= 1
