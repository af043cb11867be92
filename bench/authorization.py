"""How soon a new epoch reaches 250 clients: authorization first, then validation contexts.

Each client has a connection of its own with two streams, as an Envoy has, and ACKs what it gets.
Server and clients share this process and its one event loop, so the figures are upper bounds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envoy.service.discovery.v3 import discovery_pb2

from sds.agent.authorizations import PolicyAuthorizations
from sds.agent.peers import PolicyPeers
from sds.serving.authorization import EXTENSION_TYPE
from sds.serving.calls import ECDS_SERVICE
from sds.serving.service import ServingOptions
from tests.support.policy_mesh import Author
from tests.support.serving import serving
from tests.support.xds_client import SDS, Sotw, channel

if TYPE_CHECKING:
    from collections.abc import Sequence


class Client:
    """One connection; remembers when each part of an epoch came."""

    def __init__(self, connection: Any) -> None:
        self.context = _plain(connection, SDS + "StreamSecrets")
        self.authorization = _plain(connection, f"/{ECDS_SERVICE}/StreamExtensionConfigs")

    async def begin(self) -> None:
        await self.authorization.ask("authorization", type_url=EXTENSION_TYPE)
        await self.ack(await self.authorization.next())
        await self.context.get("inbound")

    async def ack(self, response: Any) -> None:
        await self.authorization.ask(
            "authorization",
            nonce=response.nonce,
            version=response.version_info,
            type_url=EXTENSION_TYPE,
        )

    async def take(self) -> tuple[float, float]:
        """Moments of the next authorization and of the next context."""

        async def authorized() -> float:
            response = await self.authorization.next()
            moment = time.perf_counter()
            await self.ack(response)
            return moment

        async def admitted() -> float:
            response = await self.context.next()
            moment = time.perf_counter()
            await self.context.ack(response, "inbound")
            return moment

        first, second = await asyncio.gather(authorized(), admitted())
        return first, second


def _plain(connection: Any, method: str) -> Sotw:
    """A stream whose answers are decoded once: the tests' second decoder takes milliseconds."""
    stream = Sotw(connection)
    stream.call.cancel()
    stream.call = connection.stream_stream(
        method,
        request_serializer=None,
        response_deserializer=discovery_pb2.DiscoveryResponse.FromString,
    )()
    return stream


async def run(clients: int, epochs: int) -> None:
    """Print the distribution of delays, in milliseconds."""
    author = Author()
    holder = author.holder()
    author.allow(holder, ("client", "web"))
    options = ServingOptions(peers=PolicyPeers(holder), authorizations=PolicyAuthorizations(holder))
    with tempfile.TemporaryDirectory() as folder:
        async with contextlib.AsyncExitStack() as stack:
            at = await stack.enter_async_context(serving(Path(folder), options=options))
            holder.listen(at.service.refresh)
            joined = [
                Client(await stack.enter_async_context(channel(at.target))) for _ in range(clients)
            ]
            for one in joined:
                await one.begin()
            first: list[float] = []
            second: list[float] = []
            for number in range(epochs):
                waiting = [asyncio.create_task(one.take()) for one in joined]
                await asyncio.sleep(0.5)
                began = time.perf_counter()
                author.allow(holder, ("other" if number % 2 else "client", "web"), ("x", "web"))
                for authorized, admitted in await asyncio.gather(*waiting):
                    first.append(authorized - began)
                    second.append(admitted - began)
    print(f"| {clients} clients, {epochs} epochs | p50 | p99 | longest |")
    print("|---|---|---|---|")
    for name, delays in (("authorization", first), ("validation context", second)):
        print(f"| {name} | {' | '.join(f'{one * 1000:.0f} ms' for one in spread(delays))} |")


def spread(delays: Sequence[float]) -> tuple[float, float, float]:
    """The median, the 99th percentile and the longest."""
    ordered = sorted(delays)
    return ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100], ordered[-1]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--clients", type=int, default=250)
    parser.add_argument("--epochs", type=int, default=6)
    given = parser.parse_args()
    asyncio.run(run(given.clients, given.epochs))
