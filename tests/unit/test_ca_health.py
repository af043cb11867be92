"""What the authority says of its health, and to how many."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
import pytest
from grpc_health.v1 import health_pb2

from sds.ca.health import AuthorityHealth, tell_health
from sds.ca.signers import SigningState
from sds.exchange.wire import SERVICE
from tests.support.clock import FakeClock
from tests.unit.test_ca_signers import LIFE, Source

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

Status = health_pb2.HealthCheckResponse
ASKED = health_pb2.HealthCheckRequest(service=SERVICE)


class AbortedError(Exception):
    """What gRPC raises in a handler that aborts."""


@dataclass
class Context:
    """A caller; ``deaf``: never reads."""

    deaf: bool = False
    heard: list[int] = field(default_factory=list)
    code: grpc.StatusCode | None = None

    async def write(self, answer: health_pb2.HealthCheckResponse) -> None:
        if self.deaf:
            await asyncio.Event().wait()
        self.heard.append(answer.status)

    def cut(self) -> NoReturn:
        raise AbortedError

    async def abort(self, code: grpc.StatusCode, _: str) -> Any:
        self.code = code
        raise AbortedError


@contextlib.asynccontextmanager
async def watching(
    health: AuthorityHealth, *contexts: Context
) -> AsyncIterator[list[asyncio.Task[None]]]:
    tasks = [asyncio.create_task(health.Watch(ASKED, context)) for context in contexts]
    await asyncio.sleep(0)
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_serving_is_said_while_something_can_be_signed() -> None:
    clock = FakeClock()
    state, health, caller = SigningState(clock=clock), AuthorityHealth(watchers=9), Context()
    telling = asyncio.create_task(tell_health(health, state, clock))
    async with watching(health, caller):
        await clock.advance(5)
        signer, roots = await Source(clock).next_signer()
        state.publish(roots)
        state.activate(signer)
        await clock.advance(60)
        clock.step(LIFE - 300)
        await clock.advance(60)
        assert caller.heard == [Status.NOT_SERVING, Status.SERVING]
        clock.step(300)
        await clock.advance(2)
        assert caller.heard == [Status.NOT_SERVING, Status.SERVING, Status.NOT_SERVING]
        answer = await health.Check(ASKED, caller)
        assert answer.status == Status.NOT_SERVING
        listed = await health.List(health_pb2.HealthListRequest(), caller)
        assert {name: one.status for name, one in listed.statuses.items()} == dict.fromkeys(
            ("", SERVICE), Status.NOT_SERVING
        )
    telling.cancel()


async def test_a_watcher_that_does_not_read_holds_up_nobody() -> None:
    health, deaf, other = (
        AuthorityHealth(watchers=9, write_seconds=0.05),
        Context(deaf=True),
        Context(),
    )
    async with watching(health, deaf, other) as (silent, _):
        health.tell(serving=True)
        await asyncio.sleep(0)
        assert other.heard == [Status.NOT_SERVING, Status.SERVING]
        with pytest.raises(AbortedError):
            await asyncio.wait_for(asyncio.shield(silent), 5)
        assert silent.done()


async def test_watchers_are_bounded_and_leave() -> None:
    health, first, second = AuthorityHealth(watchers=1), Context(), Context()
    async with watching(health, first):
        # gRPC's client-side health checking takes this answer for healthy.
        with pytest.raises(AbortedError):
            await health.Watch(ASKED, second)
        assert second.code is grpc.StatusCode.UNIMPLEMENTED
    async with watching(health, second):
        assert second.heard == [Status.NOT_SERVING]


async def test_a_service_that_is_not_ours() -> None:
    health, caller = AuthorityHealth(watchers=9), Context()
    asked = health_pb2.HealthCheckRequest(service="other")
    with pytest.raises(AbortedError):
        await health.Check(asked, caller)
    assert caller.code is grpc.StatusCode.NOT_FOUND
    task = asyncio.create_task(health.Watch(asked, caller))
    await asyncio.sleep(0)
    assert caller.heard == [Status.SERVICE_UNKNOWN]
    task.cancel()


async def test_watches_end_with_the_server() -> None:
    health, caller, late = AuthorityHealth(watchers=9), Context(), Context()
    async with watching(health, caller) as (watch,):
        health.tell(serving=False)
        health.end()
        with pytest.raises(AbortedError):
            await asyncio.wait_for(asyncio.shield(watch), 5)
    assert caller.code is grpc.StatusCode.UNAVAILABLE
    with pytest.raises(AbortedError):
        await health.Watch(ASKED, late)
