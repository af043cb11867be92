"""An authority among callers that mean it no good keeps serving the others."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from typing import Any

import grpc
import pytest

from sds import errors
from sds._proto.sds.ca.v1 import ca_pb2
from sds.ca import server
from sds.ca.issuing_turns import IssuingTurns
from sds.ca.server import ExchangeLimits
from sds.exchange.challenge import MAX_COVERED, new_nonce
from tests.support.authority import AGENT, Machine, World, items, verifier_of, wish
from tests.support.raw_exchange import Request, raw_channel, raw_stream, request

WISH = wish()


async def until(condition: Any, *, seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def test_silent_streams_end_and_a_proven_one_stays() -> None:
    world = World()
    limits = ExchangeLimits(hello_seconds=2)
    async with (
        world.running(limits=limits) as authority,
        raw_channel(authority.port) as streams,
        world.client(authority.port) as client,
    ):
        await client.issue(items([WISH]))
        silent = [streams() for _ in range(20)]
        only_hello = streams()
        with contextlib.suppress(grpc.aio.AioRpcError):  # a busy machine lets its time pass first
            await only_hello.hello()
        statuses = await asyncio.gather(*(stream.status() for stream in [*silent, only_hello]))
        assert set(statuses) == {grpc.StatusCode.DEADLINE_EXCEEDED}
        await until(lambda: authority.service.streams == 1)
        assert len(authority.nonces) == 1
        # The proven stream has outlived its Hello by far and is the same one.
        await client.issue(items([WISH]))
        assert world.authority.reports == 2


async def test_the_oldest_unproven_stream_makes_room_and_proven_ones_do_not() -> None:
    world = World()
    async with (
        world.running(limits=ExchangeLimits(streams=3)) as authority,
        raw_channel(authority.port) as streams,
    ):
        first = streams()
        nonce = (await first.hello()).nonce
        answer = await first.ask(await request(nonce, items([WISH]), world.agent))
        assert answer.WhichOneof("response") == "certificates"
        second = streams()
        await second.hello()
        third = streams()
        await third.hello()
        async with world.client(authority.port) as client:
            await client.issue(items([WISH]))
            assert await second.status() is grpc.StatusCode.DEADLINE_EXCEEDED
            async with world.client(authority.port) as another:
                await another.issue(items([WISH]))
                assert await third.status() is grpc.StatusCode.DEADLINE_EXCEEDED
                # All three are proven now: one more is told to come back.
                async with world.client(authority.port) as late:
                    with pytest.raises(
                        errors.AuthorityUnavailableError, match="RESOURCE_EXHAUSTED"
                    ):
                        await late.issue(items([WISH]))
                await client.issue(items([WISH]))


async def test_one_machine_with_every_stream_keeps_no_other_machine_out() -> None:
    """Its evidence is valid: an agent that was taken over, or that leaks streams."""
    world, other = World(), Machine(AGENT)
    async with (
        world.running(
            limits=ExchangeLimits(streams=16), verifier=verifier_of(world.agent, other)
        ) as authority,
        raw_channel(authority.port) as streams,
    ):
        greedy = [streams() for _ in range(16)]
        for stream in greedy:
            nonce = (await stream.hello()).nonce
            await stream.ask(await request(nonce, items([WISH]), world.agent))
        async with world.client(authority.port, attester=other) as client:
            await client.issue(items([WISH]))
            await client.issue(items([WISH]))  # on the same stream
        for stream in greedy[:7]:
            assert await stream.status() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "more than its share" in await stream.call.details()
        nonce = (await greedy[-1].hello()).nonce
        await greedy[-1].ask(await request(nonce, items([WISH]), world.agent))


async def test_one_machine_that_asks_on_many_connections_holds_up_no_other_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world, other = World(), Machine(AGENT)
    asked: list[str] = []
    """The machines that wait or waited for a turn, once for each time."""
    served: dict[str, int] = {}
    """How many certificates there were when a machine had its first turn."""
    all_turns: list[IssuingTurns] = []
    wait = IssuingTurns._wait

    async def watched(turns: IssuingTurns, machine: str, address: str) -> None:
        asked.append(machine)
        await wait(turns, machine, address)
        served.setdefault(machine, len(world.journal))

    class Kept(IssuingTurns):
        def __init__(self, slots: int) -> None:
            super().__init__(slots)
            all_turns.append(self)

    monkeypatch.setattr(IssuingTurns, "_wait", watched)
    monkeypatch.setattr(server, "IssuingTurns", Kept)
    async with (
        world.running(verifier=verifier_of(world.agent, other)) as authority,
        world.client(authority.port, attester=other) as client,
        contextlib.AsyncExitStack() as stack,
    ):
        await client.issue(items([WISH]))
        greedy = [await stack.enter_async_context(world.client(authority.port)) for _ in range(40)]
        for one in greedy:
            await one.issue(items([WISH]))
        (turns,) = all_turns
        before = len(world.journal)
        async with asyncio.TaskGroup() as group, contextlib.AsyncExitStack() as taken:
            for _ in range(server._ISSUING):
                await taken.enter_async_context(turns.turn("", "somebody"))
            for one in greedy:
                group.create_task(one.issue(items([WISH] * 40)))
            await until(lambda: len(asked) == len(greedy))
            group.create_task(client.issue(items([WISH])))
            await until(lambda: len(asked) > len(greedy))
    victim = asked[len(greedy)]
    assert victim not in asked[: len(greedy)]
    # One turn is 32 items, and four are held at once. In the order in which they asked, the first
    # turns of all others would come before: 1,280 items.
    assert served[victim] - before <= 4 * 32


async def test_one_machine_with_every_connection_keeps_no_other_machine_out() -> None:
    world, other = World(), Machine(AGENT)
    async with (
        world.running(connections=16, verifier=verifier_of(world.agent, other)) as authority,
        contextlib.AsyncExitStack() as stack,
    ):
        known = authority.connections
        for _ in range(20):
            greedy = await stack.enter_async_context(world.client(authority.port))
            await greedy.issue(items([WISH]))
        assert known.proven == 8
        honest = await stack.enter_async_context(world.client(authority.port, attester=other))
        await honest.issue(items([WISH]))
        await honest.issue(items([WISH]))  # on the same connection
        assert known.proven == 9
        assert known.ended == 12


async def test_nonces_without_requests_are_bounded_and_cost_few_reports() -> None:
    world = World()
    async with (
        world.running(nonce_limit=300) as authority,
        raw_channel(authority.port) as streams,
        world.client(authority.port) as client,
    ):
        flood = [streams() for _ in range(40)]

        async def ask_on(stream: Any) -> None:
            for _ in range(25):
                challenge = await stream.hello()
                assert len(challenge.covered_nonces) <= MAX_COVERED

        await asyncio.gather(*map(ask_on, flood))
        assert len(authority.nonces) <= 300
        assert world.authority.reports <= 500
        await client.issue(items([WISH]))


async def test_a_caller_that_never_reads_holds_up_nobody() -> None:
    world = World()
    limits = ExchangeLimits(write_seconds=0.5, hello_seconds=60)
    async with (
        world.running(limits=limits) as authority,
        raw_channel(authority.port) as streams,
        world.client(authority.port) as client,
    ):
        deaf = streams()
        hello = Request(hello=ca_pb2.Hello(nonce=new_nonce())).SerializeToString()

        async def flood() -> None:
            while True:
                await deaf.send(hello)

        task = asyncio.create_task(flood())
        await client.issue(items([WISH]))
        await until(lambda: authority.service.streams == 2)
        await until(lambda: authority.service.streams == 1)  # it was ended
        await client.issue(items([WISH]))
        deaf.call.cancel()
        # The stream's end cuts off a message that waits for the window.
        with pytest.raises(
            (asyncio.CancelledError, asyncio.InvalidStateError, grpc.aio.AioRpcError)
        ):
            await task


async def test_garbage_on_the_port_harms_nobody() -> None:
    world = World()
    async with world.running() as authority, world.client(authority.port) as client:
        await client.issue(items([WISH]))
        for data in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff", secrets.token_bytes(4096)):
            reader, writer = await asyncio.open_connection("127.0.0.1", authority.port)
            writer.write(data)
            writer.write_eof()
            await reader.read()
            writer.close()
        await client.issue(items([WISH]))


async def test_random_messages_get_an_answer_of_ours_or_an_end() -> None:
    world = World()
    async with (
        world.running() as authority,
        raw_channel(authority.port) as streams,
        raw_stream(authority.port) as good,
    ):
        challenge = await good.hello()
        template = (await request(challenge.nonce, items([WISH]), world.agent)).SerializeToString()
        codes = set()
        for index in range(150):
            stream = streams()
            changed = bytearray(template)
            for _ in range(1 + index % 3):
                changed[secrets.randbelow(len(changed))] = secrets.randbelow(256)
            try:
                answer = await stream.ask(bytes(changed))
            except grpc.aio.AioRpcError as error:
                codes.add(error.code())
            else:
                assert answer.WhichOneof("response") == "refusal", answer
        assert codes <= {grpc.StatusCode.INVALID_ARGUMENT}
        answer = await good.ask(template)
        assert answer.WhichOneof("response") == "certificates"


async def test_a_large_batch_lets_others_through() -> None:
    world = World()
    async with (
        world.running() as authority,
        world.client(authority.port) as big,
        world.client(authority.port) as small,
    ):
        await small.issue(items([WISH]))
        task = asyncio.create_task(big.issue([WISH[1]] * 1000))
        served = 0
        while not task.done():
            await small.issue(items([WISH]))
            served += 1
        assert len((await task).outcomes) == 1000
        assert served >= 3


async def test_an_attester_that_fails_is_told_to_everyone_who_waits() -> None:
    world = World()

    class Broken:
        async def attest(self, data: Any) -> Any:
            raise errors.EvidenceError("the firmware says no")

    async with (
        world.running(attester=Broken()) as authority,
        raw_channel(authority.port) as streams,
    ):
        answers = await asyncio.gather(
            *(streams().ask(Request(hello=ca_pb2.Hello(nonce=new_nonce()))) for _ in range(5))
        )
    assert {answer.refusal.reason for answer in answers} == {"evidence"}


async def test_a_stop_in_the_middle_ends_the_streams_that_wait() -> None:
    reached = asyncio.Event()

    class Slow:
        async def attest(self, data: Any) -> Any:
            reached.set()
            await asyncio.Event().wait()

    running = World().running(attester=Slow(), drain_seconds=0.2)
    authority = await running.__aenter__()
    async with raw_stream(authority.port) as stream:
        asked = asyncio.create_task(stream.ask(Request(hello=ca_pb2.Hello(nonce=new_nonce()))))
        await reached.wait()
        await running.__aexit__(None, None, None)
        with pytest.raises(grpc.aio.AioRpcError):
            await asked
