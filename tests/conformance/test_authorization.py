"""Authorization over ECDS and ADS: names, lives, heartbeats, order, and what denies."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from base64 import b64decode, b64encode
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from envoy.config.core.v3 import base_pb2, extension_pb2
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2 as http_rbac_pb2
from envoy.extensions.filters.network.rbac.v3 import rbac_pb2 as network_rbac_pb2
from envoy.service.discovery.v3 import discovery_pb2
from envoy.service.status.v3 import csds_pb2
from google.protobuf import json_format

from sds.agent.policy_authorizations import PolicyAuthorizations
from sds.identity import SpiffeId, TrustDomain
from sds.policy.authorized import Authorization, AuthorizationRule
from sds.policy.requests import RequestPattern, parse_path_pattern
from sds.rules.pattern import parse_spiffe_pattern
from sds.serving.calls import ECDS_SERVICE
from sds.serving.observer import Event
from sds.serving.peer_policy import PeerContext, SanMatcher
from sds.serving.policy_change_order import PATIENCE_SECONDS
from sds.serving.rbac import http_filter
from sds.serving.service import ServingOptions
from tests.support import rbac
from tests.support.front_door import until
from tests.support.independent import decoded_twice
from tests.support.policies import Signatory, document, sign
from tests.support.policy_mesh import Author
from tests.support.process import PATIENCE_SECONDS as LONG
from tests.support.serving import API, TD, WEB, serving
from tests.support.xds_client import Delta, Sotw, channel, secrets

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from sds.workload.entitlement import Caller
    from tests.support.serving import Serving

EXTENSION = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig"
WRAPPED = "type.googleapis.com/envoy.service.discovery.v3.Resource"
PREFIX = f"/{ECDS_SERVICE}/"
WEB_ID, API_ID = str(WEB.spiffe_id), str(API.spiffe_id)


def rule(name: str, *sources: str, requests: tuple[RequestPattern, ...] = ()) -> AuthorizationRule:
    return AuthorizationRule(
        name=name,
        trust_domain=TrustDomain("example.org"),
        principals=tuple(parse_spiffe_pattern(source) for source in sources),
        requests=requests,
    )


WIDE = rule("wide", "spiffe://example.org/**")
NARROW = rule(
    "narrow",
    "spiffe://example.org/client",
    requests=(
        RequestPattern(methods=("GET",), paths=(parse_path_pattern("/orders/**"),), ports=(1, 2)),
    ),
)
ON_PORT = rule("port", "spiffe://example.org/client", requests=(RequestPattern(ports=(5432,)),))


class Policy:
    """A policy by hand, about requests and about peers."""

    def __init__(self) -> None:
        self.rules: dict[SpiffeId, tuple[AuthorizationRule, ...]] = {}
        self.shadow: tuple[AuthorizationRule, ...] | None = None
        self.epoch = 1
        self.ends_at: datetime | None = None
        self.matchers: tuple[SanMatcher, ...] = ()

    def authorization(self, identity: SpiffeId, *, now: datetime) -> Authorization:
        del now
        return Authorization(
            identity=identity,
            enforced=self.rules.get(identity, ()),
            shadow=self.shadow,
            epoch=self.epoch,
            ends_at=self.ends_at,
        )

    def inbound(self, _caller: Caller) -> PeerContext | None:
        return PeerContext(matchers=self.matchers, trust_domains=(TD,))

    def outbound(self, _caller: Caller, target: str) -> PeerContext | None:
        del target
        return None


@dataclass
class Authorizing:
    at: Serving
    policy: Policy
    connection: grpc.aio.Channel

    def sotw(self) -> Sotw:
        stream = Sotw(self.connection)
        self._move(stream, "StreamExtensionConfigs")
        return stream

    def delta(self) -> Delta:
        stream = Delta(self.connection)
        self._move(stream, "DeltaExtensionConfigs")
        return stream

    def _move(self, stream: Sotw | Delta, method: str) -> None:
        deserialize: Any = decoded_twice(
            discovery_pb2.DeltaDiscoveryResponse
            if isinstance(stream, Delta)
            else discovery_pb2.DiscoveryResponse
        )
        stream.call.cancel()
        stream.call = self.connection.stream_stream(
            PREFIX + method, request_serializer=None, response_deserializer=deserialize
        )()


@contextlib.asynccontextmanager
async def authorizing(
    folder: Path, *, ttl: timedelta = timedelta(hours=1)
) -> AsyncIterator[Authorizing]:
    policy = Policy()
    options = ServingOptions(authorizations=policy, peers=policy, authorization_ttl=ttl)
    async with (
        serving(folder, identities=(WEB, API), options=options) as at,
        channel(at.target) as connection,
    ):
        yield Authorizing(at, policy, connection)


def unwrapped(resource: Any) -> tuple[discovery_pb2.Resource, extension_pb2.TypedExtensionConfig]:
    """The wrapper, and the content, of a resource of either protocol."""
    if isinstance(resource, discovery_pb2.Resource):
        wrapper = resource
    else:
        wrapper = discovery_pb2.Resource()
        assert resource.type_url == WRAPPED
        assert resource.Unpack(wrapper)
    assert wrapper.resource.type_url == EXTENSION
    return wrapper, extension_pb2.TypedExtensionConfig.FromString(wrapper.resource.value)


def http(resource: Any) -> Any:
    config = http_rbac_pb2.RBAC()
    assert unwrapped(resource)[1].typed_config.Unpack(config)
    return config


def tcp(resource: Any) -> Any:
    config = network_rbac_pb2.RBAC()
    assert unwrapped(resource)[1].typed_config.Unpack(config)
    return config


# --- what is enforced ---------------------------------------------------------------------------


def test_the_filter_is_what_the_independent_encoder_makes() -> None:
    authorization = Authorization(identity=WEB.spiffe_id, enforced=(NARROW, WIDE))
    extension = extension_pb2.TypedExtensionConfig.FromString(http_filter("a", authorization))
    assert extension.name == "a"
    ours = http_rbac_pb2.RBAC()
    extension.typed_config.Unpack(ours)
    theirs = http_rbac_pb2.RBAC()
    config = dict(rbac.http_filter((NARROW, WIDE))["typed_config"])
    del config["@type"]
    json_format.Parse(json.dumps(config), theirs)

    def simple(permission: Any) -> Any:
        """An `and` or `or` of one thing is that thing."""
        kind = permission.WhichOneof("rule")
        if kind in {"and_rules", "or_rules"}:
            inner = getattr(permission, kind).rules
            if len(inner) == 1:
                return simple(inner[0])
            return (kind, tuple(map(simple, inner)))
        if kind == "not_rule":
            return ("not", simple(permission.not_rule))
        return permission.SerializeToString(deterministic=True)

    assert set(ours.rules.policies) == set(theirs.rules.policies) == {"narrow", "wide"}
    for name, policy in ours.rules.policies.items():
        other = theirs.rules.policies[name]
        assert list(map(simple, policy.permissions)) == list(map(simple, other.permissions))
        assert list(policy.principals) == list(other.principals)
        assert policy.condition == other.condition


def test_empty_rules_are_present_in_the_bytes() -> None:
    """Unset, they would allow everything; Python leaves an empty message out by itself."""
    nobody = Authorization(identity=WEB.spiffe_id, shadow=())
    for make, kind in ((http_filter, http_rbac_pb2.RBAC),):
        extension = extension_pb2.TypedExtensionConfig.FromString(make("authorization", nobody))
        assert b"\x0a\x00" in extension.typed_config.value  # field 1, length 0
        config = kind()
        extension.typed_config.Unpack(config)
        assert config.HasField("rules")
        assert not config.rules.policies
        assert config.HasField("shadow_rules")


async def test_every_identity_of_the_caller_and_nobody_else_s(tmp_path: Path) -> None:
    async with authorizing(tmp_path) as it:
        it.policy.rules = {WEB.spiffe_id: (NARROW,), API.spiffe_id: (WIDE, ON_PORT)}
        stream = it.sotw()
        names = (
            "authorization",
            "authorization-tcp",
            f"authorization:{API_ID}",
            f"authorization-tcp:{API_ID}",
            f"authorization:{API_ID}-tcp",
            "authorization:spiffe://example.org/other",
            "authorization:",
            "something",
        )
        await stream.ask(*names, type_url=EXTENSION)
        response = await stream.next()
        assert response.type_url == EXTENSION
        found = {unwrapped(one)[1].name: one for one in response.resources}
        assert set(found) == set(names[:5])
        assert set(http(found["authorization"]).rules.policies) == {"narrow"}
        assert set(http(found[f"authorization:{API_ID}"]).rules.policies) == {"wide", "port"}
        # A network filter sees no method and no path: what asks for them allows nothing there.
        assert tcp(found["authorization-tcp"]).HasField("rules")
        assert not tcp(found["authorization-tcp"]).rules.policies
        for name in names[3:5]:
            policies = tcp(found[name]).rules.policies
            assert set(policies) == {"wide", "port"}
            assert policies["port"].permissions[0].destination_port == 5432


@pytest.mark.usefixtures("transport")
async def test_what_no_policy_allows_is_denied_and_never_absent(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, options=ServingOptions()) as at,
        channel(at.target) as connection,
    ):
        stream = Authorizing(at, Policy(), connection).delta()
        await stream.ask("authorization", "authorization-tcp", type_url=EXTENSION)
        response = await stream.next()
        assert not response.removed_resources
        for resource in response.resources:
            config = http(resource) if resource.name == "authorization" else tcp(resource)
            assert config.HasField("rules")
            assert not config.rules.policies
            assert resource.ttl.ToTimedelta() == timedelta(hours=1)
        await ack(stream, response)
        await stream.silent()


async def test_fetch_and_the_aggregated_stream(tmp_path: Path) -> None:
    async with authorizing(tmp_path) as it:
        it.policy.rules = {WEB.spiffe_id: (NARROW,)}
        fetch = it.connection.unary_unary(
            PREFIX + "FetchExtensionConfigs",
            request_serializer=discovery_pb2.DiscoveryRequest.SerializeToString,
            response_deserializer=discovery_pb2.DiscoveryResponse.FromString,
        )
        answer = await fetch(discovery_pb2.DiscoveryRequest(resource_names=["authorization"]))
        assert set(http(answer.resources[0]).rules.policies) == {"narrow"}
        stream = Sotw(it.connection, ads=True)
        await stream.ask("authorization", type_url=EXTENSION)
        first = await stream.next()
        assert first.version_info == answer.version_info
        await stream.ask("default")
        second = await stream.next()
        assert set(secrets(second)) == {"default"}
        # Each type has its own nonces: an ACK of one says nothing of the other.
        await stream.ask("authorization", type_url=EXTENSION, nonce=first.nonce)
        await stream.ack(second, "default")
        await stream.silent()
        wrong = it.sotw()
        await wrong.ask("authorization")  # the type of secrets
        code, text = await wrong.status()
        assert code == grpc.StatusCode.INVALID_ARGUMENT
        assert EXTENSION in text


async def test_nothing_unchanged_is_sent_twice_and_each_epoch_is_a_version(tmp_path: Path) -> None:
    async with authorizing(tmp_path) as it:
        it.policy.rules = {WEB.spiffe_id: (NARROW,)}
        stream = it.delta()
        await stream.ask("authorization", type_url=EXTENSION)
        first = await stream.next()
        assert "-epoch1-" in first.resources[0].version
        await ack(stream, first)
        await stream.silent()
        it.policy.epoch = 2
        it.at.service.refresh()
        second = await stream.next()
        assert "-epoch2-" in second.resources[0].version
        await stream.ask(nonce=second.nonce, error="I do not like it", type_url=EXTENSION)
        await stream.silent()
        answer = await client_status(it)
        (entry,) = answer.config[0].generic_xds_configs
        assert (entry.type_url, entry.name) == (EXTENSION, "authorization")
        assert entry.config_status == csds_pb2.ERROR
        assert entry.error_state.details == "I do not like it"
        config = http_rbac_pb2.RBAC()
        shown = extension_pb2.TypedExtensionConfig()
        assert entry.xds_config.Unpack(shown)
        assert shown.typed_config.Unpack(config)
        assert set(config.rules.policies) == {"narrow"}


@pytest.mark.parametrize("at_once", [True, False])
async def test_a_change_that_cannot_be_taken_in_ends_the_streams_that_it_concerns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, at_once: bool
) -> None:
    """Before, they went on with what was allowed earlier, and heartbeats made that last."""
    async with authorizing(tmp_path) as it:
        it.policy.rules = {WEB.spiffe_id: (WIDE,)}
        concerned, other = it.sotw(), Sotw(it.connection)
        await concerned.ask("authorization", type_url=EXTENSION)
        await concerned.next()
        await other.get("default")
        plain = it.policy.authorization
        calls = itertools.count()

        def broken(identity: SpiffeId, *, now: datetime) -> Authorization:
            # At once: for the whole session; later: only as the name is looked up.
            if at_once or next(calls) >= len((WEB, API)):
                raise ZeroDivisionError("on purpose")
            return plain(identity, now=now)

        monkeypatch.setattr(it.policy, "authorization", broken)
        it.at.service.refresh()
        code, _ = await concerned.status()
        assert code == grpc.StatusCode.UNAVAILABLE
        if at_once:
            assert (await other.status())[0] == grpc.StatusCode.UNAVAILABLE
        else:
            await other.silent()


async def client_status(it: Authorizing) -> Any:
    call = it.connection.unary_unary(
        "/envoy.service.status.v3.ClientStatusDiscoveryService/FetchClientStatus",
        request_serializer=csds_pb2.ClientStatusRequest.SerializeToString,
        response_deserializer=csds_pb2.ClientStatusResponse.FromString,
    )
    return await call(csds_pb2.ClientStatusRequest())


# --- lives --------------------------------------------------------------------------------------


@pytest.mark.parametrize("delta", [False, True])
async def test_a_life_ends_with_the_policy_and_heartbeats_extend_it(
    tmp_path: Path, *, delta: bool
) -> None:
    async with authorizing(tmp_path, ttl=timedelta(seconds=3)) as it:
        it.policy.rules = {WEB.spiffe_id: (NARROW,)}
        stream: Any = it.delta() if delta else it.sotw()
        await stream.ask("authorization", type_url=EXTENSION)
        first = await stream.next()
        wrapper, _ = unwrapped(first.resources[0])
        assert wrapper.ttl.ToTimedelta() == timedelta(seconds=3)
        await ack(stream, first)
        for _ in range(2):
            beat = heartbeat(await stream.next(), wrapper.version)
            assert beat.ttl.ToTimedelta() == timedelta(seconds=3)
            await ack(stream, stream.last)
        it.policy.ends_at = datetime.now(UTC) + timedelta(seconds=2.9)
        beat = heartbeat(await stream.next(), wrapper.version)
        assert timedelta(0) < beat.ttl.ToTimedelta() <= timedelta(seconds=2.9)
        await ack(stream, stream.last)
        # A later end, by a later epoch that allows the same, counts at once.
        it.policy.ends_at, it.policy.epoch = datetime.now(UTC) + timedelta(days=1), 2
        it.at.service.refresh()
        wrapper, _ = unwrapped((await stream.next()).resources[0])
        assert wrapper.ttl.ToTimedelta() == timedelta(seconds=3)
        await ack(stream, stream.last)
        # A new stream gets what is left now, not what was left when it was made.
        it.policy.ends_at = datetime.now(UTC) + timedelta(seconds=2.9)
        await asyncio.sleep(0.5)
        late: Any = it.delta() if delta else it.sotw()
        await late.ask("authorization", type_url=EXTENSION)
        wrapper, _ = unwrapped((await late.next()).resources[0])
        assert wrapper.ttl.ToTimedelta() <= timedelta(seconds=2.4)


async def test_a_short_life_is_extended_in_time_if_the_clock_is_set_back(tmp_path: Path) -> None:
    """The clock was ahead, and the policy seemed to end soon. Nothing changes but the time left."""
    async with authorizing(tmp_path) as it:
        it.policy.rules = {WEB.spiffe_id: (NARROW,)}
        it.policy.ends_at = datetime.now(UTC) + timedelta(seconds=4)
        stream = it.sotw()
        await stream.ask("authorization", type_url=EXTENSION)
        first = await stream.next()
        wrapper, _ = unwrapped(first.resources[0])
        assert wrapper.ttl.ToTimedelta() <= timedelta(seconds=4)
        await ack(stream, first)
        it.policy.ends_at += timedelta(days=1)
        async with asyncio.timeout(wrapper.ttl.ToTimedelta().total_seconds()):
            beat = heartbeat(await stream.next(), wrapper.version)
        assert beat.ttl.ToTimedelta() == timedelta(hours=1)


async def test_a_heartbeat_of_nothing_voids_no_nonce(tmp_path: Path) -> None:
    """What the client has is out of date, and the new content is not due yet: nothing is sent."""
    async with authorizing(tmp_path) as it:
        stream = it.sotw()
        await stream.ask("authorization", type_url=EXTENSION)
        first = await stream.next()
        await ack(stream, first)
        await until(lambda: it.at.tally.events[Event.ACK] == 1)
        it.policy.epoch = 2
        (session,) = it.at.service.sessions()
        (conversation,) = session.conversations(EXTENSION)
        conversation.extend_lives()
        await stream.silent()
        assert not conversation.has_due()
        names = ("authorization", "authorization-tcp")
        await stream.ask(*names, nonce=first.nonce, type_url=EXTENSION)
        response = await stream.next()
        assert [unwrapped(one)[1].name for one in response.resources] == [names[1]]


async def ack(stream: Any, response: Any, name: str = "authorization") -> None:
    if isinstance(stream, Delta):
        await stream.ask(nonce=response.nonce, type_url=EXTENSION)
    else:
        await stream.ask(
            name,
            nonce=response.nonce,
            version=response.version_info,
            type_url=EXTENSION,
        )


def heartbeat(response: Any, version: str) -> discovery_pb2.Resource:
    """The only resource of a heartbeat.

    In state of the world it has its content again: Envoy ignores the TTL of one without.
    """
    (resource,) = response.resources
    if isinstance(resource, discovery_pb2.Resource):
        wrapper = resource
    else:
        wrapper = discovery_pb2.Resource()
        assert resource.Unpack(wrapper)
        assert response.version_info == version
    assert (wrapper.name, wrapper.version) == ("authorization", version)
    assert wrapper.HasField("resource") is (wrapper is not resource)
    return wrapper


# --- order --------------------------------------------------------------------------------------


CLIENT = SanMatcher("exact", "spiffe://example.org/client")


@pytest.fixture
def _waits_for_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only an answer lets the second part go: a slow machine cannot look like a wrong order."""
    monkeypatch.setattr("sds.serving.policy_change_order.PATIENCE_SECONDS", LONG)


class Envoy:
    """An authorization and a context on two streams of one connection."""

    def __init__(self, it: Authorizing, name: str = "authorization") -> None:
        self.authorization = it.sotw()
        self.context = Sotw(it.connection)
        self._name = name

    async def begin(self) -> None:
        await self.authorization.ask(self._name, type_url=EXTENSION)
        await self.acked(await self.authorization.next())
        await self.context.get("inbound")

    async def acked(self, response: Any) -> None:
        await ack(self.authorization, response, self._name)


@pytest.mark.usefixtures("_waits_for_answers")
async def test_what_narrows_goes_first_as_authorization_and_then_as_context(
    tmp_path: Path,
) -> None:
    async with authorizing(tmp_path) as it, channel(it.at.target) as other_connection:
        it.policy.rules, it.policy.matchers = {WEB.spiffe_id: (WIDE, NARROW)}, (CLIENT,)
        envoy = Envoy(it)
        mute = Envoy(replace(it, connection=other_connection))
        await envoy.begin()
        await mute.begin()
        it.policy.rules, it.policy.matchers = {WEB.spiffe_id: (NARROW,)}, ()
        it.policy.epoch = 2
        it.at.service.refresh()
        response = await envoy.authorization.next()
        await envoy.context.silent()
        await envoy.acked(response)
        # The one that never answers keeps its own context waiting, and nobody else's.
        assert set(secrets(await envoy.context.next())) == {"inbound"}
        await mute.context.silent()


async def test_a_mute_client_is_waited_for_no_longer_than_this(tmp_path: Path) -> None:
    async with authorizing(tmp_path) as it:
        it.policy.rules, it.policy.matchers = {WEB.spiffe_id: (WIDE,)}, (CLIENT,)
        mute = Envoy(it)
        await mute.begin()
        it.policy.rules, it.policy.matchers, it.policy.epoch = {}, (), 2
        loop = asyncio.get_running_loop()
        began = loop.time()
        it.at.service.refresh()
        await mute.context.next()
        assert loop.time() - began >= PATIENCE_SECONDS


@pytest.mark.usefixtures("_waits_for_answers")
async def test_what_widens_goes_first_as_context(tmp_path: Path) -> None:
    async with authorizing(tmp_path) as it:
        it.policy.rules, it.policy.matchers = {WEB.spiffe_id: (NARROW,)}, ()
        envoy = Envoy(it)
        await envoy.begin()
        it.policy.rules, it.policy.matchers = {WEB.spiffe_id: (WIDE, NARROW)}, (CLIENT,)
        it.policy.epoch = 2
        it.at.service.refresh()
        response = await envoy.context.next()
        await envoy.authorization.silent()
        await envoy.context.nack(response, "inbound", error="a NACK lets the other part go, too")
        assert set(http((await envoy.authorization.next()).resources[0]).rules.policies) == {
            "wide",
            "narrow",
        }


@pytest.mark.usefixtures("_waits_for_answers")
async def test_every_identity_of_the_caller_decides_the_order(tmp_path: Path) -> None:
    """The first identity gains what the second loses: that narrows, so contexts wait."""
    async with authorizing(tmp_path) as it:
        it.policy.rules, it.policy.matchers = {API.spiffe_id: (WIDE,)}, (CLIENT,)
        envoy = Envoy(it, f"authorization:{API_ID}")
        await envoy.begin()
        it.policy.rules, it.policy.matchers = {WEB.spiffe_id: (WIDE,)}, ()
        it.policy.epoch = 2
        it.at.service.refresh()
        response = await envoy.authorization.next()
        await envoy.context.silent()
        await envoy.acked(response)
        await envoy.context.next()


async def test_what_a_client_says_of_its_node_decides_nothing(tmp_path: Path) -> None:
    async with authorizing(tmp_path) as it, channel(it.at.target) as elsewhere:
        it.policy.rules = {WEB.spiffe_id: (NARROW,), API.spiffe_id: (WIDE,)}
        plain, posing = it.sotw(), replace(it, connection=elsewhere).sotw()
        await plain.ask("authorization", type_url=EXTENSION)
        node = base_pb2.Node(id=API_ID, cluster="api")
        node.metadata.update({"spiffe_id": API_ID, "WORKLOAD": "api", "NAMESPACE": "*"})
        await posing.ask("authorization", type_url=EXTENSION, node=node)
        first, second = await plain.next(), await posing.next()
        assert set(http(second.resources[0]).rules.policies) == {"narrow"}
        assert list(first.resources) == list(second.resources)


@pytest.mark.usefixtures("transport")
async def test_what_is_refused_changes_nothing(tmp_path: Path) -> None:
    """Edited, unsigned, signed by somebody else, older: what is enforced stays as it is."""
    author = Author()
    holder = author.holder()
    web = {"from": "spiffe://example.org/client", "to": WEB_ID}
    author.publish(holder, allow=[])
    first = author.publish(holder, allow=[])
    options = ServingOptions(authorizations=PolicyAuthorizations(holder))
    async with serving(tmp_path, options=options) as at, channel(at.target) as connection:
        stop = holder.listen(at.service.refresh)
        stream = Authorizing(at, Policy(), connection).delta()
        await stream.ask("authorization", type_url=EXTENSION)
        answer = await stream.next()
        assert not http(answer.resources[0]).rules.policies
        await ack(stream, answer)
        wider = document(3, allow=[web])
        good = sign(wider, author.signatory)
        envelope = json.loads(good)
        payload = b64decode(envelope["payload"]).replace(b"/client", b"/clienx")
        envelope["payload"] = b64encode(payload).decode()
        unsigned = {**json.loads(good), "signatures": []}
        offers = [
            json.dumps(envelope).encode(),
            json.dumps(unsigned).encode(),
            sign(wider, Signatory("mallory")),
            sign(document(1, allow=[web]), author.signatory),
            sign(document(2, allow=[web]), author.signatory),
        ]
        for offer in offers:
            outcome = holder.take(offer, origin="test")
            assert outcome.taken is None
            assert outcome.refusal is not None
        await stream.silent()
        assert holder.in_force() is first
        holder.take(good, origin="test")
        assert http((await stream.next()).resources[0]).rules.policies
        stop()
