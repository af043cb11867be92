"""What knowing the caller costs: per connection and per message.

    python -m bench.workload            (about 20 s; one table)

Cold means that the facts were never gathered before; warm that the executable's digest and the pod
list are there. The front door's own cost is the difference between a call through it and a call to
the same server without it, in the same run.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from sds.clock import SystemClock
from sds.workload import proc
from sds.workload.executables import Executables
from sds.workload.kubernetes.api import ApiClient
from sds.workload.kubernetes.attestor import CONTAINER_TYPES, KubernetesAttestor, Waiting
from sds.workload.kubernetes.pod_list import PodList
from sds.workload.peer import Peer
from sds.workload.unix import EXECUTABLE_TYPES, UnixAttestor
from tests.support.front_door import WHO, front_door, rules, unix
from tests.support.kubernetes import cluster, container_id, pod

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

CALLS = 2000
CONNECTIONS = 200
PODS = 250
CONTAINERS = 20


def row(what: str, seconds: list[float], unit: str = "") -> None:
    ordered = sorted(seconds)
    p50, p99 = statistics.median(ordered), ordered[int(len(ordered) * 0.99)]
    print(f"| {what:<58} | {p50 * 1e3:8.3f} | {p99 * 1e3:8.3f} |{unit}")


async def timed(work: Callable[[], Awaitable[object]], times: int) -> list[float]:
    found = []
    for _ in range(times):
        began = time.perf_counter()
        await work()
        found.append(time.perf_counter() - began)
    return found


async def attestors(folder: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:

        async def credentials() -> None:
            Peer.of(ours).close()

        row("credentials and pidfd of a connection", await timed(credentials, CALLS))
        peer = Peer.of(ours)
        with contextlib.closing(peer):
            unix_attestor = UnixAttestor(Executables(SystemClock()))
            nothing: frozenset[str] = frozenset()
            row(
                "unix: user and groups",
                await timed(lambda: unix_attestor.attest(peer, nothing), CALLS),
            )
            cold = await timed(lambda: unix_attestor.attest(peer, EXECUTABLE_TYPES), 1)
            row("unix: executable, first time (hashed)", cold)
            row(
                "unix: executable, known file",
                await timed(lambda: unix_attestor.attest(peer, EXECUTABLE_TYPES), CALLS),
            )
            await kubernetes(folder, peer)


async def kubernetes(folder: Path, peer: Peer) -> None:
    async with cluster(folder) as kube, ApiClient(kube.kubelet()) as kubelet:
        ids = [{f"c{n}": container_id() for n in range(CONTAINERS)} for _ in range(PODS)]
        kube.pods = [pod(f"p{n}", containers=each) for n, each in enumerate(ids)]
        uid = kube.pods[7]["metadata"]["uid"]
        text = f"0::/kubepods/burstable/pod{uid}/{ids[7]['c3']}\n"

        # The real file is read too, so that its cost is in the figure.
        def read_cgroup(peer: Peer) -> str:
            return text if proc.read_cgroup(peer) else ""

        pods = PodList(kubelet, SystemClock())
        task = asyncio.create_task(pods.run())
        waiting = Waiting(kubelet=30, max_age=1e9)
        attestor = KubernetesAttestor(
            pods, None, roots=proc.pod_roots({}), waiting=waiting, read_cgroup=read_cgroup
        )
        try:
            cold = await timed(lambda: attestor.attest(peer, CONTAINER_TYPES), 1)
            row(f"kubernetes: first list of {PODS} pods x {CONTAINERS} containers", cold)
            row(
                "kubernetes: warm pod list",
                await timed(lambda: attestor.attest(peer, CONTAINER_TYPES), CALLS),
            )
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def door(folder: Path) -> None:
    mapping = rules({"unix:uid": "*"})
    async with front_door(folder, attestors=unix(), rules=mapping) as running:
        bare = grpc.aio.server()

        async def answer(_request: bytes, _context: object) -> bytes:
            return b"spiffe://example.org/r0"

        handler: Any = grpc.unary_unary_rpc_method_handler(answer)
        bare.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("test.Who", {"Am": handler}),)
        )
        direct = folder / "direct.sock"
        bare.add_insecure_port(f"unix:{direct}")
        await bare.start()
        for what, path in (("without the door", direct), ("through the door", running.path)):
            async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
                call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(WHO)
                await timed(lambda call=call: call(b""), 200)  # type: ignore[misc]
                row(f"a call, {what}", await timed(lambda call=call: call(b""), CALLS))  # type: ignore[misc]

            async def connect(path: Path = path) -> None:
                options = [("grpc.use_local_subchannel_pool", 1)]
                async with grpc.aio.insecure_channel(f"unix:{path}", options=options) as channel:
                    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(WHO)
                    await call(b"")

            row(f"a connection and a call, {what}", await timed(connect, CONNECTIONS))
        await bare.stop(None)


async def main() -> None:
    print(f"| {'':<58} | {'p50 ms':>8} | {'p99 ms':>8} |")
    print(f"|{'-' * 60}|{'-' * 9}:|{'-' * 9}:|")
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        await attestors(Path(one))
        await door(Path(two))


if __name__ == "__main__":
    asyncio.run(main())
