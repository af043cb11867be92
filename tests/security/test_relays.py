"""Relays, replays and men in the middle: each is refused, by the reason that fits."""

from __future__ import annotations

from dataclasses import replace

import grpc
import pytest

from sds import errors
from sds._proto.sds.ca.v1 import ca_pb2
from sds.attestation.csr import make_attested_csr
from sds.authority.attested import AuthoritySettings
from sds.authority.channel import VerifiedTls
from sds.ca.tls import self_signed_tls
from sds.exchange import wire
from sds.exchange.challenge import attested_csr_report_data, new_nonce
from sds.identity import KeyType
from sds.pki import generate_private_key, make_csr, spki_sha256
from tests.support.authority import AGENT, AUTHORITY, Machine, World, identity, verifier_of, wish
from tests.support.raw_exchange import (
    Middle,
    RawStream,
    Request,
    Response,
    raw_channel,
    raw_stream,
    request,
)
from tests.support.refusals import refused

ONE, TWO, THREE = (wish(identity(f"/ns/a/sa/w{i}"))[1] for i in range(3))


def refusal(answer: Response) -> ca_pb2.Refusal:
    assert answer.WhichOneof("response") == "refusal", answer
    return answer.refusal


def stolen_key() -> list[object]:
    """The wish of a good guest, with a key that is not the one its report covers."""
    thief = generate_private_key(KeyType.EC_P256)
    return [replace(ONE, csr=make_csr(thief, ONE.identity)), TWO]


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(stolen_key(), id="another's key"),
        pytest.param([ONE, TWO, THREE], id="added"),
        pytest.param([ONE], id="removed"),
        pytest.param([TWO, ONE], id="reordered"),
        pytest.param([ONE, ONE], id="replaced"),
        pytest.param(
            [replace(ONE, identity=identity("/ns/a/sa/w0", dns_names=())), TWO], id="DNS names"
        ),
        pytest.param([replace(ONE, identity=identity("/ns/a/sa/admin")), TWO], id="SPIFFE ID"),
        pytest.param([replace(ONE, signing=True), TWO], id="signing"),
    ],
)
async def test_a_report_serves_its_own_batch_alone(sent: list[object]) -> None:
    world = World()
    async with world.running() as authority, raw_stream(authority.port) as stream:
        challenge = await stream.hello()
        message = await request(challenge.nonce, [ONE, TWO], world.agent, sent=sent)  # type: ignore[arg-type]  # a table of cases
        refused = refusal(await stream.ask(message))
        assert refused.reason == "report_data_mismatch"
        # The stream stays usable, with a fresh nonce.
        answer = await stream.ask(await request(refused.next_nonce, [ONE, TWO], world.agent))
        assert answer.WhichOneof("response") == "certificates"
    assert [record.reason for record in world.journal] == [
        "report_data_mismatch",
        "issued",
        "issued",
    ]


async def test_a_nonce_serves_once() -> None:
    world = World()
    async with world.running() as authority, raw_stream(authority.port) as stream:
        challenge = await stream.hello()
        message = await request(challenge.nonce, [ONE], world.agent)
        first = await stream.ask(message)
        assert first.WhichOneof("response") == "certificates"
        refused = refusal(await stream.ask(message))
        assert (refused.reason, refused.retriable) == ("nonce_used", True)
        assert len(refused.next_nonce) == 32


async def test_a_refused_request_has_used_its_nonce_too() -> None:
    world = World()
    async with world.running() as authority, raw_stream(authority.port) as stream:
        challenge = await stream.hello()
        await stream.ask(await request(challenge.nonce, [ONE], world.agent, sent=[TWO]))
        message = await request(challenge.nonce, [ONE], world.agent)
        assert refusal(await stream.ask(message)).reason == "nonce_used"


async def test_a_nonce_of_another_connection_or_stream_is_unknown() -> None:
    world = World()
    async with (
        world.running() as authority,
        raw_channel(authority.port) as streams,
        raw_stream(authority.port) as elsewhere,
    ):
        mine, beside = streams(), streams()
        nonce = (await mine.hello()).nonce
        message = await request(nonce, [ONE], world.agent)
        for other in (beside, elsewhere):
            await other.hello()
            assert refusal(await other.ask(message)).reason == "nonce_unknown"
        answer = await mine.ask(message)
        assert answer.WhichOneof("response") == "certificates"


async def test_a_report_of_another_chip_or_another_measurement() -> None:
    world = World()
    other_chip = Machine(AGENT)
    other_code = Machine("ee" * 48, key=world.agent.key)
    async with world.running() as authority, raw_stream(authority.port) as stream:
        challenge = await stream.hello()
        refused = refusal(await stream.ask(await request(challenge.nonce, [ONE], other_chip)))
        assert (refused.reason, "another chip" in refused.message) == ("evidence", True)
        refused = refusal(await stream.ask(await request(refused.next_nonce, [ONE], other_code)))
        assert "ee" * 48 in refused.message


async def test_an_authoritys_evidence_is_not_an_agents() -> None:
    # One machine, one measurement: only the role label tells the two apart.
    both = Machine(AUTHORITY)
    world = World(agent=both, authority=both)
    async with world.running() as authority, raw_stream(authority.port) as stream:
        challenge = await stream.hello()
        evidence = wire.evidence_from_wire(challenge.evidence)
        message = await request(challenge.nonce, [ONE], both, evidence=evidence)
        assert refusal(await stream.ask(message)).reason == "report_data_mismatch"


async def refused_after_hello(
    world: World, middle: Middle, reason: str, *, match: str | None = None
) -> None:
    """An agent that reaches the authority through the middle sends nothing but its Hello."""
    async with middle.listening() as port, world.client(port) as client:
        with refused(reason, match=match):
            await client.issue([ONE])
    assert [seen.WhichOneof("request") for seen in middle.seen] == ["hello"]


async def test_an_agents_evidence_is_not_an_authoritys() -> None:
    """The other direction: a Challenge under evidence that an agent made for a request."""
    both = Machine(AUTHORITY)
    world = World(agent=both, authority=both)
    async with world.running() as authority:
        tls = self_signed_tls()
        made = (await request(new_nonce(), [ONE], both)).certificates.evidence

        def swap(response: Response) -> Response:
            response.challenge.evidence.CopyFrom(made)
            response.challenge.tls_spki_sha256 = tls.key_digest
            return response

        middle = Middle(authority.port, tls, down=swap)
        await refused_after_hello(world, middle, "report_data_mismatch")


# --- in the middle of the connection ------------------------------------------------------------


async def test_whoever_ends_tls_in_the_middle_learns_nothing_but_a_nonce() -> None:
    world = World()
    async with world.running() as authority:
        middle = Middle(authority.port, self_signed_tls())
        await refused_after_hello(world, middle, "authority_evidence", match="another TLS key")
    hello = middle.seen[0].hello
    assert len(hello.nonce) == 32
    assert hello.policy_epoch == 0


async def test_whoever_puts_his_own_tls_key_into_the_challenge_breaks_the_evidence() -> None:
    world = World()
    async with world.running() as authority:
        tls = self_signed_tls()

        def claim(response: Response) -> Response:
            response.challenge.tls_spki_sha256 = tls.key_digest
            return response

        middle = Middle(authority.port, tls, down=claim)
        await refused_after_hello(world, middle, "report_data_mismatch")


async def test_valid_tls_without_evidence_is_not_enough() -> None:
    world = World()
    async with world.running(attester=None) as authority, world.client(authority.port) as client:
        with refused("authority_evidence", match="no evidence"):
            await client.issue([ONE])
    assert len(world.journal) == 0


@pytest.mark.parametrize("cover", [False, True])
async def test_replayed_evidence_of_an_authority(cover: bool) -> None:  # noqa: FBT001  a parameter of the test
    """The strongest place for it: TLS that the agent's operator trusts."""
    world = World()
    tls = self_signed_tls(server_names=["ca.test"])
    async with world.running(tls=tls) as authority:
        async with raw_stream(authority.port) as stream:
            recorded = await stream.hello()

        def replay(response: Response) -> Response:
            covered = list(response.challenge.covered_nonces)
            response.challenge.CopyFrom(recorded)
            if cover:
                response.challenge.covered_nonces.extend(covered)
            return response

        middle = Middle(authority.port, tls, down=replay)
        async with middle.listening() as port:
            settings = AuthoritySettings(
                addresses=(f"127.0.0.1:{port}",),
                tls=VerifiedTls(roots=tls.certificate_pem, server_name="ca.test"),
            )
            reason = "report_data_mismatch" if cover else "authority_evidence"
            async with world.client(settings=settings) as client:
                with refused(reason):
                    await client.issue([ONE])
    assert [seen.WhichOneof("request") for seen in middle.seen] == ["hello"]


@pytest.mark.parametrize("part", ["roots", "chain", "policy", "epoch"])
async def test_every_part_of_a_challenge_is_bound(part: str) -> None:
    world = World()
    tls = self_signed_tls(server_names=["ca.test"])
    async with world.running(tls=tls) as authority, World().running() as foreign:

        def change(response: Response) -> Response:
            challenge = response.challenge
            match part:
                case "roots":
                    challenge.roots.append(foreign.signing.roots[0])
                case "chain":
                    del challenge.issuing_chain[:], challenge.roots[:]
                    challenge.issuing_chain.extend(foreign.signing.current().chain)
                    challenge.roots.extend(foreign.signing.roots)
                case "policy":
                    challenge.policy_digest = b"x" * 32
                case "epoch":
                    challenge.policy_epoch += 1
            return response

        middle = Middle(authority.port, tls, down=change)
        async with middle.listening() as port:
            settings = AuthoritySettings(
                addresses=(f"127.0.0.1:{port}",),
                tls=VerifiedTls(roots=tls.certificate_pem, server_name="ca.test"),
            )
            async with world.client(settings=settings) as client:
                with refused("report_data_mismatch"):
                    await client.issue([ONE])
    assert len(world.journal) == 0


async def test_an_answer_from_another_key_or_with_another_root_is_refused() -> None:
    """Where TLS ends in front of the authority, an answer can be changed after the Challenge."""
    world = World()
    tls = self_signed_tls(server_names=["ca.test"])
    async with world.running(tls=tls) as authority, World().running() as foreign:

        def change(response: Response) -> Response:
            if response.WhichOneof("response") == "certificates":
                response.certificates.roots.append(foreign.signing.roots[0])
            return response

        middle = Middle(authority.port, tls, down=change)
        async with middle.listening() as port:
            settings = AuthoritySettings(
                addresses=(f"127.0.0.1:{port}",),
                tls=VerifiedTls(roots=tls.certificate_pem, server_name="ca.test"),
            )
            async with world.client(settings=settings) as client:
                with pytest.raises(errors.AuthorityAnswerError, match="than its evidence covers"):
                    await client.issue([ONE])
                assert client.connected_to is None


async def test_an_authority_of_another_measurement_or_chip() -> None:
    world = World()
    for other in (Machine("ee" * 48, key=world.authority.key), Machine(AUTHORITY)):
        async with (
            world.running(attester=other) as authority,
            world.client(
                authority.port, verifier=verifier_of(Machine(AUTHORITY, key=world.authority.key))
            ) as client,
        ):
            with pytest.raises(errors.EvidenceError):
                await client.issue([ONE])


# --- bad messages -------------------------------------------------------------------------------


async def test_too_many_items() -> None:
    world = World()
    async with world.running() as authority, raw_stream(authority.port) as stream:
        challenge = await stream.hello()
        refused = refusal(
            await stream.ask(await request(challenge.nonce, [ONE] * 1001, world.agent))
        )
        assert (refused.reason, refused.retriable) == ("batch_too_large", False)
        answer = await stream.ask(await request(refused.next_nonce, [ONE] * 1000, world.agent))
        assert len(answer.certificates.results) == 1000


@pytest.mark.parametrize(
    "message",
    [
        b"\xff\xff\xff garbage",
        b"",
        Request(hello=ca_pb2.Hello(nonce=b"short")),
        Request(certificates=ca_pb2.CertificateRequest(nonce=b"short")),
        Request(attested_csr=ca_pb2.AttestedCsr(nonce=b"")),
    ],
)
async def test_whoever_does_not_speak_the_protocol_is_told_and_gone(
    message: Request | bytes,
) -> None:
    world = World()
    async with (
        world.running() as authority,
        raw_channel(authority.port) as streams,
        world.client(authority.port) as client,
    ):
        stream = streams()
        await stream.send(message)
        assert await stream.status() is grpc.StatusCode.INVALID_ARGUMENT
        assert [record.reason for record in world.journal] == ["request_malformed"]
        await client.issue([ONE])


async def test_a_request_before_hello_names_no_nonce_of_its_stream() -> None:
    world = World()
    async with world.running() as authority, raw_stream(authority.port) as stream:
        refused = refusal(await stream.ask(await request(new_nonce(), [ONE], world.agent)))
        assert refused.reason == "nonce_unknown"
        # The nonce that came with the refusal works, but what we say of ourselves was never told.
        message = await request(refused.next_nonce, [ONE], world.agent)
        assert refusal(await stream.ask(message)).reason == "challenge_stale"


async def test_a_message_beyond_the_limit_ends_its_stream_alone() -> None:
    world = World()
    async with (
        world.running() as authority,
        raw_channel(authority.port) as streams,
        world.client(authority.port) as client,
    ):
        stream = streams()
        await stream.send(Request(hello=ca_pb2.Hello(nonce=b"n" * (5 * 2**20))))
        assert await stream.status() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await client.issue([ONE])


# --- the CSR that travels alone -----------------------------------------------------------------


async def attested_csr(
    stream: RawStream, world: World, *, bound_to: bytes | None = None, thief: bool = False
) -> Response:
    nonce = (await stream.hello()).nonce
    key = generate_private_key(KeyType.EC_P256)
    evidence = await world.agent.attest(
        attested_csr_report_data(nonce=bound_to or nonce, key_digest=spki_sha256(key.public_key()))
    )
    signing_key = generate_private_key(KeyType.EC_P256) if thief else key
    csr = make_attested_csr(signing_key, identity(), evidence)
    return await stream.ask(
        Request(attested_csr=ca_pb2.AttestedCsr(nonce=nonce, csr=csr, lifetime_seconds=60))
    )


async def test_an_attested_csr_alone_is_as_good_as_a_batch() -> None:
    world = World()
    async with world.running() as authority, raw_stream(authority.port) as stream:
        answer = await attested_csr(stream, world)
        assert answer.certificates.results[0].WhichOneof("result") == "certificate"
    assert [record.reason for record in world.journal] == ["issued"]


@pytest.mark.parametrize("case", [{"bound_to": new_nonce()}, {"thief": True}])
async def test_an_attested_csr_without_our_nonce_or_with_another_key(
    case: dict[str, object],
) -> None:
    world = World()
    async with world.running() as authority, raw_stream(authority.port) as stream:
        answer = await attested_csr(stream, world, **case)  # type: ignore[arg-type]  # a table of cases
        assert refusal(answer).reason == "report_data_mismatch"


async def test_a_batchs_evidence_does_not_serve_a_csr_alone() -> None:
    world = World()
    async with world.running() as authority, raw_stream(authority.port) as stream:
        nonce = (await stream.hello()).nonce
        evidence = wire.evidence_from_wire(
            (await request(nonce, [ONE], world.agent)).certificates.evidence
        )
        key = generate_private_key(KeyType.EC_P256)
        csr = make_attested_csr(key, identity(), evidence)
        answer = await stream.ask(
            Request(attested_csr=ca_pb2.AttestedCsr(nonce=nonce, csr=csr, lifetime_seconds=60))
        )
        assert refusal(answer).reason == "report_data_mismatch"
