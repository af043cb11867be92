"""What a person sees who debugs: reflection, health, CSDS. Never a byte of a private key."""

from __future__ import annotations

import asyncio
import base64
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from cryptography.hazmat.primitives import serialization
from envoy.extensions.transport_sockets.tls.v3 import secret_pb2
from envoy.service.discovery.v3 import discovery_pb2
from envoy.service.status.v3 import csds_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from sds.serving import answer_memory, client_status
from sds.serving.calls import ADS_SERVICE, SDS_SERVICE
from sds.serving.client_status import (
    CSDS_SERVICE,
    MOST_MATCHERS,
    MOST_REQUEST_BYTES,
    ClientStatus,
)
from sds.serving.limits import ServingLimits
from sds.serving.server import add_health, make_server
from sds.serving.slices import SLICE
from sds.unix_sockets import listening
from sds.workload.entitlement import Caller, Entitlement
from tests.support.process import PATIENCE_SECONDS
from tests.support.raw_client import STREAM, connected, message
from tests.support.serving import API, WEB, admin_socket, serving, svid
from tests.support.xds_client import SECRET, Sotw, channel

if TYPE_CHECKING:
    from pathlib import Path


def fetch_status(connection: grpc.aio.Channel) -> Any:
    return connection.unary_unary(
        f"/{CSDS_SERVICE}/FetchClientStatus",
        request_serializer=csds_pb2.ClientStatusRequest.SerializeToString,
        response_deserializer=csds_pb2.ClientStatusResponse.FromString,
    )


async def statuses(connection: grpc.aio.Channel) -> dict[str, tuple[str, str, str]]:
    """Name -> status, version, error."""
    response = await fetch_status(connection)(
        csds_pb2.ClientStatusRequest(), timeout=PATIENCE_SECONDS
    )
    return {
        entry.name: (
            csds_pb2.ConfigStatus.Name(entry.config_status),
            entry.version_info,
            entry.error_state.details,
        )
        for config in response.config
        for entry in config.generic_xds_configs
        if entry.type_url == SECRET
    }


async def test_statuses_are_shown_as_they_are(tmp_path: Path) -> None:
    async with serving(tmp_path) as at, channel(at.target) as connection:
        stream, other = Sotw(connection), Sotw(connection)
        first = await stream.get("default")
        await stream.silent()
        await other.ask("ROOTCA", "no-such-name")
        bundle = await other.next()
        seen = await statuses(connection)
        assert seen["default"] == ("SYNCED", first.version_info, "")
        assert seen["ROOTCA"] == ("STALE", "", "")
        assert seen["no-such-name"] == ("NOT_SENT", "", "")
        await other.nack(bundle, "ROOTCA", "no-such-name", error="cannot be parsed")
        await other.silent()
        assert (await statuses(connection))["ROOTCA"] == ("ERROR", "", "cannot be parsed")
        at.store.put_svid(svid())
        second = await stream.next()
        assert (await statuses(connection))["default"] == ("STALE", first.version_info, "")
        await stream.ack(second, "default")
        await stream.silent()
        assert (await statuses(connection))["default"] == ("SYNCED", second.version_info, "")


async def test_no_byte_of_a_private_key_is_in_an_answer(tmp_path: Path) -> None:
    async with serving(tmp_path) as at, channel(at.target) as connection:
        await Sotw(connection).get("default")
        call: Any = connection.stream_stream(
            f"/{CSDS_SERVICE}/StreamClientStatus",
            request_serializer=csds_pb2.ClientStatusRequest.SerializeToString,
            response_deserializer=None,
        )()
        await call.write(csds_pb2.ClientStatusRequest())
        raw = await call.read()
        stored = at.store.svid(WEB)
        assert stored is not None
        pem = stored.svid.private_key.reveal()
        key: Any = serialization.load_pem_private_key(pem, None)
        scalar = key.private_numbers().private_value.to_bytes(32, "big")
        der = key.private_bytes(
            serialization.Encoding.DER,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        lines = [line for line in pem.splitlines() if b"-----" not in line]
        for part in (scalar, der, base64.b64encode(der), *lines):
            assert part not in raw
        answer = csds_pb2.ClientStatusResponse.FromString(raw)
        secret = secret_pb2.Secret()
        assert answer.config[0].generic_xds_configs[0].xds_config.Unpack(secret)
        assert secret.tls_certificate.private_key.inline_string == "[redacted]"
        assert secret.tls_certificate.certificate_chain.inline_bytes
        await call.write(csds_pb2.ClientStatusRequest(exclude_resource_contents=True))
        answer = csds_pb2.ClientStatusResponse.FromString(await call.read())
        assert not answer.config[0].generic_xds_configs[0].HasField("xds_config")


async def test_a_workloads_socket_shows_nothing_of_others(tmp_path: Path) -> None:
    async with serving(tmp_path) as at, channel(at.target) as connection:
        await Sotw(connection).get("default")
        stranger = Entitlement(Caller(name="api", selectors=frozenset(), identities=(API,)))

        async def entitle(_context: object) -> Entitlement:
            return stranger

        other = make_server(at.service.options.limits, ClientStatus(at.service, entitle).handlers())
        await other.listen(listening(tmp_path / "other.sock", 0o600))
        try:
            async with (
                channel(f"unix:{tmp_path / 'other.sock'}") as theirs,
                admin_socket(at, tmp_path / "admin.sock") as admin,
                channel(f"unix:{admin}") as all_of_them,
            ):
                assert await statuses(theirs) == {}
                assert set(await statuses(all_of_them)) == {"default"}
        finally:
            await other.stop(0)


async def test_clients_are_found_by_node_id(tmp_path: Path) -> None:
    async with serving(tmp_path) as at, channel(at.target) as connection:
        await Sotw(connection).get("default")
        request = csds_pb2.ClientStatusRequest()
        request.node_matchers.add().node_id.prefix = "TEST-"
        assert not (await fetch_status(connection)(request)).config
        request.node_matchers[0].node_id.ignore_case = True
        (config,) = (await fetch_status(connection)(request)).config
        assert config.node.id == "test-node"
        assert config.client_scope == "web"
        request.node_matchers[0].node_id.safe_regex.regex = ".*"
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await fetch_status(connection)(request)
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_reflection_lists_the_services(tmp_path: Path) -> None:
    async with serving(tmp_path) as at, channel(at.target) as connection:
        stub = reflection_pb2_grpc.ServerReflectionStub(connection)

        async def ask() -> Any:
            yield reflection_pb2.ServerReflectionRequest(list_services="")

        async for answer in stub.ServerReflectionInfo(ask(), timeout=PATIENCE_SECONDS):
            listed = {service.name for service in answer.list_services_response.service}
            assert {SDS_SERVICE, ADS_SERVICE, CSDS_SERVICE, "grpc.health.v1.Health"} <= listed


async def test_health_tells_serving_and_not_serving(tmp_path: Path) -> None:
    async with serving(tmp_path) as at, channel(at.target) as connection:
        stub = health_pb2_grpc.HealthStub(connection)
        for serving_now in (True, False):
            at.health.tell(serving=serving_now)
            for service in ("", SDS_SERVICE):
                answer = await stub.Check(
                    health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE_SECONDS
                )
                expected = "SERVING" if serving_now else "NOT_SERVING"
                assert answer.status == health_pb2.HealthCheckResponse.ServingStatus.Value(expected)


async def test_watches_of_health_do_not_outlast_the_servers_stop(tmp_path: Path) -> None:
    server = make_server(ServingLimits(), ())
    add_health(server).tell(serving=True)
    await server.listen(listening(tmp_path / "sds.sock", 0o600))
    async with channel(f"unix:{tmp_path / 'sds.sock'}") as connection:
        watch = health_pb2_grpc.HealthStub(connection).Watch(health_pb2.HealthCheckRequest())
        await watch.read()
        stopping = asyncio.create_task(server.stop(10 * PATIENCE_SECONDS))
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert await watch.code() is grpc.StatusCode.UNAVAILABLE
            await stopping


WATCH = b"/grpc.health.v1.Health/Watch"


async def test_a_watcher_that_does_not_read_holds_up_nobody(tmp_path: Path) -> None:
    """Neither who tells the state, nor who watches the same service."""
    async with serving(tmp_path) as at, channel(at.target) as connection:
        with connected(at.socket, window=0) as stuck:
            await asyncio.to_thread(stuck.call, WATCH, message(b""), ends=True)
            stub = health_pb2_grpc.HealthStub(connection)
            watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE_SECONDS)
            states = health_pb2.HealthCheckResponse
            assert (await watch.read()).status == states.SERVING
            at.health.tell(serving=False)
            assert (await watch.read()).status == states.NOT_SERVING
            watch.cancel()


async def test_all_states_are_listed_and_other_services_are_unknown(tmp_path: Path) -> None:
    async with serving(tmp_path) as at, channel(at.target) as connection:
        stub = health_pb2_grpc.HealthStub(connection)
        listed = await stub.List(health_pb2.HealthListRequest(), timeout=PATIENCE_SECONDS)
        states = health_pb2.HealthCheckResponse
        assert listed.statuses[SDS_SERVICE].status == states.SERVING
        unknown = health_pb2.HealthCheckRequest(service="x" * 100_000)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.Check(unknown, timeout=PATIENCE_SECONDS)
        assert refused.value.code() == grpc.StatusCode.NOT_FOUND
        watch = stub.Watch(unknown, timeout=PATIENCE_SECONDS)
        assert (await watch.read()).status == states.SERVICE_UNKNOWN
        watch.cancel()


def matchers(count: int) -> bytes:
    request = csds_pb2.ClientStatusRequest()
    for _ in range(count):
        request.node_matchers.add().node_id.exact = ""
    encoded: bytes = request.SerializeToString()
    return encoded


@pytest.mark.parametrize(
    ("request_", "word"),
    [
        (matchers(MOST_MATCHERS + 1), "node_matchers"),
        (matchers(MOST_REQUEST_BYTES // 6 + 1), "bytes"),
        (b"\x0a\x00" * 1_000_000, "bytes"),
    ],
    ids=["too many matchers", "far too many", "a million of two bytes"],
)
async def test_a_request_for_status_is_bounded(
    tmp_path: Path, request_: bytes, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it is parsed: each matcher of two bytes would become an object of a hundred."""
    largest = 0
    parse = csds_pb2.ClientStatusRequest.FromString

    def counting(data: bytes) -> Any:
        nonlocal largest
        largest = max(largest, len(data))
        return parse(data)

    monkeypatch.setattr(client_status, "_from_bytes", counting)
    async with serving(tmp_path) as at, channel(at.target) as connection:
        call: Any = connection.unary_unary(f"/{CSDS_SERVICE}/FetchClientStatus")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(request_, timeout=PATIENCE_SECONDS)
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert word in (refused.value.details() or "")
    assert largest <= MOST_REQUEST_BYTES


async def test_a_status_is_made_in_slices_and_within_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = now = 0
    resource = client_status._resource

    def counting(*args: Any, **more: Any) -> Any:
        nonlocal most, now
        now += 1
        most = max(most, now)
        return resource(*args, **more)

    def turn() -> None:
        nonlocal now
        now = 0
        handles.append(loop.call_soon(turn))

    loop = asyncio.get_running_loop()
    handles: list[asyncio.Handle] = []
    monkeypatch.setattr(client_status, "_resource", counting)
    async with serving(tmp_path) as at, channel(at.target) as connection:
        with connected(at.socket) as client:
            names = [f"{number:04}" + "n" * 1_000 for number in range(1_990)]
            request = message(
                discovery_pb2.DiscoveryRequest(resource_names=names[:15]).SerializeToString()
            )
            for _ in range(100):
                await asyncio.to_thread(client.call, STREAM, request)
            while sum(one.watched() for one in at.service.sessions()) < 15:
                await asyncio.sleep(0.01)
            turn()
            seen = await statuses(connection)
            assert set(seen) == set(names[:15])
            handles[-1].cancel()
            assert most <= 4 * SLICE
            monkeypatch.setattr(answer_memory, "MOST_ANSWER_BYTES", 100_000)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await statuses(connection)
            assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "node_id" in (refused.value.details() or "")
