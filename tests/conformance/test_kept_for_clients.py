"""What clients make the agent keep is counted, or it is not kept: in nothing that they can fill."""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
from typing import TYPE_CHECKING, Any, ClassVar

import grpc
import pytest
from envoy.service.discovery.v3 import discovery_pb2

from sds.agent import client_list
from sds.identity import Identity, SpiffeId, TrustDomain
from sds.policy.authorized import Authorization, AuthorizationRule
from sds.rules.glob import Glob
from sds.serving import extension_catalog, secret_catalog
from sds.serving.encode import SECRET_TYPE
from sds.serving.observer import Event
from sds.serving.peer_policy import PeerContext
from sds.serving.service import ServingOptions
from sds.serving.session import CallerSession
from sds.serving.slices import SLICE
from sds.serving.subscription import DeltaRequest, DeltaSubscription, SotwRequest, SotwSubscription
from sds.serving.workload_api import WorkloadApi
from sds.transport import frames
from sds.transport.connection import Connection
from sds.transport.events import ConnectionLimits
from sds.transport.frames import PREFACE, frame
from sds.transport.header_decoder import HeaderDecoder, _Passage
from sds.workload.connection_caller import entitlement_of
from sds.workload.entitlement import Caller, Entitlement
from tests.support.door_client import DATA
from tests.support.raw_client import (
    DELTA,
    FETCH,
    STREAM,
    RawClient,
    connected,
    message,
)
from tests.support.serving import TD, WEB, root, serving, svid
from tests.support.turn_counter import turns
from tests.support.xds_client import Delta, Sotw, channel

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from pathlib import Path

    from sds.serving.stream import Stream
    from tests.support.serving import Serving

ADS = b"/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"
BLOCK = bytes.fromhex("838684410130")  # POST, http, /, :authority 0
OURSELVES = f"uid {os.geteuid()}"


class Everybody:
    """A policy in which every target is somebody's."""

    def inbound(self, caller: Caller) -> PeerContext:
        return self.outbound(caller, "")

    def outbound(self, caller: Caller, target: str) -> PeerContext:
        del caller, target
        return PeerContext(matchers=(), trust_domains=(TD,))


def in_frames(client: RawClient, path: bytes, data: bytes) -> int:
    """A call with a message of any size."""
    number = client.call(path, data[:16_000])
    for at in range(16_000, len(data), 16_000):
        client.connection.sendall(frame(DATA, 0, number, data[at : at + 16_000]))
    return number


async def the_stream(at: Serving) -> Stream:
    """The only stream, once there is one."""
    while not (found := [one for each in at.service.sessions() for one in each.streams]):
        await asyncio.sleep(0.01)
    (stream,) = found
    return stream


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


# --- names --------------------------------------------------------------------------------------


async def test_targets_that_a_client_makes_up_are_kept_within_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is a context for each, so that one that policy forgot is taken away from Envoys."""
    monkeypatch.setattr(secret_catalog, "_CONTEXT_BYTES", 200_000)
    options = ServingOptions(peers=Everybody())
    async with serving(tmp_path, options=options) as at, channel(at.target) as connection:
        stream = Delta(connection)
        before: list[str] = []
        for turn in range(3):
            names = [f"outbound:{turn}.{number}." + "x" * 1_900 for number in range(40)]
            await stream.ask(*names, unsubscribe=before)
            left = set(names)
            while left:
                response = await stream.next()
                left -= {one.name for one in response.resources}
                await stream.ack(response)
            before = names
        (session,) = at.service.sessions()
        assert not session.snapshot(SECRET_TYPE, strong=False)._found
        known = at.service._catalog
        assert known._contexts._held <= 200_000
        assert 0 < len(known._contexts) < 30
        assert not len(known._stamps)


async def test_what_a_client_says_that_it_has_counts_until_it_is_looked_at(tmp_path: Path) -> None:
    """Names and versions of a first request with the wildcard: nobody asked for them by name."""
    versions = {f"{number:04}" + "n" * 400: "v" * 500 for number in range(240)}
    request = discovery_pb2.DeltaDiscoveryRequest(initial_resource_versions=versions)
    async with serving(tmp_path) as at:
        with connected(at.socket, window=0) as client:
            await asyncio.to_thread(in_frames, client, DELTA, message(request.SerializeToString()))
            stream = await the_stream(at)
            await until(lambda: any(stream.conversations))
            await until(lambda: at.service._names.held(OURSELVES) > 240 * (404 + 500))
            client.connection.sendall(frame(4, 0, 0, b"\0\4\x7f\xff\xff\xff"))
            await until(lambda: not at.service._names.held(OURSELVES))
            assert stream.session.streams


@pytest.mark.parametrize("wildcard", [False, True])
def test_names_that_come_and_go_leave_nothing_while_nothing_can_be_sent(*, wildcard: bool) -> None:
    subscription: DeltaSubscription[Any] = DeltaSubscription()
    if wildcard:
        list(subscription.outcomes(DeltaRequest(subscribe=("*",))))
    counted = 0
    for turn in range(5):
        names = tuple(f"{turn}.{number}" for number in range(500))
        list(subscription.outcomes(DeltaRequest(subscribe=names)))
        for outcome in subscription.outcomes(DeltaRequest(unsubscribe=names)):
            counted += outcome.passing
    known = 2_500 if wildcard else 0
    assert len(subscription) == len(subscription._due) == known
    assert counted >= known * 640
    if not wildcard:
        assert sys.getsizeof(subscription._watches) + sys.getsizeof(subscription._due) < 10_000


def test_names_of_another_list_leave_nothing_while_nothing_can_be_sent() -> None:
    subscription: SotwSubscription[Any] = SotwSubscription()
    for turn in range(5):
        names = tuple(f"{turn}.{number}" for number in range(500))
        list(subscription.outcomes(SotwRequest(names)))
    list(subscription.outcomes(SotwRequest(("last",))))
    assert list(subscription._due) == ["last"]
    assert sys.getsizeof(subscription._watches) + sys.getsizeof(subscription._due) < 10_000


async def test_a_name_that_stands_for_many_bundles_costs_as_many(tmp_path: Path) -> None:
    """The store remembers of each stream what it was sent of each of them."""
    async with serving(tmp_path) as at, channel(at.target) as connection:
        for number in range(20):
            at.store.put_bundle(TrustDomain(f"d{number}.example"), [root("one").der])
        stream = Sotw(connection)
        await stream.ask("ALL")
        await stream.ack(await stream.next(), "ALL")
        assert at.service._names.held(OURSELVES) >= 19 * 512
        await stream.ask("default", nonce=stream.last.nonce)
        await until(lambda: 0 < at.service._names.held(OURSELVES) < 1_000)
        stream.cancel()
        await until(lambda: not at.service._names.held(OURSELVES))


async def test_types_that_are_left_unanswered_are_not_kept(tmp_path: Path) -> None:
    async with serving(tmp_path) as at:
        with connected(at.socket) as client:
            number = client.call(ADS, b"")
            for kind in range(40):
                request = discovery_pb2.DiscoveryRequest(type_url=f"{kind:02}" + "t" * 2_000)
                data = message(request.SerializeToString())
                await asyncio.to_thread(client.send, number, data)
            stream = await the_stream(at)
            await until(lambda: stream._other_types is not None and len(stream._other_types) == 16)
            assert stream._other_types is not None
            assert sum(map(sys.getsizeof, stream._other_types)) < 1_000


async def test_an_answer_that_is_made_counts(tmp_path: Path) -> None:
    """Each of many single requests would have an answer of its own beside it."""
    names = [f"outbound:{number}." + "x" * 1_900 for number in range(1_900)]
    request = discovery_pb2.DiscoveryRequest(resource_names=names).SerializeToString()
    options = ServingOptions(peers=Everybody())
    async with serving(tmp_path, options=options) as at, channel(at.target) as connection:
        call: Any = connection.unary_unary(FETCH.decode())
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(request)
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "fewer resources" in (refused.value.details() or "")
        few = discovery_pb2.DiscoveryRequest(resource_names=names[:100]).SerializeToString()
        answer = discovery_pb2.DiscoveryResponse.FromString(await call(few))
        assert len(answer.resources) == 100


async def test_the_state_of_the_agent_lists_so_many_streams_and_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a client decides how large the answer is that people get."""
    monkeypatch.setattr(client_list, "MOST_OF_A_WORKLOAD", 2)
    monkeypatch.setattr(client_list, "MOST_NAMES", 5)
    async with serving(tmp_path) as at:
        with connected(at.socket) as client:
            for number in range(3):
                names = [f"{number}{name}" + "\N{GRINNING FACE}" * 500 for name in range(4)]
                asked = discovery_pb2.DiscoveryRequest(resource_names=names).SerializeToString()
                # A node of bytes that are no text: each is shown as a character of three bytes.
                node = b"\x12\xfb\x01\x0a\xf8\x01" + b"\xff" * 248
                await asyncio.to_thread(in_frames, client, STREAM, message(asked + node))
            await until(lambda: sum(one.watched() for one in at.service.sessions()) == 12)
            clients, unlisted = client_list.listed_clients(at.service)
            assert [len(one.subscriptions) for one in clients] == [4, 1]
            assert unlisted == 1
            shown = [one.name for each in clients for one in each.subscriptions]
            assert {len(name.encode()) for name in shown} == {2 + 63 * 4}
            assert {len(one.node.encode()) for one in clients} == {85 * 3}


async def test_names_that_a_client_refuses_are_counted_while_it_does(tmp_path: Path) -> None:
    async with serving(tmp_path) as at, channel(at.target) as connection:
        stream = Sotw(connection)
        await stream.ask("default", "ROOTCA")
        response = await stream.next()
        (subscription,) = [
            conversation.subscription
            for each in at.service.sessions()
            for one in each.streams
            for conversation in one.conversations.values()
        ]
        await stream.nack(response, "default", "ROOTCA", error="e" * 1_000)
        for _ in range(2):  # each alone, because only one may be bad
            await stream.nack(await stream.next(), "default", "ROOTCA", error="e" * 1_000)
        await until(lambda: at.tally.events[Event.NACK] == 3)
        assert subscription.refused() == 2
        assert {len(one.error) for one in subscription.watched()} == {512}
        at.store.put_svid(svid())
        await stream.ack(await stream.next(), "default", "ROOTCA")
        await until(lambda: subscription.refused() == 1)
        await stream.ask("default", nonce=stream.last.nonce)
        await until(lambda: subscription.refused() == 0)


# --- connections --------------------------------------------------------------------------------


def numbers(count: int) -> range:
    return range(1, 2 * count + 1, 2)


def test_a_connection_forgets_the_streams_that_it_had() -> None:
    limits = ConnectionLimits(concurrent_streams=10_000, frames_per_second=1e9, frame_burst=1 << 40)
    made = Connection(limits)
    made.receive(PREFACE + frame(frames.SETTINGS, 0, 0), 0.0)
    opened = b"".join(frame(frames.HEADERS, frames.END_HEADERS, n, BLOCK) for n in numbers(2_000))
    widened = b"".join(frame(frames.WINDOW_UPDATE, 0, n, b"\0\0\0\1") for n in numbers(2_000))
    reset = b"".join(frame(frames.RST_STREAM, 0, n, bytes(4)) for n in numbers(1_990))
    made.receive(opened + widened + widened + reset, 0.0)
    streams = made._streams
    assert made.streams == 10
    assert sys.getsizeof(streams.open) < 5_000
    assert streams.out._widened is not None
    assert len(streams.out._widened._heap) < 100


def test_numbers_of_streams_that_we_reset_count() -> None:
    made = Connection(ConnectionLimits())
    made.receive(PREFACE + frame(frames.SETTINGS, 0, 0), 0.0)
    first, *others = (
        frame(frames.HEADERS, frames.END_HEADERS, n, b"\x00\x01A\x00") for n in numbers(300)
    )
    made.receive(first, 0.0)  # from now on it has a table of fields of its own
    before = made.held
    made.receive(b"".join(others), 0.0)
    assert made.held - before == 255 * 72


@pytest.mark.parametrize("left", [1, 400_000, 600_000])
def test_what_is_left_of_a_message_keeps_no_more_than_is_counted(left: int) -> None:
    """A client lets all of a message be sent but its last byte, on each of many streams."""
    size = 1_000_000
    made = Connection(ConnectionLimits())
    settings = frames.settings({frames.SETTING_INITIAL_WINDOW_SIZE: size + 5 - left})
    wider = frames.window_update(0, 2**30)
    made.receive(
        PREFACE + settings + wider + frame(frames.HEADERS, frames.END_HEADERS, 1, BLOCK), 0.0
    )
    made.take_output()
    message, empty = bytes(size), made.held
    before = sys.getrefcount(message)
    assert not made.send_message(1, message)
    sent = made.take_output()
    assert sum(map(len, sent)) > size - left
    if sys.getrefcount(message) == before:  # nothing is kept but the rest
        assert left <= made.held - empty < 2 * left + 1_000
    else:
        assert made.held - empty >= size
        assert left > size / 2
    made.cancel(1)
    assert made.held <= empty + 72


def test_field_blocks_that_a_connection_keeps_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections that say the same share them, but the shared memory may forget them first."""
    monkeypatch.setattr(HeaderDecoder, "_ROOT", _Passage())
    monkeypatch.setattr(HeaderDecoder, "_known", 0)
    blocks = [b"\0\1x\x7f\x85\x06" + bytes([65 + number]) * 900 for number in range(7)]
    for end in range(1, 7):  # each connection adds one block
        before = HeaderDecoder()
        for block in blocks[:end]:
            before.decode(block)
    follower = HeaderDecoder()
    for block in blocks[:6]:
        follower.decode(block)
    assert follower._said == tuple(blocks[:6])  # it has no table of its own
    assert follower.held >= sum(map(len, blocks[:6]))
    follower.decode(blocks[6])
    assert not follower._said  # now it has one, and that is all that it needs


# --- turns --------------------------------------------------------------------------------------


async def test_a_change_wakes_streams_of_the_workload_api_in_slices(tmp_path: Path) -> None:
    async with serving(tmp_path) as at:
        api = WorkloadApi(at.store, entitlement_of, unsent=at.service.unsent)
        events = [asyncio.Event() for _ in range(3 * SLICE)]
        api._following |= dict.fromkeys(events, at.entitlement)
        at.store.put_bundle(TD, [root("another").der])
        seen = [sum(one.is_set() for one in events)]
        while seen[-1] < len(events):
            await asyncio.sleep(0)
            seen.append(sum(one.is_set() for one in events))
        assert seen[0] == 0
        assert max(after - before for before, after in itertools.pairwise(seen)) <= SLICE


async def test_many_changes_of_one_turn_take_no_memory_for_each_stream(tmp_path: Path) -> None:
    """All identities are renewed together, and one client has thousands of streams."""
    async with serving(tmp_path) as at:
        api = WorkloadApi(at.store, entitlement_of, unsent=at.service.unsent)
        events = [asyncio.Event() for _ in range(5 * SLICE)]
        api._following |= dict.fromkeys(events, at.entitlement)
        others = [Identity(spiffe_id=SpiffeId(TD, f"/other/{number}")) for number in range(100)]
        for identity in others:
            at.store.put_svid(svid(identity))
        assert len(api._wakes._waiting) <= 6
        at.store.put_svid(svid())  # the last change is the one that concerns the streams
        async with asyncio.timeout(10):
            await asyncio.gather(*(one.wait() for one in events))
        await until(lambda: not api._wakes._waiting)
        assert not api._in_round
        for one in events:
            one.clear()
        at.store.put_svid(svid(mark="again"))
        async with asyncio.timeout(10):
            await asyncio.gather(*(one.wait() for one in events))


async def test_a_renewal_asks_nothing_of_callers_whose_identity_it_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node renews hundreds of identities together, and has thousands of callers."""
    other = Identity(spiffe_id=SpiffeId(TD, "/other"))
    asked: list[Caller] = []
    told: list[str] = []
    current = Entitlement.current

    def counted(self: Entitlement) -> Caller:
        caller = current.fget(self)  # type: ignore[attr-defined]  # a property
        asked.append(caller)
        return caller  # type: ignore[no-any-return]

    async with serving(tmp_path) as at:
        callers = []
        for number in range(50):
            caller = Caller(name=f"{number}", selectors=frozenset(), identities=(WEB,))
            callers.append(Entitlement(caller))
            session = at.service._enter(callers[-1])
            monkeypatch.setattr(
                CallerSession, "changed", lambda self, _: told.append(self.caller.name)
            )
        monkeypatch.setattr(Entitlement, "current", property(counted))
        at.store.put_svid(svid(other))
        assert not asked
        callers[7].replace(Caller(name="moved", selectors=frozenset(), identities=(WEB, other)))
        at.store.put_svid(svid(other, mark="again"))
        assert told == ["moved"]
        told.clear()
        at.store.put_svid(svid())
        assert len(told) == 50
        at.service._leave(session)
        told.clear()
        at.store.put_svid(svid(mark="third"))
        assert len(told) == 49
        for one in list(at.service.sessions()):
            at.service._leave(one)
        assert not at.service._by_identity._of
        assert not at.service._by_identity._filed


async def test_a_change_of_policy_compares_what_callers_share_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pod may have a hundred connections, each of them a caller of its own."""
    compared = 0
    grants = extension_catalog._grants

    def counted(allowed: Authorization) -> frozenset[object]:
        nonlocal compared
        compared += 1
        return grants(allowed)

    class Changing:
        now: ClassVar[dict[SpiffeId, Authorization]] = {}

        def authorization(self, identity: SpiffeId, *, now: datetime) -> Authorization:
            del now
            return self.now[identity]

    def rules(name: str) -> dict[SpiffeId, Authorization]:
        one = AuthorizationRule(name=name, trust_domain=TD, principals=(Glob((TD, name)),))
        return {WEB.spiffe_id: Authorization(identity=WEB.spiffe_id, enforced=(one,))}

    monkeypatch.setattr(extension_catalog, "_grants", counted)
    Changing.now = rules("before")
    async with serving(tmp_path, options=ServingOptions(authorizations=Changing())) as at:
        for number in range(50):
            caller = Caller(name=f"{number}", selectors=frozenset(), identities=(WEB,))
            at.service._enter(Entitlement(caller))
        Changing.now = rules("after")
        at.service.refresh()
        assert 0 < compared <= 2


async def test_heartbeats_go_out_in_slices(tmp_path: Path) -> None:
    count = 0

    class Beating:
        def extend_lives(self) -> None:
            nonlocal count
            count += 1
            counter.happened()

    class Session:
        streams = ()

        def conversations(self, _type_url: str) -> list[Beating]:
            return [Beating()] * (3 * SLICE)

        def end(self, _error: Exception) -> None:
            """Nobody is here."""

    async with serving(tmp_path) as at, turns() as counter:
        session: Any = Session()
        at.service._sessions[at.entitlement] = session
        at.service._beat()
        await until(lambda: count == 3 * SLICE)
        assert counter.most <= SLICE


def test_a_caller_with_many_streams_lets_go_of_each_alone() -> None:
    """A listener that goes is found among thousands without a look at the others."""
    asked = 0

    class Asked:
        def __eq__(self, other: object) -> bool:
            nonlocal asked
            asked += 1
            return self is other

        __hash__ = None  # type: ignore[assignment]

        def __call__(self) -> None:
            """Hear of a change."""

    entitlement = Entitlement(Caller(name="web", selectors=frozenset(), identities=()))
    stops = [entitlement.listen(Asked()) for _ in range(300)]
    for stop in reversed(stops):
        stop()
        stop()
    assert asked == 0
    assert not entitlement._listeners._listeners
