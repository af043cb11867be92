"""A question to the runtime whose connection is given up ends as an outage, and ends nobody."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from sds.workload.cri.runtime import Runtime
from tests.support.refusals import refused

if TYPE_CHECKING:
    from pathlib import Path


async def test_a_question_that_is_cut_off_is_an_outage(tmp_path: Path) -> None:
    """Before, it looked like a cancellation of whoever asked, and ended a caller's connection."""
    asked = asyncio.Event()

    async def silent(_request: bytes, _context: Any) -> bytes:
        asked.set()
        await asyncio.Event().wait()
        return b""

    methods: dict[str, Any] = {"ListPodSandbox": grpc.unary_unary_rpc_method_handler(silent)}
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("runtime.v1.RuntimeService", methods),)
    )
    path = str(tmp_path / "s")
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    try:
        async with Runtime(path) as runtime:
            question = asyncio.create_task(runtime.sandboxes())
            await asked.wait()
            channel = runtime._channel
            assert channel is not None
            await channel.close()  # as the end of a retired one, if the question is a late one
            with refused("cri_unavailable"):
                await question
            assert not question.cancelled()
    finally:
        await server.stop(None)


async def test_who_is_cancelled_while_asking_stays_cancelled(tmp_path: Path) -> None:
    async with Runtime(str(tmp_path / "nobody")) as runtime:
        question = asyncio.create_task(runtime.sandboxes())
        await asyncio.sleep(0)
        question.cancel()
        with pytest.raises(asyncio.CancelledError):
            await question
