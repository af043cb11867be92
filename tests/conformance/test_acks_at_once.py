"""A client's plain ACKs, over a real socket: taken in order, without a step of the handler."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from sds.serving.stream import Stream
from sds.transport.turns import Turns
from tests.support.front_door import until
from tests.support.serving import serving, svid
from tests.support.xds_client import Delta, Sotw, channel

if TYPE_CHECKING:
    from pathlib import Path

ROTATIONS = 5


@pytest.mark.parametrize("kind", [Sotw, Delta])
@pytest.mark.parametrize("ads", [False, True])
async def test_acks_of_rotations_take_no_step_of_the_handler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any, *, ads: bool
) -> None:
    steps = 0
    take = Stream.take

    async def counted(stream: Stream, data: bytes, now: float) -> None:
        nonlocal steps
        steps += 1
        await take(stream, data, now)

    monkeypatch.setattr(Stream, "take", counted)
    # On a busy machine a turn may be over before the ACK is looked at: then the handler takes it.
    turns = Turns.of(asyncio.get_running_loop())
    monkeypatch.setattr(turns, "_clock", lambda: 0.0)
    async with serving(tmp_path) as at, channel(at.target) as connection:
        stream = kind(connection, ads=ads)
        names = ("default",) if kind is Sotw else ()  # delta names a resource once
        await stream.ask("default")
        response = await stream.next()
        await stream.ack(response, *names)
        for number in range(ROTATIONS):
            at.store.put_svid(svid(mark=str(number)))
            response = await stream.next()
            await stream.ack(response, *names)
        version = response.version_info if kind is Sotw else response.resources[0].version
        (served,) = {one for session in at.service.sessions() for one in session.streams}
        (conversation,) = served.conversations.values()
        await until(lambda: [one.acked for one in conversation.subscription.watched()] == [version])
        assert steps == 1
        # What says more than an ACK is the handler's, and is in order with the ACKs.
        at.store.put_svid(svid(mark="refused"))
        response = await stream.next()
        await stream.ask(*names, nonce=response.nonce, error="no")
        await until(lambda: conversation.subscription.refused() == 1)
        assert steps == 2
