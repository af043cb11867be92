"""While a handler waits for the next request, nothing of the one before is in memory."""

from __future__ import annotations

import asyncio
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from envoy.config.core.v3 import base_pb2
from envoy.service.discovery.v3 import discovery_pb2
from envoy.service.status.v3 import csds_pb2

from sds.serving.calls import SDS_SERVICE
from sds.serving.client_status import CSDS_SERVICE, ClientStatus
from sds.transport.messages import MessageReader
from tests.support.authority import World, items, wish
from tests.support.front_door import until
from tests.support.serving import serving
from tests.support.xds_client import SECRET

if TYPE_CHECKING:
    from pathlib import Path

NODE = base_pb2.Node(id="node", cluster="x" * 100_000)


class Mark:
    """Lives as long as the request that has it."""


class Data(bytes):
    """A request that can be followed; a weak reference to bytes is impossible."""

    mark: Mark


class Context:
    """The context of a call; says when there was an answer."""

    def __init__(self) -> None:
        self.answered = asyncio.Event()

    def peer(self) -> str:
        return "peer"

    async def write(self, _message: bytes) -> None:
        self.answered.set()


class Requests:
    """One request, and then silence."""

    def __init__(self, message: Any) -> None:
        data = Data(message.SerializeToString())
        data.mark = Mark()
        self._left: list[bytes] = [data]
        self.first = weakref.ref(data.mark)
        self.waits = asyncio.Event()

    def __aiter__(self) -> Requests:
        return self

    async def __anext__(self) -> bytes:
        if not self._left:
            self.waits.set()
            await asyncio.Event().wait()
        return self._left.pop()


@pytest.mark.parametrize(
    ("service", "method", "request_"),
    [
        (
            SDS_SERVICE,
            "StreamSecrets",
            discovery_pb2.DiscoveryRequest(node=NODE, resource_names=["default"], type_url=SECRET),
        ),
        (
            SDS_SERVICE,
            "DeltaSecrets",
            discovery_pb2.DeltaDiscoveryRequest(
                node=NODE, resource_names_subscribe=["default"], type_url=SECRET
            ),
        ),
        (CSDS_SERVICE, "StreamClientStatus", csds_pb2.ClientStatusRequest()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_request_is_let_go_once_it_is_answered(
    tmp_path: Path, service: str, method: str, request_: Any
) -> None:
    async with serving(tmp_path) as at:

        async def entitle(_context: object) -> Any:
            return at.entitlement

        handlers = (*at.service.handlers(entitle), *ClientStatus(at.service, entitle).handlers())

        class Asked:
            method = ""
            invocation_metadata = ()

        Asked.method = f"/{service}/{method}"
        asked: Any = Asked()
        found: list[Any] = [one for each in handlers if (one := each.service(asked)) is not None]
        context, requests = Context(), Requests(request_)
        task = asyncio.ensure_future(found[0].stream_stream(requests, context))
        await context.answered.wait()
        await requests.waits.wait()
        assert requests.first() is None
        task.cancel()
        await asyncio.wait([task])


async def test_an_authority_lets_go_of_a_message_once_it_is_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    marks: list[weakref.ref[Mark]] = []
    take = MessageReader.take

    def marked(reader: MessageReader) -> bytes | None:
        message = take(reader)
        if message is None:
            return None
        data = Data(message)
        data.mark = Mark()
        marks.append(weakref.ref(data.mark))
        return data

    monkeypatch.setattr(MessageReader, "take", marked)
    world = World()
    async with world.running() as authority, world.client(authority.port) as client:
        await client.issue(items([wish()]))
        assert marks
        await until(lambda: all(mark() is None for mark in marks))
        assert authority.connections.proven == 1  # and its stream waits for the next message
