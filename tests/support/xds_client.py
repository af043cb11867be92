"""An xDS client that does exactly what a test says: no ACK of its own accord."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import grpc
from envoy.config.core.v3 import base_pb2
from envoy.extensions.transport_sockets.tls.v3 import secret_pb2
from envoy.service.discovery.v3 import discovery_pb2
from google.rpc import status_pb2

from tests.support.independent import decoded_twice
from tests.support.process import PATIENCE_SECONDS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping

SECRET: Final = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
SDS: Final = "/envoy.service.secret.v3.SecretDiscoveryService/"
ADS: Final = "/envoy.service.discovery.v3.AggregatedDiscoveryService/"
NODE: Final = base_pb2.Node(id="test-node", cluster="test-cluster", user_agent_name="envoy")
SILENCE_SECONDS: Final = 0.15
"""How long a stream is watched that must say nothing: too short can only hide, never fail."""

Response = TypeVar("Response")


@contextlib.asynccontextmanager
async def channel(target: str, *, alone: bool = True) -> AsyncIterator[grpc.aio.Channel]:
    """A connection of its own to ``target``."""
    options = [("grpc.use_local_subchannel_pool", 1)] if alone else []
    async with grpc.aio.insecure_channel(target, options=options) as made:
        yield made


class _Stream(Generic[Response]):
    def __init__(self, connection: grpc.aio.Channel, method: str, response: Any) -> None:
        self.call: Any = connection.stream_stream(
            method, request_serializer=None, response_deserializer=decoded_twice(response)
        )()

    async def write(self, message: Any) -> None:
        await self.call.write(
            message if isinstance(message, bytes) else message.SerializeToString()
        )

    async def next(self) -> Response:
        """The next response; fails where none comes."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            got: Response = await self.call.read()
        assert got is not grpc.aio.EOF, await self.call.code()
        self.last = got
        return got

    async def silent(self) -> None:
        """Fails where a response comes (soon)."""
        reading = asyncio.ensure_future(self.call.read())
        done, _ = await asyncio.wait([reading], timeout=SILENCE_SECONDS)
        assert not done, f"not silent: {reading.result()}"
        self._pending = reading
        self.call.read = self._resume(self.call.read)

    def _resume(self, read: Any) -> Any:
        """The read that found silence goes on: the next answer belongs to it."""

        async def resumed() -> Any:
            self.call.read = read
            return await self._pending

        return resumed

    async def status(self) -> tuple[grpc.StatusCode, str]:
        """How the server ended the stream; drops what it sent before, for the status follows it."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            with contextlib.suppress(grpc.aio.AioRpcError):
                while await self.call.read() is not grpc.aio.EOF:
                    pass
            return await self.call.code(), await self.call.details()

    def cancel(self) -> None:
        self.call.cancel()

    async def done_writing(self) -> None:
        await self.call.done_writing()


class Sotw(_Stream[discovery_pb2.DiscoveryResponse]):
    """A state-of-the-world stream."""

    def __init__(self, connection: grpc.aio.Channel, *, ads: bool = False) -> None:
        method = ADS + "StreamAggregatedResources" if ads else SDS + "StreamSecrets"
        super().__init__(connection, method, discovery_pb2.DiscoveryResponse)
        self._sent_node = False

    async def ask(
        self,
        *names: str,
        nonce: str = "",
        version: str = "",
        error: str | None = None,
        type_url: str = SECRET,
        node: base_pb2.Node | None = NODE,
    ) -> None:
        """Send one request."""
        request = discovery_pb2.DiscoveryRequest(
            version_info=version, resource_names=names, type_url=type_url, response_nonce=nonce
        )
        if node is not None and not self._sent_node:
            request.node.CopyFrom(node)
        self._sent_node = True
        if error is not None:
            request.error_detail.CopyFrom(status_pb2.Status(code=3, message=error))
        await self.write(request)

    async def ack(self, response: discovery_pb2.DiscoveryResponse, *names: str) -> None:
        await self.ask(*names, nonce=response.nonce, version=response.version_info)

    async def nack(
        self, response: discovery_pb2.DiscoveryResponse, *names: str, error: str
    ) -> None:
        await self.ask(*names, nonce=response.nonce, error=error)

    async def get(self, *names: str) -> discovery_pb2.DiscoveryResponse:
        """Ask, take the answer, ACK it."""
        await self.ask(*names)
        response = await self.next()
        await self.ack(response, *names)
        return response


class Delta(_Stream[discovery_pb2.DeltaDiscoveryResponse]):
    """A delta stream."""

    def __init__(self, connection: grpc.aio.Channel, *, ads: bool = False) -> None:
        method = ADS + "DeltaAggregatedResources" if ads else SDS + "DeltaSecrets"
        super().__init__(connection, method, discovery_pb2.DeltaDiscoveryResponse)
        self._sent_node = False

    async def ask(
        self,
        *subscribe: str,
        unsubscribe: Iterable[str] = (),
        initial: Mapping[str, str] | None = None,
        nonce: str = "",
        error: str | None = None,
        type_url: str = SECRET,
    ) -> None:
        """Send one request."""
        request = discovery_pb2.DeltaDiscoveryRequest(
            resource_names_subscribe=subscribe,
            resource_names_unsubscribe=unsubscribe,
            initial_resource_versions=initial or {},
            type_url=type_url,
            response_nonce=nonce,
        )
        if not self._sent_node:
            request.node.CopyFrom(NODE)
        self._sent_node = True
        if error is not None:
            request.error_detail.CopyFrom(status_pb2.Status(code=3, message=error))
        await self.write(request)

    async def ack(self, response: discovery_pb2.DeltaDiscoveryResponse) -> None:
        await self.ask(nonce=response.nonce)


async def fetch(
    connection: grpc.aio.Channel, *names: str, type_url: str = SECRET
) -> discovery_pb2.DiscoveryResponse:
    """FetchSecrets."""
    call = connection.unary_unary(
        SDS + "FetchSecrets",
        request_serializer=discovery_pb2.DiscoveryRequest.SerializeToString,
        response_deserializer=decoded_twice(discovery_pb2.DiscoveryResponse),
    )
    response: discovery_pb2.DiscoveryResponse = await call(
        discovery_pb2.DiscoveryRequest(resource_names=names, type_url=type_url, node=NODE),
        timeout=PATIENCE_SECONDS,
    )
    return response


def secrets(response: Any) -> dict[str, secret_pb2.Secret]:
    """The secrets of either kind of response, by name, in order."""
    found = {}
    for resource in response.resources:
        packed = getattr(resource, "resource", resource)
        assert packed.type_url == SECRET
        secret = secret_pb2.Secret.FromString(packed.value)
        if packed is not resource:
            assert resource.name == secret.name
        found[secret.name] = secret
    assert len(found) == len(response.resources)
    return found
