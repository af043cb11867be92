"""The SPIFFE Workload API and whoami, over a front door, checked at the level of the wire."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import yaml
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_der_private_key
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from sds._proto.spiffe.workload import workload_pb2
from sds.agent.config import AgentConfig
from sds.agent.directory import make_directory
from sds.agent.owners import Owners
from sds.agent.socket_guard import SocketGuard
from sds.agent.sockets import close, listen_for
from sds.cli import main
from sds.clock import SystemClock
from sds.identity import Identity, SpiffeId, parse_trust_domain
from sds.secrets.store import SecretStore
from sds.serving.service import SecretService
from sds.serving.unsent_secrets import UnsentSecrets
from sds.serving.workload_api import WorkloadApi
from sds.settings import yamlfile
from sds.workload.connection_caller import entitlement_of
from sds.workload.entitlement import Caller, Entitlement
from sds.workload.mapping import Matching
from sds.workload.recognition import Timing
from sds.workload.whoami import WhoamiService
from tests.support.front_door import TRUST_DOMAIN, Door, front_door, rules, unix, until
from tests.support.process import output, sds
from tests.support.svids import mint, root

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from sds.workload.recognition import Rules

OURS = {"unix:uid": str(os.geteuid())}
HEADER = (("workload.spiffe.io", "true"),)
FAST = Timing(hold=0.2, retry_first=0.02, recheck=0.1)


class Served:
    def __init__(self, door: Door, store: SecretStore, channel: grpc.aio.Channel) -> None:
        self.door = door
        self.store = store
        self.channel = channel

    def svids(self, metadata: Any = HEADER) -> Any:
        call: grpc.aio.UnaryStreamMultiCallable[Any, Any] = self.channel.unary_stream(
            "/SpiffeWorkloadAPI/FetchX509SVID",
            workload_pb2.X509SVIDRequest.SerializeToString,
            workload_pb2.X509SVIDResponse.FromString,
        )
        return call(workload_pb2.X509SVIDRequest(), metadata=metadata)

    def bundles(self) -> Any:
        call: grpc.aio.UnaryStreamMultiCallable[Any, Any] = self.channel.unary_stream(
            "/SpiffeWorkloadAPI/FetchX509Bundles",
            workload_pb2.X509BundlesRequest.SerializeToString,
            workload_pb2.X509BundlesResponse.FromString,
        )
        return call(workload_pb2.X509BundlesRequest(), metadata=HEADER)

    async def identities(self) -> list[Identity]:
        """Those that recognition asks rotation for."""
        await until(lambda: self.door.keeper.kept)
        return sorted(self.door.keeper.kept, key=lambda identity: identity.spiffe_id)


@contextlib.asynccontextmanager
async def served(folder: Path, mapping: Rules, timing: Timing = FAST) -> AsyncIterator[Served]:
    store = SecretStore()
    async with (
        front_door(
            folder,
            attestors=unix(),
            rules=mapping,
            timing=timing,
            more=lambda _: (
                WorkloadApi(store, entitlement_of, unsent=UnsentSecrets(store)).handler(),
                WhoamiService().handler(),
            ),
        ) as door,
        grpc.aio.insecure_channel(f"unix:{door.path}") as channel,
    ):
        yield Served(door, store, channel)


async def test_svids_with_keys_and_bundles_now_and_after_each_rotation(tmp_path: Path) -> None:
    both = rules(OURS, {"unix:uid": "*"}, matching=Matching.ALL)
    signer, foreign = root(TRUST_DOMAIN), root("other.org")
    async with served(tmp_path, both, Timing()) as it:
        stream = it.svids()
        first, second = await it.identities()
        it.store.put_bundle(TRUST_DOMAIN, [signer.der])
        it.store.put_bundle(parse_trust_domain("other.org"), [foreign.der])
        it.store.put_svid(mint(signer, second))  # not the default: nothing is sent yet
        held = mint(signer, first)
        it.store.put_svid(held)
        answer = await stream.read()
        assert [svid.spiffe_id for svid in answer.svids] == [
            "spiffe://example.org/r0",
            "spiffe://example.org/r1",
        ]
        leaf = x509.load_der_x509_certificate(answer.svids[0].x509_svid)
        key = load_der_private_key(answer.svids[0].x509_svid_key, None)
        assert leaf.public_key() == key.public_key()
        assert answer.svids[0].bundle == signer.der
        assert dict(answer.federated_bundles) == {"spiffe://other.org": foreign.der}
        assert held.key_id in it.store.held_keys()
        fresh = mint(signer, first)
        it.store.put_svid(fresh)
        answer = await stream.read()
        assert answer.svids[0].x509_svid == fresh.chain[0]
        await until(lambda: held.key_id not in it.store.held_keys())
        stream.cancel()
        await until(lambda: fresh.key_id not in it.store.held_keys())


async def test_a_client_without_an_svid_holds_up_no_new_root(tmp_path: Path) -> None:
    old, new = root(TRUST_DOMAIN), root("new")
    async with served(tmp_path, rules(OURS), Timing()) as it:
        stream = it.svids()
        (identity,) = await it.identities()
        it.store.put_bundle(TRUST_DOMAIN, [old.der])
        it.store.put_svid(mint(old, identity))
        await stream.read()
        it.store.withdraw_svid(identity)  # the authority is away for too long, and back with a root
        version = it.store.put_bundle(TRUST_DOMAIN, [old.der, new.der])
        assert not await it.store.until_acked(TRUST_DOMAIN, version, timeout_seconds=1)
        it.store.put_svid(mint(new, identity))
        answer = await stream.read()
        assert answer.svids[0].bundle == b"".join(sorted([old.der, new.der]))
        version = it.store.put_bundle(TRUST_DOMAIN, [new.der])
        assert it.store.stragglers(TRUST_DOMAIN, version)  # with an SVID it is waited for
        await stream.read()
        assert not await it.store.until_acked(TRUST_DOMAIN, version, timeout_seconds=10)


async def test_bundles_of_every_trust_domain(tmp_path: Path) -> None:
    signer, foreign = root(TRUST_DOMAIN), root("other.org")
    async with served(tmp_path, rules(OURS)) as it:
        stream = it.bundles()
        await it.identities()
        it.store.put_bundle(TRUST_DOMAIN, [signer.der])
        assert dict((await stream.read()).bundles) == {"spiffe://example.org": signer.der}
        it.store.put_bundle(parse_trust_domain("other.org"), [foreign.der])
        assert set((await stream.read()).bundles) == {"spiffe://example.org", "spiffe://other.org"}
        stream.cancel()


@pytest.mark.parametrize("metadata", [(), (("workload.spiffe.io", "yes"),)])
async def test_the_header_is_required(tmp_path: Path, metadata: Any) -> None:
    async with served(tmp_path, rules(OURS)) as it:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await it.svids(metadata).read()
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "workload.spiffe.io" in (caught.value.details() or "")


async def test_whoever_is_not_recognised_gets_nothing(tmp_path: Path) -> None:
    async with served(tmp_path, rules({"unix:uid": "4242"})) as it:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await it.svids().read()
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_a_stream_ends_when_its_rule_goes(tmp_path: Path) -> None:
    signer = root(TRUST_DOMAIN)
    async with served(tmp_path, rules(OURS)) as it:
        stream = it.svids()
        (identity,) = await it.identities()
        it.store.put_bundle(TRUST_DOMAIN, [signer.der])
        it.store.put_svid(mint(signer, identity))
        assert (await stream.read()).svids
        it.door.recogniser.replace_rules(rules({"unix:uid": "4242"}))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_a_workload_without_an_identity_is_refused_until_it_has_one(tmp_path: Path) -> None:
    store, signer, caller = (
        SecretStore(),
        root(TRUST_DOMAIN),
        Caller(name="web", selectors=frozenset(), identities=()),
    )
    entitlement = Entitlement(caller)

    async def whose(_: object) -> Entitlement:
        return entitlement

    store.put_bundle(TRUST_DOMAIN, [signer.der])
    api = WorkloadApi(store, whose, unsent=UnsentSecrets(store)).handler()
    async with (
        front_door(tmp_path, attestors=unix(), rules=rules(OURS), more=lambda _: (api,)) as door,
        grpc.aio.insecure_channel(f"unix:{door.path}") as channel,
    ):
        it = Served(door, store, channel)
        for call in (it.svids, it.bundles):
            entitlement.replace(caller)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call().read()
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
            identity = Identity(spiffe_id=SpiffeId.parse("spiffe://example.org/web"))
            entitlement.replace(dataclasses.replace(caller, identities=(identity,)))
            store.put_svid(mint(signer, identity))
            stream = call()
            await stream.read()
            entitlement.replace(caller)  # new rules took it away
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stream.read()
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_the_key_of_an_identity_that_a_caller_lost_is_let_go(tmp_path: Path) -> None:
    signer, store = root(TRUST_DOMAIN), SecretStore()
    old, new = (Identity(spiffe_id=SpiffeId(TRUST_DOMAIN, path)) for path in ("/old", "/new"))
    caller = Caller(name="web", selectors=frozenset(), identities=(old,))
    entitlement = Entitlement(caller)

    async def whose(_: object) -> Entitlement:
        return entitlement

    store.put_bundle(TRUST_DOMAIN, [signer.der])
    before, after = mint(signer, old), mint(signer, new)
    store.put_svid(before)
    store.put_svid(after)
    api = WorkloadApi(store, whose, unsent=UnsentSecrets(store)).handler()
    async with (
        front_door(tmp_path, attestors=unix(), rules=rules(OURS), more=lambda _: (api,)) as door,
        grpc.aio.insecure_channel(f"unix:{door.path}") as channel,
    ):
        stream = Served(door, store, channel).svids()
        await stream.read()
        await until(lambda: store.held_keys() == {before.key_id})
        entitlement.replace(dataclasses.replace(caller, identities=(new,)))
        await stream.read()
        await until(lambda: store.held_keys() == {after.key_id})


async def test_whoami_as_a_table_and_as_json(tmp_path: Path) -> None:
    async with served(tmp_path, rules(OURS)) as it:
        code, out, err = await output(sds("whoami", "--socket", it.door.path))
        assert (code, err) == (0, "")
        assert f"unix:uid:{os.geteuid()}" in out
        assert "spiffe://example.org/r0  (rule r0)" in out
        code, out, _ = await output(sds("whoami", "--socket", it.door.path, "--output", "json"))
        answer = json.loads(out)
        assert answer["state"] == "recognised"
        assert answer["identities"][0]["spiffe_id"] == "spiffe://example.org/r0"
        assert {"type": "unix:uid", "value": str(os.geteuid())} in answer["selectors"]


async def test_whoami_of_a_caller_that_nothing_matches(tmp_path: Path) -> None:
    async with served(tmp_path, rules({"unix:uid": "4242"})) as it:
        code, out, err = await output(sds("whoami", "--socket", it.door.path))
        assert code == 1
        assert "state       no_match" in out
        assert err.startswith("sds: no workload rule matches this caller")
        assert "4242" not in out + err


def test_whoami_where_nobody_listens(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["whoami", "--socket", str(tmp_path / "none.sock")])
    assert result.exit_code == 1
    assert "check that the agent runs" in result.stderr


async def services(channel: grpc.aio.Channel) -> set[str]:
    """What the reflection of a server lists."""
    call: Any = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    answer = await call.read()
    call.cancel()
    return {each.name for each in answer.list_services_response.service}


@pytest.mark.parametrize("kind", ["own", "grpc"])
async def test_a_workloads_own_socket_serves_it_until_the_agent_drains(
    kind: str, tmp_path: Path
) -> None:
    settings = tmp_path / "agent.yaml"
    settings.write_text(
        yaml.safe_dump(
            {
                "trust_domain": "example.org",
                "run_dir": str(tmp_path / "run"),
                "transport": kind,
                "authority": {"addresses": ["127.0.0.1:8443"]},
                "attestation": {"kind": "sev-snp"},
                "verification": {"reference_values": {"measurements": ["ab" * 48]}},
                "workloads": [
                    {"name": "web", "spiffe_id": "spiffe://example.org/web"},
                    {"name": "api", "spiffe_id": "spiffe://example.org/api"},
                ],
            }
        )
    )
    config = yamlfile.load_file(settings, AgentConfig)
    make_directory(config.run_dir, 0o700)
    make_directory(config.workloads_directory, 0o700)
    store, signer = SecretStore(), root(TRUST_DOMAIN)
    store.put_bundle(TRUST_DOMAIN, [signer.der])
    own = config.sockets_of_their_own[0]
    web, api = config.identities()
    store.put_svid(mint(signer, api))
    with contextlib.closing(SecretService(store, clock=SystemClock())) as service:
        served = WorkloadApi(store, entitlement_of, unsent=service.unsent)
        owners = Owners(config.node, config.budgets)
        guard = SocketGuard(clock=SystemClock(), keep=config.run_dir / "kept")
        may = (own.identity(),)
        opened = await listen_for(own, config, service, served, owners, guard=guard, identities=may)
        async with grpc.aio.insecure_channel(f"unix:{opened.path}") as channel:
            call: Any = channel.unary_stream(
                "/SpiffeWorkloadAPI/FetchX509SVID",
                request_serializer=workload_pb2.X509SVIDRequest.SerializeToString,
                response_deserializer=workload_pb2.X509SVIDResponse.FromString,
            )
            stream = call(workload_pb2.X509SVIDRequest(), metadata=HEADER)
            for _ in range(2):
                fresh = mint(signer, web)
                store.put_svid(fresh)
                (svid,) = (await stream.read()).svids
                assert (svid.spiffe_id, svid.x509_svid) == (str(web.spiffe_id), fresh.chain[0])
            assert "SpiffeWorkloadAPI" in await services(channel)
            served.drain()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stream.read()
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            with pytest.raises(grpc.aio.AioRpcError, match="is stopping"):
                await call(workload_pb2.X509SVIDRequest(), metadata=HEADER).read()
        await close(opened.listening, grace_seconds=0)
