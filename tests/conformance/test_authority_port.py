"""The authority's port, to clients of several kinds: OpenSSL's, gRPC's, grpcurl, hostile ones."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import ssl
from typing import TYPE_CHECKING, Any

import pytest
from h2.settings import SettingCodes

from sds.ca import connections
from sds.ca.server import ExchangeLimits
from sds.errors import AuthorityUnavailableError
from sds.exchange.wire import SERVICE
from sds.transport.call import Call
from tests.support import need
from tests.support.authority import World, items, verifier_of, wish
from tests.support.grpcurl import grpcurl
from tests.support.hostile_stranger import EXCHANGE
from tests.support.raw_http2 import raw_connection, tls

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sds.ca.app import RunningAuthority

WISH = wish()
HEALTH = "/grpc.health.v1.Health/Watch"


async def s_client(port: int, *arguments: str, said: Sequence[str] = ()) -> str:
    """What OpenSSL's client prints; ``said`` are commands, each after what the one before does."""
    process = await asyncio.create_subprocess_exec(
        need.tool("openssl"),
        "s_client",
        "-connect",
        f"127.0.0.1:{port}",
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    printed = b""
    try:
        async with asyncio.timeout(20):
            # It throws away what it was told before the handshake.
            while b"Verify return code" not in printed:
                if not (data := await process.stdout.read(4096)):
                    return printed.decode(errors="replace")
                printed += data
            for command in said:
                process.stdin.write(command.encode() + b"\n")
                awaited = printed.count(b"KEYUPDATE") + (command in "kK")
                while printed.count(b"KEYUPDATE") < awaited:
                    data = await process.stdout.read(4096)
                    assert data, printed
                    printed += data
            process.stdin.write(b"Q\n")
            printed += await process.stdout.read()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    return printed.decode(errors="replace")


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def still_serves(world: World, authority: RunningAuthority) -> None:
    async with world.client(authority.port) as client:
        await client.issue(items([WISH]))


async def test_openssl_and_key_updates() -> None:
    world = World()
    async with world.running() as authority:
        printed = await s_client(authority.port, "-alpn", "h2", "-tls1_3")
        assert "ALPN protocol: h2" in printed
        assert "New Session Ticket arrived" not in printed
        assert "Compression: NONE" in printed
        printed = await s_client(authority.port, "-alpn", "h2", "-tls1_3", said=["K", "k"] * 20)
        assert printed.count("KEYUPDATE") == 40
        printed = await s_client(authority.port, "-alpn", "h2", "-tls1_2")
        assert "alert protocol version" in printed, printed
        await still_serves(world, authority)


@pytest.mark.parametrize(
    "offer",
    [
        ("-groups", "ffdhe8192"),
        ("-groups", "ffdhe2048", "-tls1_3"),
        ("-groups", "X448"),
        ("-groups", "P-521"),
    ],
)
async def test_what_costs_too_much_or_is_weak_is_not_negotiated(offer: tuple[str, ...]) -> None:
    world = World()
    async with world.running() as authority:
        printed = await s_client(authority.port, "-alpn", "h2", *offer)
        assert "alert handshake failure" in printed, printed
        await still_serves(world, authority)
        assert authority.connections.endpoints.failed >= 1


async def test_grpcurl_asks_for_health(tmp_path: Path) -> None:
    proto = tmp_path / "health.proto"
    proto.write_text(
        'syntax = "proto3"; package grpc.health.v1;'
        "message HealthCheckRequest { string service = 1; }"
        "message HealthCheckResponse { enum ServingStatus "
        "{ UNKNOWN = 0; SERVING = 1; NOT_SERVING = 2; SERVICE_UNKNOWN = 3; }"
        "ServingStatus status = 1; }"
        "service Health { rpc Check(HealthCheckRequest) returns (HealthCheckResponse); }"
    )
    async with World().running() as authority:
        status, printed, said = await grpcurl(
            "-insecure",
            "-import-path",
            tmp_path,
            "-proto",
            "health.proto",
            "-d",
            json.dumps({"service": SERVICE}),
            f"127.0.0.1:{authority.port}",
            "grpc.health.v1.Health/Check",
        )
        assert status == 0, said
        assert json.loads(printed) == {"status": "SERVING"}


async def test_a_stream_that_nobody_reads_keeps_only_its_window() -> None:
    """One message of 4 MiB at a time may be read here; the others wait in their windows."""
    world = World()
    limits = ExchangeLimits(unproven_bytes=1, hello_seconds=60)
    async with world.running(limits=limits) as authority, raw_connection(authority.port) as raw:
        streams = {raw.call(): 1024 * 1024 for _ in range(4)}
        for stream in streams:
            raw.announce(stream, 4 * 1024 * 1024 - 10)
        sending = asyncio.create_task(raw.push(streams, seconds=20))
        await until(lambda: list(streams.values()).count(0) == 1)
        left = sorted(streams.values())
        # Who waits has sent its window, which is not opened.
        assert all(one >= 1024 * 1024 - 65_536 for one in left[1:]), left
        (account,) = {one.owner for one in authority.connections.server._connections}
        assert account.held < 1024 * 1024 * 2
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        await still_serves(world, authority)


async def test_a_watch_keeps_nothing_of_what_else_is_sent() -> None:
    world = World()
    async with world.running() as authority, raw_connection(authority.port) as raw:
        streams = {}
        for _ in range(20):
            stream = raw.call(HEALTH)
            raw.http.send_data(stream, bytes(5))
            streams[stream] = 60_000
        await raw.push(dict(streams), seconds=1)
        await until(lambda: len(authority.connections.server._connections) == 1)
        (served,) = authority.connections.server._connections
        await until(lambda: served._streams == 20)
        assert served.owner.held < 20 * 8 * 1024 + 64 * 1024


@pytest.mark.parametrize("path", ["/grpc.health.v1.Health/Check", HEALTH, "/no/such"])
@pytest.mark.parametrize("message", ["none", "whole, and the answer is not read"])
async def test_calls_of_a_stranger_keep_no_agent_out(path: str, message: str) -> None:
    """All strangers share one budget of streams; these calls would take all of it, for ever."""
    world = World()
    async with (
        world.running(limits=ExchangeLimits(unproven=8)) as authority,
        contextlib.AsyncExitStack() as stack,
    ):
        account = authority.connections.server.budgets.strangers
        for _ in range(account.share.streams // 250 + 1):
            raw = await stack.enter_async_context(raw_connection(authority.port))
            await raw.receive()
            raw.http.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 0})
            for _ in range(250):
                stream = raw.call(path)
                if message != "none":
                    raw.http.send_data(stream, bytes(5))
            raw.flush()
        for _ in range(3):
            await still_serves(world, authority)
        await until(lambda: account.streams <= 16 + 8)
        assert len(authority.connections._stranger_calls) <= 16
    assert len(authority.connections._stranger_calls) == 0
    assert not authority.connections._stranger_calls._of


async def test_an_agents_other_calls_stay_once_it_has_proven_itself() -> None:
    """gRPC's client-side health checking watches on the agent's own connection."""
    world = World()
    async with (
        world.running(limits=ExchangeLimits(unproven=2)) as authority,
        raw_connection(authority.port) as agent,
    ):
        await agent.receive()
        watch = agent.call(HEALTH)
        agent.http.send_data(watch, bytes(5))
        agent.flush()
        await until(lambda: len(authority.connections._stranger_calls) == 1)
        (served,) = authority.connections.server._connections
        authority.connections.prove(served.caller, "a machine")  # type: ignore[arg-type]
        assert len(authority.connections._stranger_calls) == 0
        async with raw_connection(authority.port) as stranger:
            await stranger.receive()
            for _ in range(50):
                stranger.call(HEALTH)
            await until(lambda: len(authority.connections._stranger_calls) == 4)
        agent.call(HEALTH)
        await until(lambda: served._streams == 2)
        await until(lambda: len(authority.connections._stranger_calls) == 0)


async def test_a_large_request_of_another_method_is_refused() -> None:
    async with World().running() as authority, raw_connection(authority.port) as raw:
        stream = raw.call(HEALTH)
        raw.announce(stream, 5_000)
        async with asyncio.timeout(10):
            while stream not in raw.ended:
                await raw.receive()


async def test_a_caller_that_reads_nothing_loses_its_connection_and_nobody_waits() -> None:
    """The answers are larger than its windows and the kernel's buffers."""
    world = World()
    limits = ExchangeLimits(write_seconds=0.5, hello_seconds=60)
    async with world.running(limits=limits) as authority, raw_connection(authority.port) as raw:
        stream = raw.call()
        hello = b"\x0a\x22\x0a\x20" + b"n" * 32
        await raw.receive()
        for _ in range(200):
            raw.http.send_data(stream, b"\0" + len(hello).to_bytes(4, "big") + hello)
        raw.flush()
        await until(lambda: authority.service.streams == 1)
        began = asyncio.get_running_loop().time()
        await still_serves(world, authority)
        await until(lambda: authority.service.streams == 0)
        assert asyncio.get_running_loop().time() - began < 10
        await until(lambda: not authority.connections.server.tasks)


async def test_connections_without_a_greeting_or_a_call_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connections, "_GREETING_SECONDS", 0.3)
    monkeypatch.setattr(connections, "_IDLE_SECONDS", 0.6)
    caplog.set_level(logging.INFO)
    async with World().running() as authority:
        known = authority.connections
        silent = await asyncio.open_connection("127.0.0.1", authority.port)
        half = await asyncio.open_connection("127.0.0.1", authority.port, ssl=tls())
        async with raw_connection(authority.port) as idle, raw_connection(authority.port) as busy:
            stream = busy.call()
            assert await silent[0].read() == b""
            await half[0].read()
            async with asyncio.timeout(10):
                while await idle.receive():
                    pass
            silent[1].close()
            half[1].close()
            await until(lambda: known.strangers == 1)
            busy.http.reset_stream(stream)
            busy.flush()
            await until(lambda: known.strangers == 0)
    said = [record.__dict__["why"] for record in caplog.records if "why" in record.__dict__]
    assert said.count("the client did not greet in time") == 2
    assert said.count("there was no call for 0.6 s") == 2


async def test_a_client_that_breaks_tls_ends_alone_and_is_logged_within_a_bound(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    world = World()
    async with world.running() as authority, world.client(authority.port) as client:
        await client.issue(items([WISH]))
        for _ in range(200):
            reader, writer = await asyncio.open_connection("127.0.0.1", authority.port)
            writer.write(b"GET / HTTP/1.0\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                await reader.read()
            writer.close()
        assert authority.connections.endpoints.failed == 200
        await client.issue(items([WISH]))
    said = [record for record in caplog.records if record.message == "a connection was closed"]
    assert 10 <= len(said) < 100
    assert said[0].__dict__["why"].startswith("TLS: ")
    assert said[0].__dict__["peer"].startswith("ipv4:127.0.0.1:")


async def test_callers_that_have_gone_cost_nothing() -> None:
    async with World().running() as authority:
        known = authority.connections
        for _ in range(50):
            _, writer = await asyncio.open_connection("127.0.0.1", authority.port)
            writer.transport.abort()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        talk = context.wrap_bio(incoming, outgoing)
        with contextlib.suppress(ssl.SSLWantReadError):
            talk.do_handshake()
        hello = outgoing.read()
        for _ in range(50):
            _, writer = await asyncio.open_connection("127.0.0.1", authority.port)
            writer.write(hello)
            writer.write_eof()
            await asyncio.sleep(0)
            writer.close()
        await until(lambda: known.strangers == 0)
        assert known.endpoints.begun == 0


async def test_a_request_of_a_caller_that_has_gone_is_not_verified(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    verified: list[object] = []

    class Verifier:
        def verify(self, *about: Any, **more: Any) -> Any:
            verified.append(about)
            return verifier_of(world.agent).verify(*about, **more)

    async with (
        world.running(verifier=Verifier()) as authority,
        world.client(authority.port) as client,
    ):
        with monkeypatch.context() as patched:
            patched.setattr(Call, "client_left", lambda _: True)
            with pytest.raises(AuthorityUnavailableError):
                await client.issue(items([WISH]))
        assert verified == []
        await client.issue(items([WISH]))
        assert len(verified) == 1
        assert authority.connections.proven == 1


def test_the_stranger_of_the_other_tests_calls_what_there_is() -> None:
    assert EXCHANGE.decode().startswith(f"/{SERVICE}/")
