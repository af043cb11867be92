"""One event that concerns many handlers runs a few of them in each turn of the event loop."""

from __future__ import annotations

import asyncio
import struct
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from sds.errors import WorkloadError
from sds.serving.conversation import Conversation
from sds.serving.service import SecretService
from sds.transport.server import Server
from sds.unix_sockets import listening
from tests.support.door_client import ACK, SETTINGS, frame
from tests.support.raw_client import STREAM, connected, discovery, message
from tests.support.serving import TD, root, serving
from tests.support.turn_counter import turns

if TYPE_CHECKING:
    from pathlib import Path

    from sds.serving.stream import Stream
    from tests.support.raw_client import RawClient
    from tests.support.serving import Serving

STREAMS = 100
SETTINGS_TAKEN = frame(SETTINGS, ACK, 0, b"")
MOST = 30
"""Handlers in one turn of the loop: each takes a millisecond, a turn has three; the rest is what
the turns expect of steps before they have seen any."""


def call_many(raw: RawClient, path: bytes, data: bytes, timeout: str = "") -> list[int]:
    return [raw.call(path, data, timeout=timeout) for _ in range(STREAMS)]


def ask_all(raw: RawClient, numbers: list[int]) -> None:
    for number in numbers:
        raw.send(number, discovery("default"))


async def until(count: Counter[str], name: str) -> None:
    while count[name] < STREAMS:
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("by", ["event", "deadline", "timeout"])
async def test_handlers_that_one_event_wakes_run_in_turns(by: str, tmp_path: Path) -> None:
    count: Counter[str] = Counter()
    event = asyncio.Event()

    async def wait(_requests: Any, context: Any) -> None:
        count["waiting"] += 1
        try:
            async with asyncio.timeout(0.5 if by == "timeout" else None):
                await event.wait()
        except TimeoutError:
            pass
        finally:
            counter.work()
            count["woken"] += 1
        await context.abort(grpc.StatusCode.ABORTED, "woken")

    methods: dict[str, Any] = {"Wait": grpc.stream_stream_rpc_method_handler(wait)}
    server = Server([grpc.method_handlers_generic_handler("t.T", methods)])
    path = tmp_path / "t.sock"
    await server.listen(listening(path, 0o600))
    try:
        async with turns() as counter:
            with connected(path) as raw:
                timeout = "500m" if by == "deadline" else ""
                await asyncio.to_thread(call_many, raw, b"/t.T/Wait", message(b""), timeout)
                await until(count, "waiting")
                if by == "event":
                    event.set()
                else:
                    time.sleep(0.6)  # noqa: ASYNC251  the loop is busy: all are late together
                await until(count, "woken")
        assert max(counter.seen.values()) <= MOST
    finally:
        await server.stop(0)


async def test_streams_of_a_caller_that_is_gone_end_in_turns(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And nothing is sent on them meanwhile."""
    count: Counter[str] = Counter()
    close = SecretService.close_stream

    def closing(service: SecretService, stream: Stream) -> None:
        counter.work()
        count["closed"] += 1
        close(service, stream)

    monkeypatch.setattr(SecretService, "close_stream", closing)
    async with serving(tmp_path) as at, turns() as counter:
        with connected(at.socket) as raw:
            numbers = await asyncio.to_thread(call_many, raw, STREAM, discovery("nothing"))
            while sum(len(one.streams) for one in at.service.sessions()) < STREAMS:
                await asyncio.sleep(0.01)
            at.entitlement.end(WorkloadError("the process has ended", reason="peer_gone"))
            await asyncio.to_thread(ask_all, raw, numbers)
            await until(count, "closed")
            got = await asyncio.to_thread(raw.read_times, b"grpc-status", STREAMS)
        assert b"PRIVATE KEY" not in got
    assert max(counter.seen.values()) <= MOST


def all_streams(at: Serving) -> list[Stream]:
    return [one for session in at.service.sessions() for one in session.streams]


def window(size: int) -> bytes:
    """How much the server may send on each stream, from now on."""
    return frame(SETTINGS, 0, 0, struct.pack(">HI", 4, size))


async def test_pushes_that_windows_held_back_go_on_in_turns(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The owner pays for these steps too, however short its steps were before."""
    count: Counter[str] = Counter()
    make = Conversation.next

    def making(conversation: Conversation) -> bytes | None:
        counter.work()
        count["made"] += 1
        return make(conversation)

    async with serving(tmp_path) as at, turns() as counter:
        with connected(at.socket) as raw:
            await asyncio.to_thread(call_many, raw, STREAM, discovery("ROOTCA"))
            await asyncio.to_thread(raw.read_times, b"BEGIN CERTIFICATE", STREAMS)
            while any(one._writing for one in all_streams(at)):
                await asyncio.sleep(0.01)  # a handler that still writes would write the push itself
            raw.connection.sendall(window(0))
            await asyncio.to_thread(raw.read_until, SETTINGS_TAKEN)
            at.store.put_bundle(TD, [root("one").der, root("two").der])
            while not all(one._writer is not None for one in all_streams(at)):
                await asyncio.sleep(0.01)
            at.store.put_bundle(TD, [root("two").der])
            await asyncio.sleep(0.1)
            output: Any = all_streams(at)[0]._output
            account = output.owner.account
            account.step_seconds = 20e-6
            used = account.processor._full_at
            monkeypatch.setattr(Conversation, "next", making)
            raw.connection.sendall(window(2**31 - 1))
            await until(count, "made")
    assert max(counter.seen.values()) <= MOST
    assert account.processor._full_at - used > 0.001 * STREAMS
