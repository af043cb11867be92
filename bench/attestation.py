"""What attestation and the exchange cost: verification, batches, single requests, nonces.

    python -m bench.attestation         (about 60 s; one table)

The authority is ``sds ca`` in a process of its own, with a simulated SEV-SNP machine; this process
is the agent. Besides wall time the table gives what the authority alone can do on one core:
certificates for each second of its own CPU time, which does not depend on the agent beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Self

import psutil
import yaml
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from sds.attestation.evidence import Claims, EvidenceKind, ReportData
from sds.attestation.reference_values import ReferenceValues
from sds.attestation.snp.simulated import SimulatedMachine, SimulatedRoot
from sds.attestation.snp.verifier import SnpVerifier
from sds.authority.attested import AttestedAuthority, AuthoritySettings
from sds.ca.registration import ITEMS_A_TURN, Accepted, RegistrationAuthority
from sds.ca.signers import SigningState
from sds.clock import SystemClock
from sds.exchange.item import IssuedChain
from sds.pki import certificate_pem, verify_svid_chain
from tests.support.authority import AGENT, World, identity, items, wish
from tests.support.process import Process, running, sds
from tests.support.raw_exchange import item_message, raw_channel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

NODE, AUTHORITY = b"node".ljust(48, b"\0"), b"authority".ljust(48, b"\0")
BATCH = 250
VERIFICATIONS = 200
BATCHES = 12
LARGE_BATCHES = 4
SINGLE = 800
STREAMS = 32
NONCES = 10_000
CROWD = 20
A_CONNECTION = 200
"""Streams on one connection; the authority allows 256."""
MIB = 1024 * 1024


def row(what: str, value: float, unit: str, target: str = "") -> None:
    print(f"| {what:<66} | {value:>10,.2f} | {unit:<12} | {target:<10} |")


def milliseconds(work: Callable[[], object], times: int) -> float:
    """CPU time of one call: what others do on this machine meanwhile counts less than by wall."""
    began = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - began) / times * 1e3


def yardsticks() -> None:
    """What the machine gives at this moment: compare runs by these."""
    small, large = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP384R1())
    sign, check = ec.ECDSA(hashes.SHA256()), ec.ECDSA(hashes.SHA384())
    made, public = large.sign(b"x", check), large.public_key()
    row("yardstick: one P-256 signature", milliseconds(lambda: small.sign(b"x", sign), 2000), "ms")
    row(
        "yardstick: one P-384 verification",
        milliseconds(lambda: public.verify(made, b"x", check), 500),
        "ms",
    )


def verification(machine: SimulatedMachine) -> None:
    data = ReportData(bytes(64))
    evidence = asyncio.run(machine.attest(data))
    now = datetime.now(UTC)

    def verifier() -> SnpVerifier:
        return SnpVerifier(values=ReferenceValues(), trusted_roots=[machine.ark_der])

    cold = [verifier() for _ in range(VERIFICATIONS)]
    row(
        "verify one SNP report with its whole chain, first time",
        milliseconds(lambda: cold.pop().verify(evidence, data=data, now=now), VERIFICATIONS),
        "ms",
        "< 3",
    )
    warm = verifier()
    row(
        "verify one SNP report, chain known",
        milliseconds(lambda: warm.verify(evidence, data=data, now=now), VERIFICATIONS),
        "ms",
        "< 1",
    )


@contextlib.asynccontextmanager
async def authority(chips: SimulatedRoot, folder: Path) -> AsyncIterator[tuple[Process, int]]:
    ark = folder / "ark.pem"
    ark.write_bytes(certificate_pem([chips.ark_der]))
    descriptor = chips.machine(measurement=AUTHORITY).send()
    path = folder / "ca.yaml"
    settings = {
        "trust_domain": "example.org",
        "listen": "127.0.0.1:0",
        "attestation": {"kind": "simulated", "descriptor": descriptor},
        "verification": {"trusted_roots": [str(ark)]},
        "limits": {
            "hello": "10m",
            "streams": 20_000,
            "unproven": 20_000,  # this bench plays strangers
            "unproven_bytes": 20_000 * MIB,
        },
        "identities": [
            {
                "measurement": NODE.hex(),
                "spiffe_ids": ["spiffe://example.org/ns/**"],
                "dns_names": ["**.test"],
            }
        ],
    }
    path.write_text(yaml.safe_dump(settings))
    try:
        async with running(
            sds("ca", "--config", path, "--log-level", "warning"), pass_fds=[descriptor]
        ) as process:
            port = int((await process.line(r"^READY 127\.0\.0\.1:(\d+)$"))[1])
            yield process, port
    finally:
        os.close(descriptor)


def client(chips: SimulatedRoot, machine: SimulatedMachine, port: int) -> AttestedAuthority:
    return AttestedAuthority(
        AuthoritySettings(addresses=(f"127.0.0.1:{port}",)),
        attester=machine,
        verifier=SnpVerifier(values=ReferenceValues(), trusted_roots=[chips.ark_der]),
        clock=SystemClock(),
    )


class Meter:
    """Wall time, and the CPU time that the authority itself used."""

    def __init__(self, process: Process) -> None:
        self._process = psutil.Process(process.pid)

    def __enter__(self) -> Self:
        self._cpu, self._wall = self._used(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall = time.perf_counter() - self._wall
        self.cpu = self._used() - self._cpu

    def _used(self) -> float:
        times = self._process.cpu_times()
        return times.user + times.system

    @property
    def memory(self) -> float:
        """Resident, with the pages of libraries that other processes share."""
        return self._process.memory_info().rss / 2**20

    @property
    def private(self) -> float:
        """Of this process alone."""
        return self._process.memory_full_info().uss / 2**20


async def cold_batch(agent: AttestedAuthority) -> float:
    """From nothing to verified chains, milliseconds."""
    began = time.perf_counter()
    wishes = [wish(identity(f"/ns/a/sa/w{index}")) for index in range(BATCH)]
    issuance = await agent.issue(items(wishes))
    now = SystemClock().now().wall
    for (key, item), outcome in zip(wishes, issuance.outcomes, strict=True):
        assert isinstance(outcome, IssuedChain), outcome
        verify_svid_chain(
            outcome.chain,
            roots=issuance.roots,
            identity=item.identity,
            public_key=key.public_key(),
            now=now,
        )
    return (time.perf_counter() - began) * 1e3


async def exchanges(chips: SimulatedRoot, folder: Path) -> None:
    machine = chips.machine(measurement=NODE)
    async with authority(chips, folder) as (process, port):
        meter = Meter(process)
        row("authority at rest: resident memory", meter.memory, "MB")
        row("authority at rest: private memory", meter.private, "MB")
        agent = client(chips, machine, port)
        await agent.issue([wish()[1]])
        found = [await cold_batch(agent) for _ in range(BATCHES)]
        row(
            f"batch of {BATCH}, from keys to verified chains: median",
            statistics.median(found),
            "ms",
            "< 250",
        )
        row(f"batch of {BATCH}, from keys to verified chains: slowest", max(found), "ms")

        large = [wish(identity(f"/ns/a/sa/w{index}"))[1] for index in range(1000)]
        with meter:
            for _ in range(LARGE_BATCHES):
                await agent.issue(large)
        count = 1000 * LARGE_BATCHES
        row(
            "certificates from batches of 1,000, the agent beside it",
            count / meter.wall,
            "per second",
        )
        row(
            "certificates from batches, authority's CPU time alone",
            count / meter.cpu,
            "per second",
            "> 2,500",
        )

        one = large[:1]
        with meter:
            for _ in range(SINGLE):
                await agent.issue(one)
        row("single attested requests, one open stream", SINGLE / meter.wall, "per second")
        agents = [client(chips, machine, port) for _ in range(STREAMS)]
        await asyncio.gather(*(each.issue(one) for each in agents))

        async def ask(each: AttestedAuthority) -> None:
            for _ in range(SINGLE // STREAMS):
                await each.issue(one)

        with meter:
            await asyncio.gather(*map(ask, agents))
        row(
            f"single attested requests, {STREAMS} open streams, agents beside it",
            SINGLE / meter.wall,
            "per second",
        )
        row(
            "single attested requests, authority's CPU time alone",
            SINGLE / meter.cpu,
            "per second",
            "> 800",
        )
        with meter:
            for _ in range(SINGLE):
                await agent.roots()
        row("questions for roots, authority's CPU time alone", SINGLE / meter.cpu, "per second")
        for each in (agent, *agents):
            await each.aclose()


async def strangers(chips: SimulatedRoot, folder: Path) -> None:
    machine = chips.machine(measurement=NODE)
    async with authority(chips, folder) as (process, port):
        meter = Meter(process)
        agent = client(chips, machine, port)
        await agent.issue([wish()[1]])
        async with contextlib.AsyncExitStack() as stack:
            # An authority takes 2,000 frames at once from a stranger's connection.
            per_stream, hoard = 50, []
            for _ in range(CROWD):
                streams = await stack.enter_async_context(raw_channel(port))
                hoard += [streams() for _ in range(NONCES // per_stream // CROWD)]
            with meter:
                await asyncio.gather(*(_hellos(stream, per_stream) for stream in hoard))
            what = f"{NONCES:,} nonces outstanding on {len(hoard)} streams"
            row(f"{what}: resident", meter.memory, "MB", "< 80")
            row(f"{what}: private", meter.private, "MB")
            row("Challenges", NONCES / meter.wall, "per second")
            row(f"batch of {BATCH} meanwhile", await cold_batch(agent), "ms")
        await agent.aclose()

    async with authority(chips, folder) as (process, port):
        meter = Meter(process)
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(NONCES // A_CONNECTION):
                streams = await stack.enter_async_context(raw_channel(port))
                await asyncio.gather(*(_hellos(streams(), 1) for _ in range(A_CONNECTION)))
            row(f"{NONCES:,} streams with a nonce each: memory", meter.memory, "MB")


async def signing() -> None:
    """The authority's registration alone: check a CSR, decide, sign, write down."""
    world = World()
    parts = world.parts()
    signing = SigningState(clock=parts.clock)
    signer, roots = await parts.source.next_signer()
    signing.publish(roots)
    signing.activate(signer)
    registration = RegistrationAuthority(
        trust_domain=parts.trust_domain,
        signers=signing,
        policy=parts.policy,
        verifier=parts.verifier,
        journal=world.journal,
        clock=parts.clock,
        tls=parts.tls,
    )
    claims = Claims(kind=EvidenceKind.SEV_SNP, measurement=AGENT, simulated=True)
    wishes = [wish(identity(f"/ns/a/sa/w{index}"))[1] for index in range(1000)]
    accepted = Accepted(
        claims=claims,
        evidence="",
        items=[item_message(item) for item in wishes],
        signer=signer,
        roots=roots,
        peer="bench",
    )
    began = time.process_time()
    for _ in range(3):
        for done in range(0, len(wishes), ITEMS_A_TURN):
            await registration.issue(accepted, done=done)
    spent = time.process_time() - began
    row(
        "certificates without the exchange, CPU time",
        3000 / spent,
        "per second",
        "> 2,500",
    )


async def _hellos(stream: object, times: int) -> None:
    for _ in range(times):
        await stream.hello()  # type: ignore[attr-defined]  # RawStream, kept alive by its channel


def main() -> None:
    logging.disable(logging.WARNING)  # every client says loudly that this is a simulation
    print(f"| {'what':<66} | {'measured':>10} | {'unit':<12} | {'target':<10} |")
    print(f"|{'-' * 68}|{'-' * 11}:|{'-' * 14}|{'-' * 12}|")
    yardsticks()
    chips = SimulatedRoot.create()
    verification(chips.machine(measurement=NODE))
    asyncio.run(signing())
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(exchanges(chips, Path(folder)))
        asyncio.run(strangers(chips, Path(folder)))
    print(f"\nPython {sys.version.split()[0]}, {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
