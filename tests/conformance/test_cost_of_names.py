"""Names that a client chooses: their memory is bounded and counted, and rotation passes them by."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import os
import sys
import tracemalloc
from typing import TYPE_CHECKING

import pytest
from envoy.service.discovery.v3 import discovery_pb2
from envoy.service.secret.v3 import sds_pb2_grpc

from sds.errors import LimitError
from sds.secrets.store import Version
from sds.serving.limits import ServingLimits
from sds.serving.name_budget import NAME_OVERHEAD, NameBudget, NameLimits, name_cost, text_cost
from sds.serving.service import ServingOptions
from sds.serving.slices import SLICE
from sds.serving.subscription.state import RESPONSE_BYTES
from tests.support.door_client import DATA, frame
from tests.support.names_a_turn import names_a_turn
from tests.support.raw_client import STREAM, RawClient, connected, discovery
from tests.support.serving import TD, WEB, root, serving, svid
from tests.support.xds_client import Delta, Sotw, channel, secrets

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.names_a_turn import NamesATurn
    from tests.support.serving import Serving

_PER_STREAM = 1_000
_MEASURED = 5
"""Streams whose names are counted; tracing makes each name slow, and an owner has its share."""
OURSELVES = f"uid {os.geteuid()}"
_RAISED = ServingLimits(
    requests_per_second=1e9,
    request_burst=1_000_000,
    names=NameLimits(owner=2**40, guaranteed=2**40, everybody=2**40),
)


def ask(client: RawClient, names: list[str]) -> int:
    """Watch these names on a new stream, in frames of any size."""
    data = discovery(*names)
    number = client.call(STREAM, data[:16_000])
    for start in range(16_000, len(data), 16_000):
        client.connection.sendall(frame(DATA, 0, number, data[start : start + 16_000]))
    return number


def some(stream: int, prefix: str = "x") -> list[str]:
    return [f"{prefix}{stream}.{number}" for number in range(_PER_STREAM)]


async def watch(client: RawClient, at: object, streams: int, prefix: str = "x") -> None:
    for stream in range(streams):
        await asyncio.to_thread(ask, client, some(stream, prefix))


@pytest.mark.no_cover
async def test_what_a_name_costs_is_counted(tmp_path: Path) -> None:
    async with serving(tmp_path, options=ServingOptions(limits=_RAISED)) as at:
        with connected(at.socket) as client:
            await watch(client, at, 2, "warm")
            await until_watched(at, 2)
            gc.collect()
            tracemalloc.start()
            try:
                await watch(client, at, _MEASURED)
                await until_watched(at, 2 + _MEASURED)
                gc.collect()
                held, _ = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
    counted = sum(name_cost(name) for stream in range(_MEASURED) for name in some(stream))
    assert 0.3 * counted < held < counted, (held / _MEASURED / _PER_STREAM, NAME_OVERHEAD)


async def until_watched(at: object, streams: int) -> None:
    """Wait for so many; each time that some were taken, half a minute for more of them."""
    seen = -1
    while seen != streams * _PER_STREAM:
        before = seen
        while (seen := sum(each.watched() for each in at.service.sessions())) == before:  # type: ignore[attr-defined]  # a Serving
            await asyncio.sleep(0.02)


MOST = 4 * SLICE
"""Of names in one turn: taking them in, letting go, looking again and answering each do a slice."""


@pytest.mark.parametrize("prefix", ["x", "spiffe://example.org/x", "outbound:"])
async def test_a_rotation_does_not_look_at_names_that_it_cannot_concern(
    tmp_path: Path, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path, options=ServingOptions(limits=_RAISED)) as at:
        with connected(at.socket) as client, connected(at.socket) as reader:
            await asyncio.to_thread(reader.call, STREAM, discovery("default"))
            await asyncio.to_thread(reader.read_until, b"END PRIVATE KEY")
            await watch(client, at, 10, prefix)
            with names_a_turn(monkeypatch) as counts:
                await settled(at, 10_001, counts)
                counts.all.clear()
                at.store.put_svid(svid(WEB))
                await asyncio.to_thread(reader.read_until, b"END PRIVATE KEY")
                assert counts.all["looked up"] <= 4
                bundle = [root("one").der, root("two").der]
                at.store.put_bundle(TD, bundle)
                at.service.refresh()
                at.service.refresh(trust_changed=False)
                while counts.all["looked up"] < 10_000:
                    await asyncio.sleep(0)
                assert counts.most["looked up"] <= MOST


async def settled(at: Serving, names: int, counts: NamesATurn) -> None:
    """So many names are watched, and nothing is done any more."""
    while sum(one.watched() for one in at.service.sessions()) != names:
        await asyncio.sleep(0.01)
    before: dict[str, int] = {}
    while before != counts.all:
        before = dict(counts.all)
        await asyncio.sleep(0.02)


@pytest.mark.usefixtures("transport")
async def test_a_message_with_many_names_is_taken_in_slices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"x{number}" for number in range(1_990)]
    async with serving(tmp_path) as at, channel(at.target) as connection:
        with names_a_turn(monkeypatch) as counts:
            stream = Sotw(connection)
            await stream.ask(*names, "default")
            await stream.ask(*names, "ROOTCA")  # waits until the first one was taken
            assert set(secrets(await stream.next())) == {"default"}
            assert set(secrets(await stream.next())) == {"ROOTCA"}
            await settled(at, 1_991, counts)
            await stream.ask("ROOTCA", *(f"y{number}" for number in range(1_989)))
            await settled(at, 1_990, counts)  # one name fewer, so that this waits for it
            stream.cancel()
            await settled(at, 0, counts)
    assert min(counts.all.values()) > 3_900, counts.all
    assert max(counts.most.values()) <= MOST, counts.most


@pytest.mark.usefixtures("transport")
async def test_a_delta_message_with_many_names_is_taken_in_slices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"x{number}" for number in range(1_990)]
    async with serving(tmp_path) as at, channel(at.target) as connection:
        with names_a_turn(monkeypatch) as counts:
            stream = Delta(connection)
            await stream.ask(*names, "default", initial=dict.fromkeys(names, "v"))
            removed: set[str] = set()
            found: set[str] = set()
            while len(removed) + len(found) < 1_991:
                response = await stream.next()
                removed.update(response.removed_resources)
                found.update(one.name for one in response.resources)
                await stream.ack(response)
            assert (found, removed) == ({"default"}, set(names))
            await stream.ask("ROOTCA", *(f"y{n}" for n in range(1_900)), unsubscribe=names)
            await settled(at, 1_902, counts)
    assert max(counts.most.values()) <= MOST, counts.most


@pytest.mark.usefixtures("transport")
async def test_a_single_answer_is_found_in_slices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = discovery_pb2.DiscoveryRequest(
        resource_names=[*(f"x{number}" for number in range(1_990)), "default"]
    )
    async with serving(tmp_path) as at, channel(at.target) as connection:
        with names_a_turn(monkeypatch) as counts:
            fetch = sds_pb2_grpc.SecretDiscoveryServiceStub(connection).FetchSecrets
            assert set(secrets(await fetch(request))) == {"default"}
    assert counts.all["looked up"] > 1_900
    assert max(counts.most.values()) <= MOST, counts.most


class Values:
    """Generic secrets of 4 KiB each."""

    def names(self, _caller: object) -> tuple[str, ...]:
        return ()

    def current(self, _caller: object, name: str) -> tuple[Version, bytes] | None:
        return (Version("run-7"), b"v" * 4096) if name.startswith("value") else None


@pytest.mark.usefixtures("transport")
async def test_a_large_answer_goes_out_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"value{number}" for number in range(500)]
    options = ServingOptions(generic=Values())
    async with serving(tmp_path, options=options) as at, channel(at.target) as connection:
        with names_a_turn(monkeypatch) as counts:
            stream = Sotw(connection)
            await stream.ask(*names)
            seen: list[str] = []
            while len(seen) < len(names):
                response = await stream.next()
                assert (
                    response.ByteSize() <= RESPONSE_BYTES + 2 * 4096 + len(response.resources) * 200
                )
                seen += secrets(response)
                await stream.ack(response, *names)
            assert sorted(seen) == sorted(names)
            await stream.ask(*names, "default")
            assert set(secrets(await stream.next())) == {"default"}
    assert counts.most["looked up"] <= MOST, counts.most


async def test_one_owner_is_refused_and_the_others_are_not(tmp_path: Path) -> None:
    limits = ServingLimits(
        names=NameLimits(owner=3_000_000, guaranteed=10_000, everybody=10_000_000)
    )
    async with serving(tmp_path, options=ServingOptions(limits=limits)) as at:
        with connected(at.socket) as client:
            for stream in range(8):
                await asyncio.to_thread(ask, client, some(stream))
            await asyncio.to_thread(client.read_until, b"memory")
        while at.service.sessions():
            await asyncio.sleep(0.02)
        assert at.service._names.held(OURSELVES) == 0
        with connected(at.socket) as client:
            await asyncio.to_thread(client.call, STREAM, discovery("default"))
            await asyncio.to_thread(client.read_until, b"END PRIVATE KEY")


async def test_many_processes_of_one_owner_share_one_budget(tmp_path: Path) -> None:
    """Each of them is a caller with a name of its own on the node-wide socket."""
    async with serving(tmp_path) as at:
        with connected(at.socket) as first, connected(at.socket) as second:
            await asyncio.to_thread(ask, first, some(0))
            at.entitlement.replace(dataclasses.replace(at.entitlement.current, name="another"))
            await asyncio.to_thread(ask, second, some(1))
            await until_watched(at, 2)
            names = [*some(0), *some(1)]
            assert at.service._names.held(OURSELVES) == sum(map(name_cost, names))


@pytest.mark.parametrize("last", ["x", "\u00fc", "\u8a9e", "\U0001f600"])
def test_a_name_costs_what_its_characters_take(last: str) -> None:
    """One wide character makes all others of a text as wide."""
    name = "x" * 1999 + last
    takes = sys.getsizeof(name) + (0 if name.isascii() else len(name.encode()))
    assert name_cost(name) >= 500 + takes
    assert text_cost(name) >= takes
    assert text_cost("") == 0


async def test_what_a_client_says_about_names_that_it_refuses_counts(tmp_path: Path) -> None:
    async with serving(tmp_path) as at, channel(at.target) as connection:
        stream = Sotw(connection)
        budget = at.service._names

        async def until_held(count: int) -> None:
            async with asyncio.timeout(10):
                while budget.held(OURSELVES) != count:
                    await asyncio.sleep(0.01)

        for first in ("ack", "unsubscribe"):
            await stream.ask("default")
            response = await stream.next()
            await stream.ack(response, "default")
            before = name_cost("default")
            await until_held(before)
            at.store.put_svid(svid(mark=first))
            await stream.nack(await stream.next(), "default", error="e" * 500)
            await until_held(before + text_cost("e" * 500))
            at.store.put_svid(svid(mark=f"{first} again"))
            response = await stream.next()
            await stream.nack(response, "default", error="\u00fc" * 500)
            await until_held(before + text_cost("\u00fc" * 500))
            if first == "ack":
                at.store.put_svid(svid(mark="third"))
                await stream.ack(await stream.next(), "default")
                await stream.ask("default", "other")  # the next request counts it
            await stream.ask("other")
            await until_held(name_cost("other"))


def test_an_owner_within_its_share_is_never_refused() -> None:
    budget = NameBudget(NameLimits(owner=1000, guaranteed=100, everybody=1500))
    budget.take("a", 900)
    budget.take("b", 600)
    with pytest.raises(LimitError):
        budget.take("b", 1)
    for name in (f"small {number}" for number in range(50)):
        budget.take(name, 100)
        with pytest.raises(LimitError):
            budget.take(name, 1)
    budget.give_back("a", 900)
    assert budget.held("a") == 0
