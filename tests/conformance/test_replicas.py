"""Several replicas of an authority behind one client: who is asked, and when it is another one."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from grpc_health.v1 import health_pb2

from sds import errors
from sds.authority.attested import AuthoritySettings
from sds.authority.channel import VerifiedTls, balanced_target
from sds.ca.app import running_authority
from sds.ca.issuer import Signer, self_sign
from sds.ca.tls import self_signed_tls
from sds.clock import SystemClock
from sds.exchange.item import IssuedChain
from sds.identity import KeyType
from sds.pki import generate_private_key
from sds.policy.peer_comparison import NO_POLICY_DIGEST
from tests.support.authority import TRUST_DOMAIN, World, configured, replica_health, rule, wish
from tests.support.node import free_port
from tests.support.process import PATIENCE_SECONDS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import datetime

    from sds.attestation.evidence import Claims
    from sds.authority.attested import AttestedAuthority
    from sds.ca.app import RunningAuthority
    from sds.ca.issuance import ConfiguredIssuance
    from sds.ca.tls import TlsIdentity
    from sds.policy.nodes import Permit, RequestedCertificate

NAME = "ca.test"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Once:
    """A source that gives one signer, which lives for so long (0: none at all), and never more."""

    def __init__(self, lifetime: timedelta) -> None:
        self.lifetime = lifetime

    async def next_signer(self) -> tuple[Signer, tuple[bytes, ...]]:
        if not self.lifetime:
            raise errors.AuthorityUnavailableError("nobody above answers")
        signer = self_sign(
            key=generate_private_key(KeyType.EC_P256),
            trust_domain=TRUST_DOMAIN,
            lifetime=self.lifetime,
            path_length=1,
            now=SystemClock().now().wall,
            backdate=timedelta(seconds=30),
        )
        self.lifetime = timedelta(0)
        return signer, (signer.root,)


def tls() -> TlsIdentity:
    return self_signed_tls(server_names=[NAME])


def verified(identities: list[TlsIdentity], *ports: int) -> AuthoritySettings:
    return AuthoritySettings(
        addresses=tuple(f"127.0.0.1:{port}" for port in ports),
        tls=VerifiedTls(
            roots=b"".join(one.certificate_pem for one in identities), server_name=NAME
        ),
    )


async def issued(client: AttestedAuthority) -> None:
    (outcome,) = (await client.issue([wish()[1]])).outcomes
    assert isinstance(outcome, IssuedChain), outcome


@contextlib.asynccontextmanager
async def unable(world: World, **changes: Any) -> AsyncIterator[RunningAuthority]:
    async with running_authority(world.parts(source=Once(timedelta(0)), **changes)) as running:
        yield running


async def test_grpc_chooses_only_among_those_that_can_issue(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world, keys = World(), [tls(), tls()]
    async with (
        unable(world, tls=keys[0]) as mute,
        world.running(tls=keys[1]) as able,
    ):
        settings = verified(keys, mute.port, able.port)
        for _ in range(12):
            async with world.client(settings=settings) as client:
                await issued(client)
    assert not [record for record in caplog.records if "an authority failed" in record.message]


async def test_all_are_used(caplog: pytest.LogCaptureFixture) -> None:
    world, keys = World(), [tls(), tls()]
    async with world.running(tls=keys[0]) as one, world.running(tls=keys[1]) as two:
        for settings in (
            verified(keys, one.port, two.port),
            AuthoritySettings(addresses=(f"127.0.0.1:{one.port}", f"127.0.0.1:{two.port}")),
        ):
            used = set()
            for _ in range(40):
                async with world.client(settings=settings) as client:
                    used |= set(await client.roots())
                if len(used) == 2:
                    break
            assert used == {one.signing.roots[0], two.signing.roots[0]}
    assert not [record for record in caplog.records if "an authority failed" in record.message]


async def test_no_replica_can_issue() -> None:
    world, key = World(), tls()
    async with unable(world, tls=key) as mute:
        settings = verified([key], mute.port)
        async with world.client(settings=settings) as client:
            with pytest.raises(errors.AuthorityUnavailableError, match="unhealthy"):
                await issued(client)


@pytest.mark.parametrize("way", ["attested", "verified"])
async def test_another_replica_is_asked_when_the_one_of_the_stream_cannot_issue_any_more(
    way: str,
) -> None:
    world, keys = World(), [tls(), tls()]
    async with (
        world.running(tls=keys[0], source=Once(timedelta(seconds=3))) as one,
        contextlib.AsyncExitStack() as later,
    ):
        assert await replica_health(one.port) == SERVING
        spare = free_port()
        settings = verified(keys, one.port, spare)
        if way == "attested":
            settings = AuthoritySettings(addresses=settings.addresses)
        client = await later.enter_async_context(
            world.client(settings=settings, shuffle=lambda _: None)
        )
        await issued(client)
        assert one.service.streams == 1
        two = await later.enter_async_context(
            world.running(tls=keys[1], listen=f"127.0.0.1:{spare}")
        )
        while await replica_health(one.port) != NOT_SERVING:
            await asyncio.sleep(0.1)
        await issued(client)
        assert two.service.streams == 1


@pytest.mark.parametrize(
    ("endpoints", "target"),
    [
        ([("127.0.0.1", 1), ("127.0.0.2", 2)], "ipv4:127.0.0.1:1,127.0.0.2:2"),
        ([("::1", 1)], "ipv6:[::1]:1"),
        ([("::1", 1), ("127.0.0.2", 2)], "ipv6:[::1]:1,[::ffff:127.0.0.2]:2"),
    ],
)
def test_one_target_for_all(endpoints: list[tuple[str, int]], target: str) -> None:
    assert balanced_target(endpoints) == target


async def test_a_mapped_address_leads_there() -> None:
    world, key = World(), tls()
    async with world.running(tls=key) as authority:
        settings = verified([key], authority.port)
        mapped = (f"[::ffff:127.0.0.1]:{authority.port}", *settings.addresses)
        settings = AuthoritySettings(addresses=mapped, tls=settings.tls)
        async with world.client(settings=settings) as client:
            await issued(client)


async def test_names_that_do_not_resolve_are_passed_over() -> None:
    world, key = World(), tls()
    async with world.running(tls=key) as authority:
        good = verified([key], authority.port)
        for addresses in ((), good.addresses):
            settings = AuthoritySettings(addresses=("nobody.invalid:1", *addresses), tls=good.tls)
            async with world.client(settings=settings) as client:
                if addresses:
                    await issued(client)
                else:
                    with pytest.raises(errors.AuthorityUnavailableError, match=r"nobody\.invalid"):
                        await issued(client)


class Over:
    """Issuance of a replica whose policy ended: no newer one came to it."""

    digest = NO_POLICY_DIGEST
    epoch = 0
    document = b""

    def __init__(self, inner: ConfiguredIssuance) -> None:
        self.inner = inner
        self.over = True

    def admit(self, *, digest: bytes, epoch: int, document: bytes) -> None:
        del digest, epoch, document
        if self.over:
            raise errors.PolicyNotInForceError("over", reason="policy_expired")

    def decide(self, claims: Claims, wanted: RequestedCertificate, *, now: datetime) -> Permit:
        return self.inner.decide(claims, wanted, now=now)


async def test_a_replica_that_stands_still_is_the_last_one_next_time() -> None:
    """One that was stopped (SIGSTOP) takes connections all the same: the kernel does."""
    world, connected = World(), 0

    async def silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connected
        connected += 1
        await over.wait()
        writer.close()

    over = asyncio.Event()
    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with (
        world.running() as able,
        world.client(port, able.port, shuffle=lambda places: None) as client,
    ):
        asking = asyncio.create_task(client.issue([wish()[1]]))
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not connected:
                await asyncio.sleep(0.01)
        asking.cancel()  # as rotation does after its time for one attempt
        with contextlib.suppress(asyncio.CancelledError):
            await asking
        await issued(client)
        assert connected == 1
    over.set()
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize("before", [True, False], ids=["on a stream of before", "at first"])
async def test_a_replica_that_is_behind_keeps_nobody_from_the_others(
    before: bool,  # noqa: FBT001  a parameter of the test
) -> None:
    world, behind = World(), Over(configured(rule()))
    async with (
        world.running(policy=behind) as one,
        world.running() as two,
        world.client(one.port, two.port, shuffle=lambda places: None) as client,
    ):
        if before:
            behind.over = False
            await issued(client)
            assert client.connected_to == f"127.0.0.1:{one.port}"
            behind.over = True
        await issued(client)
        assert client.connected_to == f"127.0.0.1:{two.port}"
    # Where all are, what it is is said.
    async with world.running(policy=behind) as one, world.client(one.port, one.port) as client:
        with pytest.raises(errors.AuthorityRefusedError) as refused:
            await client.issue([wish()[1]])
        assert refused.value.wire_reason == "policy_expired"
