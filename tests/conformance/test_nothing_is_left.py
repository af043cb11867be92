"""What a client leaves behind in memory: nothing, without the help of the garbage collector."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING

import pytest

from sds.secrets.store import SecretStore
from sds.serving.encode import Resource
from sds.serving.service import ServingOptions
from sds.serving.session import CallerSession
from sds.serving.stream import Stream
from sds.serving.unsent_secrets import RESET_SECONDS
from sds.transport.call import Call
from sds.transport.served_connection import ServedConnection
from tests.support.door_client import RST, frame
from tests.support.raw_client import DELTA, FETCH, STREAM, RawClient, connected, discovery, message
from tests.support.serving import TD, WEB, root, serving, svid, ticket_keys

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_OURS = (Call, CallerSession, Resource, ServedConnection, Stream)


def fetch(client: RawClient) -> None:
    client.call(FETCH, discovery("default"), ends=True)
    client.read_until(b"grpc-status")


def subscribe_and_go(client: RawClient) -> None:
    client.call(STREAM, discovery("default"))
    client.read_until(b"END PRIVATE KEY")


def end_the_stream(client: RawClient) -> None:
    number = client.call(STREAM, discovery("default"))
    client.read_until(b"END PRIVATE KEY")
    client.connection.sendall(frame(RST, 0, number, bytes(4)))


def be_refused(client: RawClient) -> None:
    number = client.call(STREAM, discovery("default"))
    client.read_until(b"END PRIVATE KEY")
    client.send(number, message(b"\xff\xff"))
    client.read_until(b"grpc-status")


def break_http2(client: RawClient) -> None:
    client.call(DELTA, message(b""))
    client.read_until(b"spiffe://")
    client.connection.sendall(frame(8, 0, 0, b"\0"))
    client.connection.recv(4096)


def never_read(client: RawClient) -> None:
    for _ in range(300):
        client.call(STREAM, discovery("default"))


OTHERS: list[object] = []
"""What tests before left in this process: an error in a parameter, say, keeps its frames."""


@pytest.fixture
def _no_collector() -> Iterator[None]:
    gc.collect()
    OTHERS[:] = left()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        OTHERS.clear()


@pytest.mark.usefixtures("_no_collector")
@pytest.mark.parametrize(
    "behave", [fetch, subscribe_and_go, end_the_stream, be_refused, break_http2, never_read]
)
async def test_a_client_that_went_leaves_nothing(
    tmp_path: Path, behave: Callable[[RawClient], None]
) -> None:
    async with serving(tmp_path) as at:
        with connected(at.socket) as client:
            await asyncio.to_thread(behave, client)
        await until_none(ServedConnection, Stream)
        at.store.put_svid(svid(WEB))
        await until_none(*_OURS)


async def until_none(*kinds: type) -> None:
    """Wait until none of these is in memory; the suite's own time limit ends a wait in vain."""
    while any(isinstance(one, kinds) for one in left()):
        await asyncio.sleep(0.25)  # each look goes through everything in memory


@pytest.mark.usefixtures("_no_collector")
@pytest.mark.parametrize("window", [0, 700, 2**20])
async def test_a_connection_that_takes_nothing_is_reset_once_a_key_retires(
    tmp_path: Path, window: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path) as at:
        with connected(at.socket, window=window) as client, connected(at.socket) as reader:
            await asyncio.to_thread(never_read, client)
            await asyncio.to_thread(subscribe_and_go, reader)
            while sum(len(one.streams) for one in at.service.sessions()) < 301:
                await asyncio.sleep(0.02)
            at.store.put_svid(svid(WEB))
            await asyncio.to_thread(reader.read_until, b"END PRIVATE KEY")
            await asyncio.sleep(RESET_SECONDS / 2)
            assert len([one for one in left() if isinstance(one, ServedConnection)]) == 2
            async with asyncio.timeout(RESET_SECONDS):
                while len([one for one in left() if isinstance(one, ServedConnection)]) > 1:
                    await asyncio.sleep(0.25)  # each look goes through everything in memory
            streams = [one for one in left() if isinstance(one, Call | Stream)]
            assert len(streams) == 2  # those of the client that reads
            reset = [
                record
                for record in caplog.records
                if getattr(record, "reason", "") == "retired_secret_unread"
            ]
            assert len(reset) == 1
            at.store.put_svid(svid(WEB))
            await asyncio.to_thread(reader.read_until, b"END PRIVATE KEY")


async def test_ticket_keys_that_a_changed_bundle_replaced_do_not_wait_for_a_reader(
    tmp_path: Path,
) -> None:
    store = SecretStore()
    tickets = ticket_keys(store)
    options = ServingOptions(tickets=tickets)
    async with serving(tmp_path, options=options, store=store) as at:
        with connected(at.socket, window=0) as client:
            client.call(STREAM, discovery("session_tickets"))
            while not at.service.sessions():
                await asyncio.sleep(0.02)
            store.put_bundle(TD, [root("two").der])
            async with asyncio.timeout(2 * RESET_SECONDS):
                while at.service.sessions():
                    await asyncio.sleep(0.02)


def left() -> list[object]:
    """What is alive of serving; of resources, those with a private key (bundles are kept)."""
    others = set(map(id, OTHERS))
    return [
        one
        for one in gc.get_objects()
        if isinstance(one, _OURS)
        and id(one) not in others
        and not (isinstance(one, Resource) and b"PRIVATE KEY" not in one.secret)
    ]
