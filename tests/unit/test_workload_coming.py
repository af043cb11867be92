"""Who may connect soon, as the kubelet lists it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from sds.agent.node_settings import NodeSettings
from sds.errors import KubernetesError
from sds.workload.cgroup import PodRoots
from sds.workload.kubernetes.attestor import CONTAINER_TYPES, KubernetesAttestor
from sds.workload.kubernetes.pod_list import PodList
from sds.workload.kubernetes.services import ServiceWatch
from tests.support.clock import FakeClock
from tests.support.kubernetes import pod

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping

ROOTS = PodRoots.of("0::/init.scope\n", inside=False)


class Kubelet:
    """Answers with these pods, or not at all."""

    def __init__(self) -> None:
        self.pods: list[dict[str, Any]] = []
        self.down = False
        self.asked = 0

    async def chunks(self, path: str) -> AsyncGenerator[bytes, None]:
        assert path == "/pods"
        self.asked += 1
        if self.down:
            raise KubernetesError("no answer", reason="kubelet")
        yield json.dumps({"kind": "PodList", "items": self.pods}).encode()


class Silent:
    """An API server that never answers."""

    async def chunks(
        self, path: str, params: Mapping[str, str] | None = None
    ) -> AsyncGenerator[bytes, None]:
        del params
        if path:
            raise KubernetesError("no answer", reason="kubernetes_api")
        yield b""

    def lines(
        self, path: str, params: Mapping[str, str], *, idle_seconds: float
    ) -> AsyncIterator[bytes]:
        del path, params, idle_seconds
        raise KubernetesError("no answer", reason="kubernetes_api")


@contextlib.asynccontextmanager
async def listing(kubelet: Kubelet, clock: FakeClock) -> AsyncIterator[PodList]:
    pods = PodList(kubelet, clock, every_seconds=0.5)
    task = asyncio.create_task(pods.run())
    try:
        yield pods
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_pods_are_known_before_anybody_asks_and_told_of_when_they_change() -> None:
    kubelet, clock, told = Kubelet(), FakeClock(), []
    async with listing(kubelet, clock) as pods:
        stop = pods.listen(lambda: told.append(sorted(one.name for one in pods.running().values())))
        kubelet.pods = [pod("web")]
        await clock.advance(5)
        assert told == [["web"]], "the same answer again is no news"
        kubelet.pods = [pod("web"), pod("job")]
        kubelet.pods[1]["status"]["phase"] = "Succeeded"
        await clock.advance(5)
        assert told[1:] == [["web"]], "a pod that is over does not come"
        kubelet.down = True
        await clock.advance(30)
        assert [one.name for one in pods.running().values()] == ["web"]
        assert len(told) == 2
        kubelet.down = False
        kubelet.pods = []
        await clock.advance(30)
        assert told[2:] == [[]]
        stop()
        assert kubelet.asked > 10


async def test_nobody_is_asked_without_the_setting() -> None:
    kubelet, clock = Kubelet(), FakeClock()
    task = asyncio.create_task(PodList(kubelet, clock).run())
    await clock.advance(60)
    assert kubelet.asked == 0
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_facts_of_a_pod_leave_its_containers_open() -> None:
    kubelet, clock = Kubelet(), FakeClock()
    kubelet.pods = [pod("web", labels={"app": "web"})]
    uid = kubelet.pods[0]["metadata"]["uid"]
    async with listing(kubelet, clock) as pods:
        await clock.advance(1)
        attestor = KubernetesAttestor(pods, None, roots=ROOTS)
        assert list(attestor.coming()) == [uid]
        assert not attestor.started(uid)
        facts = await attestor.expected(uid)
        assert facts.values("k8s:pod-name") == {"web"}
        assert facts.values("k8s:pod-label:app") == {"web"}
        assert all(facts.why_unknown(each) for each in CONTAINER_TYPES)
        assert not (await attestor.expected("another")).selectors
        assert not attestor.started("another")
        kubelet.pods = [pod("web", uid=uid, containers={"main": "ab" * 32})]
        await clock.advance(1)
        assert attestor.started(uid)
        # Without the list of Services, nobody knows which names the certificate will have.
        attestor = KubernetesAttestor(pods, ServiceWatch(Silent(), clock), roots=ROOTS)
        facts = await attestor.expected(uid)
        assert not facts.selectors
        assert facts.why_unknown("k8s:ns")


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ({"attestors": ["unix"], "ahead": {}}, "needs the attestor 'kubernetes'"),
        ({"attestors": ["kubernetes"], "ahead": {"look": "10ms"}}, "100ms"),
        ({"attestors": ["kubernetes"], "ahead": {"identities": 0}}, "greater than 0"),
    ],
)
def test_settings_that_cannot_be_meant(written: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        NodeSettings.model_validate(written)
