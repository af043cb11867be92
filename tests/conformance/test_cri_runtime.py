"""The runtime's socket: whatever answers there, only our errors come out."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest

from sds.workload.cri import runtime as runtime_module
from sds.workload.cri.runtime import Runtime
from tests.support.node import short_folder
from tests.support.process import PATIENCE_SECONDS
from tests.support.refusals import refused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@contextlib.asynccontextmanager
async def serving(path: Path, answer: bytes | grpc.StatusCode | None) -> AsyncIterator[None]:
    """A runtime that gives these bytes to every question, this error, or nothing."""

    class Everything(grpc.GenericRpcHandler):
        def service(self, _: Any) -> Any:
            async def give(_request: bytes, context: Any) -> bytes:
                if isinstance(answer, grpc.StatusCode):
                    await context.abort(answer, "no")
                if answer is None:
                    await asyncio.Event().wait()
                assert isinstance(answer, bytes)
                return answer

            return grpc.unary_unary_rpc_method_handler(give)

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Everything(),))
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    try:
        yield
    finally:
        await server.stop(None)


@contextlib.asynccontextmanager
async def answering(folder: Path, answer: bytes | grpc.StatusCode) -> AsyncIterator[Runtime]:
    async with (
        serving(folder / "cri.sock", answer),
        Runtime(str(folder / "cri.sock")) as runtime,
    ):
        yield runtime


@pytest.mark.parametrize("answer", [b"\xff\xff", b"\x0a\x7f", b"\x0a\x03\x0a\x01\xff"])
async def test_what_is_no_answer_of_a_runtime_is_our_error(answer: bytes) -> None:
    with short_folder() as folder:
        async with answering(folder, answer) as runtime:
            for ask in (runtime.containers, runtime.sandboxes):
                with refused("cri_unknown_shape"):
                    await ask()
            for describe in (runtime.container, runtime.sandbox):
                with refused("cri_unknown_shape"):
                    await describe("a")


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (grpc.StatusCode.UNAVAILABLE, "cri_unavailable"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "cri_unknown_shape"),
        (grpc.StatusCode.INTERNAL, "cri_unknown_shape"),
        (grpc.StatusCode.NOT_FOUND, "cri_not_described"),
        (grpc.StatusCode.UNKNOWN, "cri_not_described"),
    ],
)
async def test_a_status_says_whether_asking_again_can_help(
    status: grpc.StatusCode, reason: str
) -> None:
    with short_folder() as folder:
        async with answering(folder, status) as runtime:
            with refused(reason):
                await runtime.container("a")


@pytest.mark.parametrize("number", [1, 7])
async def test_a_list_without_end_is_our_error(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """16 MiB of empty containers held the event loop for half a minute."""
    monkeypatch.setattr(runtime_module, "_MOST_LISTED", 10)
    part = bytes([number << 3 | 2, 0])
    with short_folder() as folder:
        async with answering(folder, part * 10) as runtime:
            assert len(await runtime.containers()) == (10 if number == 1 else 0)
        async with answering(folder, part * 11) as runtime:
            for ask in (runtime.containers, runtime.sandboxes):
                with refused("cri_unknown_shape", match="lists more than 10"):
                    await ask()


async def test_a_number_without_end_is_our_error() -> None:
    with short_folder() as folder:
        async with answering(folder, b"\x0a" + b"\xff" * 100_000) as runtime:
            with refused("cri_unknown_shape"):
                await runtime.containers()


async def test_answers_are_read_outside_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []

    def read(_: bytes) -> tuple[()]:
        threads.append(threading.get_ident())
        return ()

    monkeypatch.setattr(runtime_module, "_containers", read)
    with short_folder() as folder:
        async with answering(folder, b"") as runtime:
            await runtime.containers()
    assert threads
    assert threads != [threading.get_ident()]


async def test_an_empty_answer_lists_nothing_and_describes_nothing() -> None:
    with short_folder() as folder:
        async with answering(folder, b"") as runtime:
            assert await runtime.containers() == ()
            assert await runtime.sandboxes() == frozenset()
            with refused("cri_unknown_shape"):
                await runtime.container("a")


async def test_a_runtime_that_takes_the_place_of_one_that_stands_still_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The connection leads to the old one for as long as that lives."""
    monkeypatch.setattr(runtime_module, "_SECONDS", 0.5)
    with short_folder() as folder:
        path = folder / "cri.sock"
        async with serving(path, None), Runtime(str(path)) as runtime:
            with refused("cri_unavailable"):
                await runtime.containers()
            path.unlink()
            async with serving(path, b""):
                monkeypatch.setattr(runtime_module, "_SECONDS", PATIENCE_SECONDS)
                assert await runtime.containers() == ()
