"""The authority at scale: many agents, replicas, an outage, a rolling restart.

    python -m bench.authority [--agents 10000] [--replicas 1 2] [--compress 100]

Time is compressed: with ``--compress 100``, lifetimes of an hour become 36 s and 100 agents play
10,000, so the load on the authority in each real second is that of 10,000 agents (apart from
questions for roots, of which each agent asks one a second at most). Evidence is simulated; all else
is real: an ``sds ca`` as root, replicas below it as processes of their own, and in this process the
agents' own rotation, exchange and verification. Phases, for each number of replicas:

* steady: half a lifetime of renewals, after the agents began at different times;
* rolling restart: each replica ends and starts again, one after the other; with the quarter of a
  lifetime after it;
* outage: the replicas stand still (SIGSTOP) for ``--outage`` minutes, then all agents at once.

No certificate may expire in any phase; the last column of the table counts those that did. On few
processors the agents take most of the time, so the processor time of the authority is what counts.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import random
import signal
import statistics
import time
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from bench.process_figures import Sample
from sds.attestation.reference_values import ReferenceValues
from sds.attestation.snp.verifier import SnpVerifier
from sds.authority.attested import AttestedAuthority, AuthoritySettings
from sds.clock import SystemClock
from sds.identity import Identity, SpiffeId, TrustDomain
from sds.secrets.rotation import Rotation
from sds.secrets.rotation_settings import RotationSettings
from sds.secrets.store import SecretStore
from tests.support.node import AUTHORITY, NODE, TRUST_DOMAIN, Node, chips, free_port, short_folder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from sds.authority.port import Issuance
    from sds.exchange.item import CertificateItem
    from sds.secrets.store import Change
    from tests.support.process import Process

HOUR = 3600
PATIENCE = 300.0


@dataclass
class Seen:
    """What the agents of one phase saw: milliseconds of exchanges, certificates, withdrawals."""

    exchanges: list[float] = field(default_factory=list)
    certificates: int = 0
    failed: int = 0
    expired: int = 0


class Timed:
    """An agent's client, with a stopwatch."""

    def __init__(self, inner: AttestedAuthority, world: World) -> None:
        self.inner, self._world = inner, world

    async def issue(self, items: Sequence[CertificateItem]) -> Issuance:
        began = time.perf_counter()
        try:
            issuance = await self.inner.issue(items)
        except Exception:
            self._world.seen.failed += 1
            raise
        self._world.seen.exchanges.append((time.perf_counter() - began) * 1e3)
        self._world.seen.certificates += len(issuance.outcomes)
        return issuance

    async def roots(self) -> tuple[bytes, ...]:
        return await self.inner.roots()


class World:
    """Root and replicas as processes, and the agents in this one."""

    def __init__(self, node: Node, given: argparse.Namespace, replicas: int) -> None:
        self.given, self.node = given, node
        self.seen = Seen()
        self.lifetime = HOUR // given.compress
        self.stores: list[SecretStore] = []
        self._root_port = free_port()
        self._ports = [free_port() for _ in range(replicas)]
        self._running: list[contextlib.AsyncExitStack] = []
        self.processes: list[Process] = []
        self._ended = 0.0

    @property
    def cpu(self) -> float:
        """Seconds that the replicas have used, those that ended included."""
        return self._ended + sum(Sample.of(one.pid).cpu for one in self.processes)

    @property
    def memory(self) -> int:
        """KiB, of all replicas."""
        return sum(Sample.of(one.pid).rss for one in self.processes)

    @contextlib.asynccontextmanager
    async def root(self) -> AsyncIterator[None]:
        signing = [{"measurement": AUTHORITY.hex(), "signing": {"path_length": 0}}]
        listen = f"127.0.0.1:{self._root_port}"
        async with self.node.authority(listen=listen, identities=signing):
            try:
                yield
            finally:
                while self._running:
                    await self.end(0)

    async def start(self, place: int) -> None:
        upstream = {
            "kind": "upstream",
            "authority": {"addresses": [f"127.0.0.1:{self._root_port}"]},
            "verification": {
                "trusted_roots": [str(self.node.ark)],
                "reference_values": {"measurements": [AUTHORITY.hex()]},
            },
        }
        stack = contextlib.AsyncExitStack()
        process = await stack.enter_async_context(
            self.node.authority(
                listen=f"127.0.0.1:{self._ports[place]}",
                signer=upstream,
                limits={"streams": 20_000},
            )
        )
        self._running.insert(place, stack)
        self.processes.insert(place, process)

    def tell(self, number: signal.Signals) -> None:
        """Send a signal to each replica."""
        for process in self.processes:
            os.kill(process.pid, number)

    async def end(self, place: int) -> None:
        self._ended += Sample.of(self.processes.pop(place).pid).cpu
        await self._running.pop(place).aclose()

    def client(self) -> AttestedAuthority:
        ports = random.sample(self._ports, len(self._ports))
        settings = AuthoritySettings(
            addresses=tuple(f"127.0.0.1:{port}" for port in ports),
            connect_seconds=max(1.0, 0.05 * self.lifetime),
            answer_seconds=max(2.0, 0.2 * self.lifetime),
        )
        return AttestedAuthority(
            settings,
            attester=chips().machine(measurement=NODE),
            verifier=SnpVerifier(values=ReferenceValues(), trusted_roots=[chips().ark_der]),
            clock=SystemClock(),
        )

    async def agent(self, number: int) -> None:
        """One agent, from its first certificate until it is cancelled."""
        client, store = self.client(), SecretStore()
        store.listen(self._on_change(store))
        self.stores.append(store)
        rotation = Rotation(
            trust_domain=TrustDomain(TRUST_DOMAIN),
            store=store,
            authority=Timed(client, self),
            clock=SystemClock(),
            settings=RotationSettings(attempt=timedelta(seconds=0.3 * self.lifetime)),
        )
        for each in range(self.given.identities):
            name = SpiffeId(TrustDomain(TRUST_DOMAIN), f"/agent-{number}/w{each}")
            rotation.ensure(Identity(spiffe_id=name, lifetime=timedelta(seconds=self.lifetime)))
        try:
            await rotation.run()
        finally:
            await client.aclose()

    def _on_change(self, store: SecretStore) -> Any:
        def look(change: Change) -> None:
            for key in change.keys:
                if isinstance(key, Identity) and store.svid(key) is None:
                    self.seen.expired += 1

        return look

    async def all_renewed_after(self, wall: float) -> None:
        """Wait until each identity has a certificate that came after this moment."""
        async with asyncio.timeout(PATIENCE):
            while not all(  # noqa: ASYNC110  a store tells of each change, and few wait here
                one.svid.received_at.timestamp() > wall
                for store in self.stores
                for one in store.svids().values()
            ):
                await asyncio.sleep(0.1)


def row(phase: str, seen: Seen, *, seconds: float, cpu: float, processes: int, scale: int) -> None:
    ordered = sorted(seen.exchanges) or [float("nan")]
    p50, p99 = statistics.median(ordered), ordered[int(len(ordered) * 0.99)]
    per_cpu = seen.certificates / cpu if cpu else float("nan")
    each = seen.certificates / max(1, len(seen.exchanges))
    print(
        f"| {phase:<28} | {processes:>8} | {seen.certificates / seconds:>9,.0f} | {each:>9.1f} "
        f"| {cpu / seconds:>10.2f} | {per_cpu:>9,.0f} | {p50:>8,.0f} | {p99:>8,.0f} "
        f"| {seconds * scale / 60:>9.1f} | {seen.failed:>6} | {seen.expired:>7} |",
        flush=True,
    )


async def play(given: argparse.Namespace, replicas: int) -> None:
    with short_folder() as folder:
        world = World(Node(folder), given, replicas)
        async with world.root():
            for place in range(replicas):
                await world.start(place)
            before, played = world.memory, max(1, given.agents // given.compress)
            async with asyncio.TaskGroup() as group:
                agents = []
                for number in range(played):
                    agents.append(group.create_task(world.agent(number)))
                    await asyncio.sleep(world.lifetime / 2 / played)
                try:
                    await phases(world, given, replicas)
                    grown = (world.memory - before) / played
                    print(f"memory of the replicas for each agent's stream: {grown:.0f} KiB")
                finally:
                    for each in agents:
                        each.cancel()


async def phases(world: World, given: argparse.Namespace, replicas: int) -> None:
    async def measured(phase: str, work: Any) -> None:
        world.seen, cpu, began = Seen(), world.cpu, time.monotonic()
        await work
        row(
            phase,
            world.seen,
            seconds=time.monotonic() - began,
            cpu=world.cpu - cpu,
            processes=replicas,
            scale=given.compress,
        )

    async def rolling() -> None:
        for place in range(replicas):
            await world.end(place)
            await world.start(place)
        await asyncio.sleep(world.lifetime / 4)

    await asyncio.sleep(world.lifetime / 2)  # those that began together drift apart
    await measured("steady", asyncio.sleep(world.lifetime / 2))
    await measured("rolling restart", rolling())
    world.tell(signal.SIGSTOP)
    world.seen = Seen()
    await asyncio.sleep(60 * given.outage / given.compress)
    expired, back = world.seen.expired, time.time()
    world.tell(signal.SIGCONT)
    await measured("all at once after the outage", world.all_renewed_after(back))
    print(f"certificates that expired during the outage itself: {expired}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--agents", type=int, default=10_000)
    parser.add_argument("--identities", type=int, default=30, help="of each agent")
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--outage", type=float, default=30.0, help="minutes")
    parser.add_argument("--compress", type=int, default=100, help="how much faster time goes")
    given = parser.parse_args()
    logging.disable(logging.ERROR)  # a simulation, and an outage that is meant
    print(
        f"{given.agents:,} agents with {given.identities} identities, lifetimes of an hour, time "
        f"{given.compress} times as fast\n"
    )
    heads = (
        f"{'phase':<28} | {'replicas':>8} | {'certs/s':>9} | {'a request':>9} | {'cores':>10} "
        f"| {'certs/CPU':>9} | {'p50, ms':>8} | {'p99, ms':>8} | {'minutes':>9} | {'failed':>6} "
        f"| {'expired':>7}"
    )
    print(f"| {heads} |\n|" + "|".join("-" * len(part) for part in f" {heads} ".split("|")) + "|")
    for replicas in given.replicas:
        asyncio.run(play(given, replicas))


if __name__ == "__main__":
    main()
