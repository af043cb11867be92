"""Limits: one client that goes over one is told so, and harms nobody else."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from sds.serving.limits import ServingLimits
from sds.serving.observer import Event
from sds.serving.service import ServingOptions
from tests.support.serving import serving, svid
from tests.support.xds_client import Delta, Sotw, channel, secrets

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.serving import Serving

pytestmark = pytest.mark.usefixtures("transport")


async def refused(at: Serving, stream: Sotw | Delta, word: str) -> None:
    code, text = await stream.status()
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED, text
    assert word in text
    async with channel(at.target) as connection:
        good = Sotw(connection)
        assert set(secrets(await good.get("default"))) == {"default"}
        good.cancel()


async def test_names_of_one_request(tmp_path: Path) -> None:
    options = ServingOptions(limits=ServingLimits(names_per_stream=10))
    async with serving(tmp_path, options=options) as at, channel(at.target) as connection:
        stream = Sotw(connection)
        await stream.ask(*(f"n{index}" for index in range(11)))
        await refused(at, stream, "10")
        assert at.tally.events[Event.LIMIT] == 1


async def test_names_of_one_delta_stream_over_many_requests(tmp_path: Path) -> None:
    options = ServingOptions(limits=ServingLimits(names_per_stream=10))
    async with serving(tmp_path, options=options) as at, channel(at.target) as connection:
        stream = Delta(connection)
        for index in range(11):
            await stream.ask(f"n{index}")
        await refused(at, stream, "10")


async def test_a_request_of_ten_megabytes(tmp_path: Path, transport: str) -> None:
    async with serving(tmp_path) as at, channel(at.target) as connection:
        stream = Sotw(connection)
        await stream.ask("x" * 10_000_000)
        await refused(at, stream, "at most 4194304" if transport == "own" else "vs. 4194304")


async def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    async with serving(tmp_path) as at, channel(at.target) as connection:
        stream = Sotw(connection)
        await stream.ask("x" * 10_000)
        await refused(at, stream, "10000 bytes")


async def test_requests_per_second_of_one_stream(tmp_path: Path) -> None:
    options = ServingOptions(limits=ServingLimits(requests_per_second=0.001, request_burst=20))
    async with serving(tmp_path, options=options) as at, channel(at.target) as connection:
        stream = Sotw(connection)
        for _ in range(21):
            await stream.ask("default")
        await refused(at, stream, "requests a second")


async def test_grpc_lets_a_stream_wait_that_is_too_many_for_its_connection(
    tmp_path: Path, transport: str
) -> None:
    options = ServingOptions(limits=ServingLimits(streams_per_connection=3))
    async with serving(tmp_path, options=options) as at, channel(at.target) as connection:
        streams = [Sotw(connection) for _ in range(3)]
        for stream in streams:
            await stream.get("default")
        one_more = Sotw(connection)
        if transport == "own":
            assert (await one_more.status())[0] == grpc.StatusCode.RESOURCE_EXHAUSTED
            return
        async with channel(at.target) as other:  # another connection has streams of its own
            assert set(secrets(await Sotw(other).get("default"))) == {"default"}
        assert sum(len(one.streams) for one in at.service.sessions()) <= 4
        streams.pop().cancel()
        assert set(secrets(await one_more.get("default"))) == {"default"}


@pytest.mark.parametrize(
    ("transport", "limit"),
    [
        ("own", "streams_per_socket"),
        ("own", "streams_per_connection"),
        ("grpc", "streams_per_socket"),
    ],
    indirect=["transport"],
)
async def test_streams_of_one_socket_and_of_one_connection(tmp_path: Path, limit: str) -> None:
    changed: dict[str, Any] = {limit: 3}
    options = ServingOptions(limits=replace(ServingLimits(), **changed))
    async with serving(tmp_path, options=options) as at, channel(at.target) as connection:
        streams = [Sotw(connection) for _ in range(3)]
        for stream in streams:
            await stream.get("default")
        one_more = Sotw(connection)
        code, text = await one_more.status()
        assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "3 streams" in text
        assert f"limits.{limit}" in text
        async with channel(at.target) as other:
            another = Sotw(other)
            if limit == "streams_per_connection":  # it is the limit of the other connection alone
                assert set(secrets(await another.get("default"))) == {"default"}
            else:
                assert (await another.status())[0] == grpc.StatusCode.RESOURCE_EXHAUSTED
            another.cancel()
        at.store.put_svid(svid())
        for stream in streams:
            await stream.next()


@pytest.mark.parametrize("transport", ["own"], indirect=True)
async def test_the_defaults_let_one_envoy_hold_a_thousand_secrets(tmp_path: Path) -> None:
    async with serving(tmp_path) as at, channel(at.target) as connection:
        streams = [Sotw(connection) for _ in range(1000)]
        for stream in streams:
            await stream.ask("default")
        for stream in streams:
            await stream.ack(await stream.next(), "default")
        at.store.put_svid(svid())
        for stream in streams:
            assert set(secrets(await stream.next())) == {"default"}
