"""A rotation under attack: pushes count against their owner's budget, in their owner's turns."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from typing import TYPE_CHECKING, Any

import pytest

from sds.serving.server import make_server
from sds.transport.budget import Budgets
from sds.transport.budget_sizes import Share
from sds.transport.served_connection import ServedConnection
from sds.transport.unread_output import NOTICED_BYTES
from sds.unix_sockets import listening
from tests.support.raw_client import STREAM, RawClient, connected, discovery
from tests.support.serving import WEB, Serving, serving, svid

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

STREAMS = 300
ONE_MORE = 10_000 + 3 * NOTICED_BYTES
"""Memory of one message that waits, and of what looks at it next; and what the kernel takes before
it is asked, with what it takes beside the content. All pushes take 630,000."""
FEW = 60
"""Streams whose pushes all fit into the kernel's buffer."""


def named(name: str, _accepted: object) -> str:
    return name


@contextlib.asynccontextmanager
async def two_owners(
    at: Serving, folder: Path, budgets: Budgets
) -> AsyncIterator[tuple[Path, Path]]:
    """Sockets of two pods that have the same identity."""

    async def entitle(_context: object) -> Any:
        return at.entitlement

    server = make_server(at.service.options.limits, at.service.handlers(entitle), budgets=budgets)
    paths = folder / "hostile.sock", folder / "other.sock"
    for path in paths:
        await server.listen(listening(path, 0o600), owner_of=functools.partial(named, path.stem))
    try:
        yield paths
    finally:
        await server.stop(0)


def hold_streams(client: RawClient, streams: int) -> None:
    for _ in range(streams):
        client.call(STREAM, discovery("default"))


def read_keys(client: RawClient, keys: int) -> None:
    seen = b""
    while seen.count(b"END PRIVATE KEY") < keys:
        seen += client.connection.recv(65536)


async def until_watched(at: Serving, streams: int) -> None:
    while sum(len(one.streams) for one in at.service.sessions()) < streams:
        await asyncio.sleep(0.01)


async def test_pushes_of_one_owner_do_not_wait_for_those_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        serving(tmp_path) as at,
        two_owners(at, tmp_path, Budgets()) as (hostile_path, other_path),
    ):
        with connected(hostile_path) as hostile, connected(other_path) as other:
            await asyncio.to_thread(hold_streams, hostile, FEW)
            await asyncio.to_thread(read_keys, hostile, FEW)
            other.call(STREAM, discovery("default"))
            await asyncio.to_thread(other.read_until, b"END PRIVATE KEY")
            owners: list[str] = []
            send = ServedConnection.send

            def sent(self: ServedConnection, stream: int, message: bytes) -> bool:
                owners.append(self.owner.name)
                return send(self, stream, message)

            monkeypatch.setattr(ServedConnection, "send", sent)
            at.store.put_svid(svid(WEB))
            while len(owners) < FEW + 1:
                await asyncio.sleep(0.01)
            assert owners.count("hostile") == FEW
            # One job of each owner in turn, although it was the last to connect.
            assert owners.index("other") <= 2


@pytest.mark.parametrize(
    ("window", "most"),
    [(4_000, 2_050_000), (2**31 - 1, 1_900_000)],
    ids=["a window takes few answers", "the window takes all"],
)
async def test_pushes_that_wait_count_against_the_budget(
    tmp_path: Path, window: int, most: int
) -> None:
    # The streams themselves take 1,850,000 bytes.
    budgets = Budgets()
    async with (
        serving(tmp_path) as at,
        two_owners(at, tmp_path, budgets) as (hostile_path, other_path),
    ):
        with connected(other_path) as other, connected(hostile_path, window=window) as hostile:
            other.call(STREAM, discovery("default"))
            await asyncio.to_thread(other.read_until, b"END PRIVATE KEY")
            for _ in range(STREAMS // FEW):  # it reads its first answers, and nothing later
                await asyncio.to_thread(hold_streams, hostile, FEW)
                await asyncio.to_thread(read_keys, hostile, FEW)
            owner = budgets.owner("hostile")
            while owner.held > 1_860_000:  # what it has just read is counted for a moment
                await asyncio.sleep(0.01)
            owner.account.share = Share(held_bytes=most)
            held = 0
            while "hostile" not in budgets.exceeded:
                at.store.put_svid(svid(WEB))
                await asyncio.to_thread(other.read_until, b"END PRIVATE KEY")
                held = max(held, owner.held)
            assert budgets.exceeded["hostile"]["memory"] > 0
            assert held < most + ONE_MORE
            assert budgets.exceeded.keys() == {"hostile"}
            assert budgets.owner("other").connections == 1
