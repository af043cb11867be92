from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from cryptography import x509

from sds import errors
from sds.authority.attested import AttestedAuthority, AuthoritySettings
from sds.authority.channel import TLS_SERVER_NAME, VerifiedTls
from sds.ca.issuance import ConfiguredIssuance
from sds.ca.server import ExchangeLimits
from sds.ca.tls import self_signed_tls
from sds.clock import SystemClock
from sds.exchange.item import CertificateItem, IssuedChain
from sds.identity import MAX_DNS_NAMES, KeyType, SpiffeId
from sds.pki import PrivateKey, generate_private_key, verify_svid_chain
from tests.support.authority import (
    TRUST_DOMAIN,
    Machine,
    World,
    configured,
    identity,
    items,
    renew,
    rule,
    verifier_of,
    wish,
)
from tests.support.raw_exchange import grpc_credentials
from tests.support.refusals import refused

if TYPE_CHECKING:
    from datetime import datetime

    from sds.attestation.evidence import Claims, Evidence, ReportData
    from sds.authority.port import Issuance


def verify(wishes: list[tuple[PrivateKey, CertificateItem]], issuance: Issuance) -> None:
    for (key, item), outcome in zip(wishes, issuance.outcomes, strict=True):
        assert isinstance(outcome, IssuedChain), outcome
        verify_svid_chain(
            outcome.chain,
            roots=issuance.roots,
            identity=item.identity,
            public_key=key.public_key(),
            now=SystemClock().now().wall,
        )


async def test_a_batch_and_then_renewals_on_one_stream() -> None:
    world = World()
    async with world.running() as authority, world.client(authority.port) as client:
        wishes = [wish(identity(f"/ns/a/sa/w{i}")) for i in range(40)]
        for _ in range(3):
            verify(wishes, await client.issue(items(wishes)))
        assert authority.service.streams == 1
        assert (world.agent.reports, world.authority.reports) == (3, 1)
    records = list(world.journal)
    assert [record.number for record in records] == list(range(1, 121))
    assert {record.reason for record in records} == {"issued"}
    assert len({record.serial for record in records}) == 120
    assert len({record.evidence for record in records}) == 3


async def test_a_certificate_may_have_the_most_and_longest_names() -> None:
    end = ".".join(["x" * 60] * 3) + "." + "x" * 60 + ".test"
    names = tuple(f"s{number:03}.{end}" for number in range(MAX_DNS_NAMES))
    assert {len(name) for name in names} == {253}
    world, wanted = World(), [wish(identity(dns_names=names))]
    async with world.running() as authority, world.client(authority.port) as client:
        verify(wanted, await client.issue(items(wanted)))


@pytest.mark.parametrize("key_type", [KeyType.EC_P384, KeyType.RSA_2048, KeyType.ED25519])
async def test_every_kind_of_key(key_type: KeyType) -> None:
    world = World()
    wanted = wish(identity(key_type=key_type))
    async with world.running() as authority, world.client(authority.port) as client:
        verify([wanted], await client.issue(items([wanted])))


async def test_one_item_is_refused_and_the_others_are_issued(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World()
    good = wish()
    bad = [
        (wish(identity("/other")), "spiffe_id_not_allowed"),
        (
            wish(identity(spiffe_id=SpiffeId.parse("spiffe://example.com/ns/a"))),
            "spiffe_id_not_allowed",
        ),
        (wish(identity(dns_names=("example.com",))), "dns_name_not_allowed"),
        (wish(identity(dns_names=tuple(f"n{i}.test" for i in range(101)))), "dns_name_not_allowed"),
        ((good[0], replace(good[1], csr=b"garbage")), "csr_invalid"),
        ((good[0], replace(good[1], signing=True)), "signing_not_allowed"),
    ]
    async with world.running() as authority, world.client(authority.port) as client:
        issuance = await client.issue(items([good, *(item for item, _ in bad), good]))
    outcomes = issuance.outcomes
    assert isinstance(outcomes[0], IssuedChain)
    assert isinstance(outcomes[-1], IssuedChain)
    found = [
        outcome.wire_reason
        for outcome in outcomes
        if isinstance(outcome, errors.AuthorityRefusedError)
    ]
    wanted = [reason for _, reason in bad]
    assert found == wanted
    assert [record.reason for record in world.journal] == ["issued", *wanted, "issued"]
    # The agent's log names each reason too.
    assert [
        record.__dict__["reason"]
        for record in caplog.records
        if record.name == "sds.authority.attested" and "no certificate" in record.message
    ] == wanted


async def test_lifetimes_are_clamped_by_the_rule() -> None:
    world = World()
    wanted = wish(identity(lifetime=timedelta(days=30)))
    policy = configured(rule(max_lifetime=timedelta(seconds=90)))
    async with world.running(policy=policy) as authority, world.client(authority.port) as client:
        (outcome,) = (await client.issue(items([wanted]))).outcomes
    assert isinstance(outcome, IssuedChain)
    left = (
        x509.load_der_x509_certificate(outcome.chain[0]).not_valid_after_utc
        - SystemClock().now().wall
    )
    assert timedelta(seconds=80) < left <= timedelta(seconds=90)


async def test_what_a_csr_asks_for_beyond_its_key_is_not_copied() -> None:
    world = World()
    key = generate_private_key(KeyType.EC_P256)
    greedy = identity("/ns/a/sa/admin", dns_names=("admin.test",))
    item = replace(wish(identity(), key)[1], csr=wish(greedy, key)[1].csr)
    async with world.running() as authority, world.client(authority.port) as client:
        verify([(key, item)], await client.issue([item]))


async def test_a_new_key_of_the_authority_is_attested_on_the_same_stream() -> None:
    world = World()
    wanted = [wish()]
    async with world.running() as authority, world.client(authority.port) as client:
        first = await client.issue(items(wanted))
        renew(authority)
        second = await client.issue(items(wanted))
        verify(wanted, second)
        assert set(first.roots) < set(second.roots)
        assert world.authority.reports == 2
        assert authority.service.streams == 1


@dataclass
class MovableClock(SystemClock):
    """A clock whose monotonic side a test can put forward: the machine did not sleep."""

    ahead: float = 0.0

    def now(self) -> Any:
        now = super().now()
        return replace(now, monotonic=now.monotonic + self.ahead)


async def test_an_expired_nonce_costs_one_more_round_trip(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world, clock, wanted = World(), MovableClock(), [wish()]
    changes: dict[str, Any] = {"clock": clock, "max_lifetime": timedelta(minutes=10)}
    async with world.running(**changes) as authority, world.client(authority.port) as client:
        await client.issue(items(wanted))
        clock.ahead += 601
        verify(wanted, await client.issue(items(wanted)))
        assert world.agent.reports == 3
        assert world.authority.reports == 1
    reasons = [
        record.__dict__.get("reason")
        for record in caplog.records
        if record.name == "sds.authority.attested"
    ]
    assert reasons == ["nonce_expired"]


# --- several authorities, and failing ones ------------------------------------------------------


async def test_the_next_address_is_tried_and_the_good_one_is_kept() -> None:
    world, wanted = World(), [wish()]
    async with world.running() as authority, world.client(1, authority.port) as client:
        verify(wanted, await client.issue(items(wanted)))
        assert client.connected_to == f"127.0.0.1:{authority.port}"
        await client.aclose()
        verify(wanted, await client.issue(items(wanted)))


@dataclass
class DyingMachine(Machine):
    """Runs something in the middle of an exchange, once."""

    then: Any = None

    async def attest(self, data: ReportData) -> Evidence:
        if self.then is not None:
            then, self.then = self.then, None
            await then()
        return await super().attest(data)


async def test_an_authority_that_ends_in_the_middle_of_a_batch_loses_nothing() -> None:
    world = World(agent=DyingMachine("aa" * 48))
    wishes = [wish(identity(f"/ns/a/sa/w{i}")) for i in range(10)]
    async with world.running() as second:
        dying = world.running(limits=ExchangeLimits(hello_seconds=5))
        first = await dying.__aenter__()

        async def die() -> None:
            await dying.__aexit__(None, None, None)

        assert isinstance(world.agent, DyingMachine)
        world.agent.then = die
        async with world.client(first.port, second.port) as client:
            verify(wishes, await client.issue(items(wishes)))
            assert client.connected_to == f"127.0.0.1:{second.port}"


async def test_an_authority_that_was_restarted_is_attested_anew() -> None:
    world, wanted = World(), [wish()]
    async with world.running() as first:
        listen = f"127.0.0.1:{first.port}"
        client = lasting_client(world, first.port)
        before = await client.issue(items(wanted))
    async with world.running(listen=listen):
        after = await client.issue(items(wanted))
        verify(wanted, after)
    await client.aclose()
    # Another root, another TLS key: both came under fresh evidence.
    assert not set(before.roots) & set(after.roots)
    assert world.authority.reports == 2


def lasting_client(world: World, port: int) -> AttestedAuthority:
    """A client that outlives the authority it was made beside."""
    return AttestedAuthority(
        AuthoritySettings(addresses=(f"127.0.0.1:{port}",)),
        attester=world.agent,
        verifier=verifier_of(world.authority),
        clock=SystemClock(),
    )


async def test_nobody_there_is_one_clear_retriable_error() -> None:
    world = World()
    async with world.client(1, 2) as client:
        with pytest.raises(errors.AuthorityUnavailableError) as raised:
            await client.issue([wish()[1]])
    assert "127.0.0.1:1" in str(raised.value)
    assert "127.0.0.1:2" in str(raised.value)
    assert raised.value.retriable


class NeverReady:
    async def next_signer(self) -> Any:
        await asyncio.Event().wait()


async def test_an_authority_without_a_certificate_says_so() -> None:
    world = World()
    parts = world.parts(source=NeverReady())
    from sds.ca.app import running_authority  # noqa: PLC0415  World.running waits for readiness

    async with running_authority(parts) as authority, world.client(authority.port) as client:
        with pytest.raises(errors.AuthorityRefusedError) as raised:
            await client.issue([wish()[1]])
        assert raised.value.wire_reason == "authority_not_ready"
        assert raised.value.retriable


async def test_a_server_that_speaks_something_else_is_an_error_of_ours() -> None:
    world = World()
    server = grpc.aio.server()
    tls = self_signed_tls()
    port = server.add_secure_port("127.0.0.1:0", grpc_credentials(tls))
    await server.start()
    try:
        async with world.client(port) as client:
            with pytest.raises(errors.AuthorityUnavailableError, match="UNIMPLEMENTED"):
                await client.issue([wish()[1]])
    finally:
        await server.stop(None)


async def test_a_port_that_does_not_speak_tls_is_an_error_of_ours() -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(babble, "127.0.0.1", 0)
    world = World()
    async with server, world.client(server.sockets[0].getsockname()[1]) as client:
        with pytest.raises(errors.AuthorityUnavailableError, match="does not speak TLS"):
            await client.issue([wish()[1]])


async def test_an_authority_that_never_answers_ends_at_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel accepts, nobody answers
        settings = AuthoritySettings(
            addresses=(f"127.0.0.1:{silent.getsockname()[1]}",), connect_seconds=0.3
        )
        async with World().client(settings=settings) as client:
            with pytest.raises(errors.AuthorityUnavailableError):
                await client.issue([wish()[1]])


async def test_a_cancelled_exchange_closes_its_stream_and_the_next_one_works() -> None:
    world = World(agent=DyingMachine("aa" * 48))
    reached, wanted = asyncio.Event(), [wish()]

    async def hang() -> None:
        reached.set()
        await asyncio.Event().wait()

    assert isinstance(world.agent, DyingMachine)
    world.agent.then = hang
    async with world.running() as authority, world.client(authority.port) as client:
        task = asyncio.create_task(client.issue(items(wanted)))
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert client.connected_to is None
        verify(wanted, await client.issue(items(wanted)))


async def test_many_ask_at_once_and_each_gets_its_own() -> None:
    world = World()
    async with world.running() as authority, world.client(authority.port) as client:
        wishes = [wish(identity(f"/ns/a/sa/w{i}")) for i in range(20)]
        answers = await asyncio.gather(*(client.issue([item]) for _, item in wishes))
        for one, answer in zip(wishes, answers, strict=True):
            verify([one], answer)
        assert authority.service.streams == 1


# --- plain TLS ----------------------------------------------------------------------------------


async def test_plain_tls_is_verified_against_root_and_name() -> None:
    world, wanted = World(), [wish()]
    tls = self_signed_tls(server_names=["ca.test"])
    other = self_signed_tls(server_names=["ca.test"])
    async with world.running(tls=tls, attester=None) as authority:

        def settings(root: bytes, name: str) -> AuthoritySettings:
            return AuthoritySettings(
                addresses=(f"127.0.0.1:{authority.port}",),
                tls=VerifiedTls(roots=root, server_name=name),
                connect_seconds=2,
            )

        good = settings(tls.certificate_pem, "ca.test")
        async with world.client(settings=good, verifier=None) as client:
            verify(wanted, await client.issue(items(wanted)))
        for bad in (
            settings(other.certificate_pem, "ca.test"),
            settings(tls.certificate_pem, "other.test"),
        ):
            async with world.client(settings=bad, verifier=None) as client:
                with pytest.raises(errors.AuthorityUnavailableError):
                    await client.issue(items(wanted))
        # Where reference values are configured, TLS alone is not enough.
        async with world.client(settings=good) as client:
            with refused("authority_evidence", match="no evidence"):
                await client.issue(items(wanted))


def test_there_is_no_third_way() -> None:
    world = World()

    async def without() -> None:
        async with world.client(1, verifier=None):
            pass

    with pytest.raises(errors.ConfigurationError, match="reference values"):
        asyncio.run(without())


@pytest.mark.parametrize("address", ["", "ca", "ca:", ":1", "ca:0", "ca:70000", "ca:http"])
def test_an_address_that_is_none(address: str) -> None:
    async def use() -> None:
        async with World().client(settings=AuthoritySettings(addresses=(address,))):
            pass

    with pytest.raises(errors.ConfigurationError):
        asyncio.run(use())


# --- policy -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRules(ConfiguredIssuance):
    """Takes only agents of the same policy."""

    def admit(self, *, digest: bytes, epoch: int, document: bytes) -> None:
        if digest != self.digest:
            raise errors.RefusedError(
                f"policy epoch {epoch}, and {self.epoch} is in force", reason="policy_behind"
            )


@dataclass
class Follower:
    """An agent's policy that takes what it is offered, where it may."""

    digest: bytes = b"0" * 32
    epoch: int = 1
    document: bytes = b"old"
    willing: bool = True

    def require_in_force(self) -> None:
        """It always is."""

    async def offer(self, document: bytes) -> bool:
        if self.willing:
            self.digest, self.epoch, self.document = document[:32], 2, document
        return self.willing


@pytest.mark.parametrize("willing", [True, False])
async def test_a_newer_policy_is_handed_down_before_anything_is_issued(willing: bool) -> None:  # noqa: FBT001  a parameter of the test
    world, wanted = World(), [wish()]
    document = b"2" * 32 + b"signed"
    policy = EpochRules(
        decisions=configured(rule()).decisions, digest=b"2" * 32, epoch=2, document=document
    )
    follower = Follower(willing=willing)
    async with (
        world.running(policy=policy) as authority,
        world.client(authority.port, policy=follower) as client,
    ):
        if willing:
            verify(wanted, await client.issue(items(wanted)))
            assert follower.document == document
        else:
            with pytest.raises(errors.AuthorityRefusedError) as raised:
                await client.issue(items(wanted))
            assert raised.value.wire_reason == "policy_behind"
            assert not raised.value.retriable


# --- authorities in a row -----------------------------------------------------------------------


async def test_three_authorities_in_a_row() -> None:
    from sds.ca.signers import FromUpstream  # noqa: PLC0415  used here alone

    world, wanted = World(), [wish()]
    below = Machine("dd" * 48, key=world.agent.key)
    signing = rule(below.measurement, signing_path_length=3, max_lifetime=timedelta(hours=3))
    policy = configured(rule(), signing)
    verifier = verifier_of(world.agent, below)

    def source(client: Any) -> FromUpstream:
        return FromUpstream(
            trust_domain=TRUST_DOMAIN,
            key_type=KeyType.EC_P256,
            lifetime=timedelta(hours=6),
            upstream=client,
            clock=SystemClock(),
        )

    common: dict[str, Any] = {"policy": policy, "verifier": verifier}
    async with (
        world.running(**common) as root,
        world.client(root.port, attester=below) as up,
        world.running(source=source(up), **common) as middle,
        world.client(middle.port) as client,
        world.client(middle.port, attester=below) as up_again,
    ):
        assert root.signing.current().path_length == 1
        signer = middle.signing.current()
        assert signer.path_length == 0
        assert signer.not_after <= SystemClock().now().wall + timedelta(hours=3)
        issuance = await client.issue(items(wanted))
        verify(wanted, issuance)
        assert isinstance(issuance.outcomes[0], IssuedChain)
        assert len(issuance.outcomes[0].chain) == 2
        assert issuance.roots == root.signing.roots
        # The root allowed one authority below it: a second one is refused.
        with pytest.raises(errors.AuthorityRefusedError) as raised:
            await source(up_again).next_signer()
        assert raised.value.wire_reason == "signing_not_allowed"


async def test_a_simulation_is_said_loudly(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    async with world.running() as authority, world.client(authority.port) as client:
        await client.issue([wish()[1]])
    assert any(
        record.levelno == logging.WARNING and record.message.startswith("SIMULATION")
        for record in caplog.records
    )
    assert TLS_SERVER_NAME.endswith(".invalid")


async def test_a_short_request_does_not_wait_for_long_ones() -> None:
    world = World()
    many = [wish(identity(f"/ns/a/sa/w{i}")) for i in range(1000)]
    ended: list[int] = []

    async def ask(
        client: AttestedAuthority, wishes: list[tuple[PrivateKey, CertificateItem]]
    ) -> None:
        await client.issue(items(wishes))
        ended.append(len(wishes))

    async with world.running() as authority, contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(world.client(authority.port)) for _ in range(7)]
        for client in clients:
            await ask(client, many[:1])
        ended.clear()
        async with asyncio.TaskGroup() as group:
            for client in clients[1:]:
                group.create_task(ask(client, many))
            while len(world.journal) < 50:
                await asyncio.sleep(0)
            group.create_task(ask(clients[0], many[:1]))
    assert ended[0] == 1


class PanicException(BaseException):
    """What a parser in Rust raises; not an Exception."""


@pytest.mark.parametrize("kind", [RuntimeError, PanicException])
async def test_an_unexpected_error_ends_its_stream_and_nothing_else(
    kind: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    world = World()
    fault = kind("no such case")  # not a parameter: those live on, with the frames of their error
    inner, faults = verifier_of(world.agent), [fault]

    class Faulty:
        def verify(self, evidence: Evidence, *, data: ReportData, now: datetime) -> Claims:
            if faults:
                raise faults.pop()
            return inner.verify(evidence, data=data, now=now)

    async with (
        world.running(verifier=Faulty()) as authority,
        world.client(authority.port) as client,
        world.client(authority.port) as other,
    ):
        with pytest.raises(errors.AuthorityUnavailableError, match="a fault of the authority"):
            await client.issue(items([wish()]))
        for again in (client, other):
            wishes = [wish()]
            verify(wishes, await again.issue(items(wishes)))
    logged = [one.exc_info for one in caplog.records if one.exc_info]
    assert [found for _, found, _ in logged] == [fault]
