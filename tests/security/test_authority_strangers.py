"""What callers who prove nothing can make a real ``sds ca`` hold, and for how long."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import os
import select
import socket
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sds._proto.sds.ca.v1 import ca_pb2
from tests.e2e.test_ca_process import NODE, Site, client, port
from tests.support import need
from tests.support.authority import wish
from tests.support.cgroups import memory_group
from tests.support.policies import Signatory, document, sign
from tests.support.process import running
from tests.support.raw_exchange import Request, raw_stream
from tests.support.raw_http2 import raw_connection

if TYPE_CHECKING:
    from tests.support.process import Process

pytestmark = pytest.mark.e2e

STRANGER = need.ROOT / "tests" / "support" / "hostile_stranger.py"
MIB = 1024 * 1024
BOUND = 256 * MIB
ENVELOPE = (
    b'{"payload":"AA==","payloadType":"application/vnd.attested-sds.policy.v1+yaml",'
    b'"signatures":[{"keyid":"\\ud800","sig":"AA=="}]}'
)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def peak(process: Process) -> int:
    """The most memory that the process ever had, in bytes (proc(5), VmHWM)."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError


async def honest(number: int) -> float:
    """Seconds that a machine waits for its certificate.

    The attackers run on its event loop, so it is more patient than an agent: it asks once.
    """
    began = time.monotonic()
    async with client(number, connect_seconds=60) as authority:
        issuance = await authority.issue([wish()[1]])
    assert not isinstance(issuance.outcomes[0], Exception), issuance.outcomes[0]
    return time.monotonic() - began


def descriptors(process: Process) -> int:
    """That the process has open."""
    return len(list(Path(f"/proc/{process.pid}/fd").iterdir()))


def ended(sockets: list[socket.socket]) -> list[socket.socket]:
    """Those that the other side closed."""
    readable, _, _ = select.select(sockets, [], [], 0)
    return list(readable)


async def honest_hello(number: int) -> None:
    async with raw_stream(number) as stream:
        await stream.hello()


@pytest.mark.root
async def test_half_a_message_on_a_thousand_streams(site: Site) -> None:
    """In a control group that kills at the bound."""
    need.root()
    async with contextlib.AsyncExitStack() as stack:
        group = stack.enter_context(memory_group(BOUND))
        process = await stack.enter_async_context(site.authority(prefix=group.prefix))
        number = await port(process)
        await honest(number)
        attackers = [await stack.enter_async_context(raw_connection(number)) for _ in range(10)]

        async def attack(connection: Any) -> None:
            streams = {connection.call(): 4 * MIB - 4096 for _ in range(100)}
            for stream in streams:
                connection.announce(stream, 4 * MIB - 1024)
            await connection.push(streams, seconds=120)

        attacks = [asyncio.create_task(attack(one)) for one in attackers]
        await asyncio.sleep(1)
        for _ in range(2):
            await honest(number)
        for one in attacks:
            one.cancel()
        await asyncio.gather(*attacks, return_exceptions=True)
        assert peak(process) < BOUND
        assert process.returncode is None


async def test_a_message_of_two_million_empty_parts(site: Site) -> None:
    data = Request(certificates=ca_pb2.CertificateRequest(items=[ca_pb2.Item()] * 2_000_000))
    assert data.ByteSize() < 4 * MIB + 1024
    async with site.authority() as process:
        number = await port(process)
        await honest(number)
        before = peak(process)
        async with raw_stream(number) as stream:
            await stream.send(data.SerializeToString()[: 4 * MIB - 2])
            assert (await stream.status()).name == "INVALID_ARGUMENT"
        assert peak(process) - before < 24 * MIB
        await honest(number)


async def test_compressed_policies_grow_little_and_are_not_parsed_unsigned(site: Site) -> None:
    alice = Signatory("alice")
    now = datetime.now(UTC)
    policy = document(
        trust_domain="example.org",
        not_before=now - timedelta(hours=1),
        not_after=now + timedelta(days=1),
    )
    (site.path / "policy.json").write_bytes(sign(policy, alice))
    (site.path / "alice.pub").write_text(alice.public.pem)
    files = {"file": str(site.path / "policy.json"), "keys": [str(site.path / "alice.pub")]}
    half = b'{"a":[' + b"{}," * (4 * MIB) + b"{}]}\n"
    strings = b'{"payload":"' + b"A" * (12 * MIB) + b'"}\n'
    bombs = [
        gzip.compress(half * 2, 9),
        gzip.compress(strings * 2, 9),
        half[: 3 * MIB],
        b"[" * (3 * MIB),
        b'{"a":' * (600 * 1024),
        b'{"\\ud800":"\\ud800"}',
        ENVELOPE,
    ]
    async with site.authority(identities=[], policy=files) as process:
        number = await port(process)
        await honest_hello(number)
        before = peak(process)
        for bomb in bombs:
            async with raw_stream(number) as stream:
                request = ca_pb2.CertificateRequest(
                    nonce=(await stream.hello()).nonce,
                    items=[ca_pb2.Item(csr=b"x", spiffe_id="spiffe://example.org/x")],
                    evidence=ca_pb2.Evidence(kind="sev-snp", report=b"nothing"),
                    policy_digest=os.urandom(32),
                    policy_epoch=10**6,
                    signed_policy=bomb,
                )
                answer = await stream.ask(Request(certificates=request))
            assert answer.refusal.reason in {"policy_malformed", "policy_unsigned"}, bomb[:80]
        assert peak(process) - before < 48 * MIB


async def test_connections_have_a_bound_and_those_that_are_there_stay(site: Site) -> None:
    async with (
        site.authority(limits={"connections": 20}) as process,
        contextlib.AsyncExitStack() as stack,
    ):
        number = await port(process)
        async with client(number) as authority:
            await authority.issue([wish()[1]])
            silent = [
                stack.enter_context(socket.create_connection(("127.0.0.1", number)))
                for _ in range(60)
            ]
            async with asyncio.timeout(5):
                while len(await asyncio.to_thread(ended, silent)) < 40:
                    await asyncio.sleep(0.02)
            await authority.issue([wish()[1]])
        assert descriptors(process) < 100


@pytest.mark.parametrize("kinds", [("silent", "half", "drip"), ("tls", "pings", "call")])
async def test_strangers_who_hold_every_connection_keep_no_agent_out(
    site: Site, kinds: tuple[str, ...]
) -> None:
    """They open another one for each that ends; agents come and go meanwhile."""
    async with site.authority(limits={"connections": 256}) as process:
        number = await port(process)
        async with client(number) as known:
            await known.issue([wish()[1]])
            async with contextlib.AsyncExitStack() as stack:
                for kind in kinds:
                    command = [sys.executable, "-S", str(STRANGER), str(number), kind, "150", "60"]
                    await stack.enter_async_context(running(command))
                async with asyncio.timeout(20):
                    while descriptors(process) < 130:
                        await asyncio.sleep(0.05)
                for _ in range(8):
                    await honest(number)
                    await known.issue([wish()[1]])
        assert process.returncode is None


async def test_evidence_of_a_kind_that_no_rule_can_name_is_refused_unread(site: Site) -> None:
    async with site.authority(identities=[]) as process, raw_stream(await port(process)) as stream:
        challenge = await stream.hello()
        answer = await stream.ask(
            Request(
                certificates=ca_pb2.CertificateRequest(
                    nonce=challenge.nonce,
                    items=[ca_pb2.Item(csr=b"x", spiffe_id="spiffe://example.org/x")],
                    evidence=ca_pb2.Evidence(kind="sev-snp", report=NODE),
                    policy_digest=challenge.policy_digest,
                )
            )
        )
        assert answer.refusal.reason == "evidence_kind"
