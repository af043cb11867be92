"""How soon a new epoch reaches 250 Envoys: authorization first, then validation contexts.

With ``--clients`` the clients are streams in this process: each has a connection of its own with
two streams, as an Envoy has, and ACKs what it gets. With ``--envoys`` they are real Envoys, each a
process with an mTLS listener that asks the filter. An Envoy ACKs a filter after it is in use, so
the ACK's arrival ends the delay. After each epoch one request on each connection, open since the
start, must get what the epoch says. Server and clients share this machine, so the figures are upper
bounds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import ssl
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envoy.service.discovery.v3 import discovery_pb2

from bench.process_figures import Sample
from sds.agent.policy_authorizations import PolicyAuthorizations
from sds.agent.policy_peers import PolicyPeers
from sds.bootstrap.build import make_bootstrap
from sds.bootstrap.commented_yaml import to_dict
from sds.bootstrap.plan import Endpoint, Inbound, SecretSource
from sds.identity import Identity, SpiffeId
from sds.serving.calls import ECDS_SERVICE
from sds.serving.limits import ServingLimits
from sds.serving.observer import Event, Method
from sds.serving.rbac import EXTENSION_TYPE
from sds.serving.service import ServingOptions
from tests.support.envoy import running_envoy
from tests.support.policy_mesh import Author, S
from tests.support.serving import TD, serving, svid
from tests.support.xds_client import SDS, Sotw, channel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sds.policy.holder import PolicyHolder


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
        print(f"| {name} | {_milliseconds(delays)} |")


async def run_envoys(envoys: int, epochs: int, *, alone: bool) -> None:
    """The same of real Envoys: when each ACKed the filter, and the context after it.

    ``alone``: while epochs are measured, they and this process come before other work.
    """
    author = Author()
    holder = author.holder()
    author.allow(holder, ("client", "web"))
    options = ServingOptions(
        peers=PolicyPeers(holder), authorizations=PolicyAuthorizations(holder), limits=LIMITS
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with contextlib.AsyncExitStack() as stack:
            at = await stack.enter_async_context(serving(folder, options=options))
            stack.callback(holder.listen(at.service.refresh))
            context = client_context(folder)
            asking = []
            for first in range(0, envoys, 4):
                batch = range(first, min(first + 4, envoys))
                asking += await asyncio.gather(
                    *(_peer(stack, at, folder, number, context) for number in batch)
                )
            for one in asking:
                assert await one.status() == OK
            if alone:
                for pid in (os.getpid(), *(one.pid for one in asking)):
                    _before_others(pid)
            acks = Acks(envoys)
            before = [one.cpu() for one in asking]
            own = time.process_time()
            at.tally.count = acks.count  # type: ignore[method-assign]
            delays: dict[Method, list[float]] = {method: [] for method in acks.times}
            written: list[float] = []
            for number in range(epochs):
                acks.forget()
                withdrawn = number % 2 == 0
                began = time.perf_counter()
                _publish(author, holder, posts_only=withdrawn)
                await acks.complete.wait()
                for method, times in acks.times.items():
                    delays[method] += [one - began for one in times]
                written += [one - began for one in acks.written]
                for one in asking:
                    assert await one.status() == (DENIED if withdrawn else OK)
            pushes = envoys * epochs
            own = (time.process_time() - own) / pushes
            cpu = sum(one.cpu() - was for one, was in zip(asking, before, strict=True)) / pushes
    print(f"| {envoys} Envoys, {epochs} epochs | p50 | p99 | longest |")
    print("|---|---|---|---|")
    print(f"| authorization written | {_milliseconds(written)} |")
    for label, method in (("authorization", Method.ECDS_STREAM), ("context", Method.STREAM)):
        print(f"| {label} ACKed | {_milliseconds(delays[method])} |")
    print(
        f"Processor time of an Envoy in an epoch: {cpu * 1000:.1f} ms; of this process for it: ",
        end="",
    )
    print(f"{own * 1000:.1f} ms, its request and client included.")


def _before_others(pid: int) -> None:
    """Every thread of a process comes before those of the usual priority."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.setpriority(os.PRIO_PROCESS, int(thread.name), -20)


OK, DENIED = 200, 403
LIMITS = ServingLimits()


class Asking:
    """An open mTLS connection to an Envoy."""

    def __init__(
        self, pid: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.pid, self._reader, self._writer = pid, reader, writer

    def cpu(self) -> float:
        """Processor seconds of the Envoy since its start."""
        return Sample.of(self.pid).cpu

    async def status(self) -> int:
        """The status of one request on it."""
        self._writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode()
        length = re.search(r"content-length: (\d+)", head)
        await self._reader.readexactly(int(length[1]) if length else 0)
        return int(head.split()[1])

    async def close(self) -> None:
        """Close it."""
        self._writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await self._writer.wait_closed()


async def _peer(
    stack: contextlib.AsyncExitStack, at: Any, folder: Path, number: int, context: ssl.SSLContext
) -> Asking:
    """An Envoy, and a connection to it."""
    anywhere = Endpoint(host="127.0.0.1", port=0)
    bootstrap = to_dict(
        make_bootstrap(
            node=f"envoy-{number}",
            secrets=SecretSource(socket=at.socket, validation="inbound"),
            admin=anywhere,
            inbound=[Inbound(listen=anywhere, authorization="authorization")],
        )
    )
    envoy = await stack.enter_async_context(
        running_envoy(bootstrap, folder=folder, name=f"envoy-{number}")
    )
    await envoy.until_live()
    host, port = await envoy.address("inbound")
    pid = envoy.process.pid
    asking = Asking(pid, *await asyncio.open_connection(host, port, ssl=context))
    stack.push_async_callback(asking.close)
    return asking


def client_context(folder: Path) -> ssl.SSLContext:
    """TLS as the workload that the policy allows; whom it reached is of no interest here."""
    own = svid(Identity(spiffe_id=SpiffeId(TD, "/client")))
    file = folder / "client.pem"
    chain = "".join(map(ssl.DER_cert_to_PEM_cert, own.chain)).encode()
    file.write_bytes(chain + own.private_key.reveal())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(file)
    return context


def _publish(author: Author, holder: PolicyHolder, *, posts_only: bool) -> None:
    """The client stays in the context, which changes by another name: only the filter denies."""
    rule: dict[str, Any] = {"from": f"{S}/client", "to": f"{S}/web"}
    other = {"from": f"{S}/{'x' if posts_only else 'y'}", "to": f"{S}/web"}
    if posts_only:
        rule["requests"] = [{"methods": ["POST"]}]
    author.publish(holder, allow=[rule, other])


class Acks:
    """When each Envoy ACKed the filter, and the context."""

    def __init__(self, envoys: int) -> None:
        self._envoys = envoys
        self.times: dict[Method, list[float]] = {Method.ECDS_STREAM: [], Method.STREAM: []}
        self.written: list[float] = []
        self.complete = asyncio.Event()

    def forget(self) -> None:
        """Before the next epoch."""
        self.complete.clear()
        self.written.clear()
        for times in self.times.values():
            times.clear()

    def count(self, event: Event, method: Method, amount: int = 1) -> None:
        """As an observer of the service."""
        assert event is not Event.NACK
        if event is Event.SENT and method is Method.ECDS_STREAM:
            self.written += [time.perf_counter()] * amount
        if event is Event.ACK:
            self.times[method] += [time.perf_counter()] * amount
            if all(len(times) == self._envoys for times in self.times.values()):
                self.complete.set()


def _milliseconds(delays: Sequence[float]) -> str:
    return " | ".join(f"{one * 1000:.0f} ms" for one in spread(delays))


def spread(delays: Sequence[float]) -> tuple[float, float, float]:
    """The median, the 99th percentile and the longest."""
    ordered = sorted(delays)
    return ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100], ordered[-1]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--clients", type=int, default=250)
    parser.add_argument("--envoys", type=int, default=0, help="real Envoys in place of clients")
    parser.add_argument(
        "--alone", action="store_true", help="the Envoys come before other work (as root)"
    )
    parser.add_argument("--epochs", type=int, default=6)
    given = parser.parse_args()
    if given.envoys:
        asyncio.run(run_envoys(given.envoys, given.epochs, alone=given.alone))
    else:
        asyncio.run(run(given.clients, given.epochs))
