"""Recognition comes before any handler: an unrecognised caller learns only who it is."""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from sds._proto.sds.workload.v1 import whoami_pb2
from sds.agent.node import _server
from sds.clock import SystemClock
from sds.secrets.store import SecretStore
from sds.serving.observer import Event, Method
from sds.serving.service import SecretService
from sds.serving.workload_api import WorkloadApi
from sds.transport.budget import Budgets
from sds.unix_sockets import listening
from sds.workload import whoami
from sds.workload.connection_caller import CallerDescription, entitlement_of
from sds.workload.entitlement import Selector
from sds.workload.front_door import FrontDoor
from sds.workload.recognition import Recogniser, Recognition, Timing
from tests.support.front_door import Keeper, rules, unix

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from sds.transport.server import Server

FAST = Timing(hold=0.2, retry_first=0.02, retry_most=0.05, recheck=5, linger=0)
OURS, NOBODY = {"unix:uid": str(os.geteuid())}, {"unix:uid": "4242"}
REFLECT = reflection_pb2.ServerReflectionRequest(list_services="")
CALLS = {
    "/grpc.health.v1.Health/Check": health_pb2.HealthCheckRequest(),
    "/grpc.health.v1.Health/Watch": health_pb2.HealthCheckRequest(),
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": REFLECT,
    "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets": None,
    "/envoy.service.secret.v3.SecretDiscoveryService/DeltaSecrets": None,
    "/envoy.service.secret.v3.SecretDiscoveryService/FetchSecrets": None,
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources": None,
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources": None,
    "/envoy.service.status.v3.ClientStatusDiscoveryService/FetchClientStatus": None,
    "/envoy.service.status.v3.ClientStatusDiscoveryService/StreamClientStatus": None,
    "/SpiffeWorkloadAPI/FetchX509SVID": None,
    "/SpiffeWorkloadAPI/FetchX509Bundles": None,
    "/no.such.Service/Method": None,
}


class Counted:
    """A serving observer that remembers."""

    def __init__(self) -> None:
        self.events: list[tuple[Event, Method]] = []

    def count(self, event: Event, method: Method, amount: int = 1) -> None:
        self.events += [(event, method)] * amount

    def nacked(self, words: str) -> None:
        raise AssertionError(words)


class Node:
    """The node-wide socket's own server behind a door."""

    def __init__(self, path: Path, counted: Counted, server: Server) -> None:
        self.path = path
        self.counted = counted
        self.server = server

    async def answers(self, method: str, request: Any = None) -> list[bytes]:
        """The first answers to a call as bytes; raises its status."""
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(f"unix:{self.path}", options=options) as channel:
            open_call: Any = channel.unary_stream(method)
            call: Any = open_call(
                b"" if request is None else request.SerializeToString(), timeout=5
            )
            found = []
            async for answer in call:
                found.append(answer)
                if method.endswith(("Watch", "Info")):
                    break
            return found


@pytest.fixture
async def node(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Node]:
    store, counted = SecretStore(), Counted()
    service = SecretService(store, observer=counted, clock=SystemClock())
    api = WorkloadApi(store, entitlement_of, unsent=service.unsent)
    server = await _server(service, api, Budgets())
    attestors = unix()
    recogniser = Recogniser(
        attestors=attestors, rules=rules(request.param), keeper=Keeper(), timing=FAST
    )
    path = tmp_path / "sds.sock"
    door = FrontDoor(listening(path, 0o666), recogniser=recogniser)
    running = asyncio.create_task(door.run(server))
    yield Node(path, counted, server)
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    await server.stop(0)
    service.close()


@pytest.mark.parametrize("node", [NOBODY], indirect=True)
@pytest.mark.parametrize("method", CALLS)
async def test_an_unrecognised_caller_is_refused_before_any_handler(
    node: Node, method: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await node.answers(method, CALLS[method])
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "no workload rule matches this caller" in (caught.value.details() or "")
    refused = [method for event, method in node.counted.events if event is Event.STREAM_REFUSED]
    assert len(refused) == (1 if "discovery.v3" in method or "secret.v3" in method else 0)


@pytest.mark.parametrize("node", [NOBODY], indirect=True)
async def test_an_unrecognised_caller_may_ask_who_it_is(node: Node) -> None:
    (answer,) = await node.answers(whoami.METHOD)
    said = whoami_pb2.DescribeResponse.FromString(answer)
    assert said.state == "no_match"
    assert {each.type for each in said.selectors} >= {"unix:uid", "unix:gid"}


@pytest.mark.parametrize("node", [OURS], indirect=True)
async def test_a_caller_whose_executable_has_no_name_in_utf_8_may_ask_who_it_is(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux allows any byte in a name, and protobuf has no text for it."""
    described = Recognition.describe

    async def describe(caller: Recognition) -> CallerDescription:
        found = Selector("unix:path", os.fsdecode(b"/opt/x\xff"))
        return replace(
            await described(caller), selectors=frozenset({found}), details=(found.value,)
        )

    monkeypatch.setattr(Recognition, "describe", describe)
    (answer,) = await node.answers(whoami.METHOD)
    said = whoami_pb2.DescribeResponse.FromString(answer)
    assert [each.value for each in said.selectors] == ["/opt/x\\udcff"] == list(said.details)


@pytest.mark.parametrize("node", [OURS], indirect=True)
async def test_a_recognised_caller_has_health_reflection_and_a_plain_answer(node: Node) -> None:
    assert await node.answers("/grpc.health.v1.Health/Check", health_pb2.HealthCheckRequest())
    (listed,) = await node.answers(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", REFLECT
    )
    services = reflection_pb2.ServerReflectionResponse.FromString(listed).list_services_response
    assert {whoami.SERVICE, "SpiffeWorkloadAPI"} <= {each.name for each in services.service}
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await node.answers("/no.such.Service/Method")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
