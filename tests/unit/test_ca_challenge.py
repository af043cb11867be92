from __future__ import annotations

import asyncio
import contextlib
import hashlib
from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from sds import errors
from sds._proto.sds.ca.v1 import ca_pb2
from sds.attestation.evidence import Evidence, EvidenceKind, item_digest
from sds.authority.session import verify_challenge
from sds.ca.own_evidence import Proof, Prover
from sds.exchange.challenge import (
    AuthorityStatement,
    NonceTable,
    attested_csr_report_data,
    authority_report_data,
    bundle_digest,
    digest_of,
    lifetime_seconds,
    request_report_data,
)
from sds.exchange.item import CertificateItem
from sds.identity import Identity, SpiffeId
from sds.pki import MAX_ROOTS
from tests.support.certificates import NOW, ca_wish, self_signed
from tests.support.refusals import refused


def eight(number: int) -> bytes:
    return number.to_bytes(8, "big")


def prefixed(*parts: bytes) -> bytes:
    return b"".join(eight(len(part)) + part for part in parts)


STATEMENT = AuthorityStatement(
    issuing_chain=(b"chain",),
    issuing_key=b"i" * 32,
    roots=(b"root b", b"root a"),
    tls_key=b"t" * 32,
    policy_digest=b"p" * 32,
    policy_epoch=7,
)


def test_report_data_of_each_role_is_what_the_documentation_says() -> None:
    # Written out here once more, by hand: these bytes are the protocol and never change.
    bundle = hashlib.sha256(prefixed(b"root a", b"root b")).digest()
    assert bundle_digest(STATEMENT.roots) == bundle
    assert (
        authority_report_data(STATEMENT, [b"n1", b"n2"])
        == hashlib.sha512(
            prefixed(
                b"attested-sds/ca/v1",
                b"t" * 32,
                b"i" * 32,
                bundle,
                b"p" * 32,
                eight(7),
                b"n1",
                b"n2",
            )
        ).digest()
    )
    item = hashlib.sha256(
        prefixed(b"csr", b"spiffe://a/b", eight(60), eight(2), b"x.test", b"y.test")
    ).digest()
    assert (
        item_digest(
            csr=b"csr", spiffe_id="spiffe://a/b", dns_names=("x.test", "y.test"), lifetime=60
        )
        == item
    )
    assert (
        request_report_data(nonce=b"n", policy_digest=b"p", digests=[item])
        == hashlib.sha512(prefixed(b"attested-sds/csr/v1", b"n", b"p", item)).digest()
    )
    assert (
        attested_csr_report_data(nonce=b"n", key_digest=b"k")
        == hashlib.sha512(prefixed(b"attested-sds/pkcs10/v1", b"n", b"k")).digest()
    )


def test_the_digest_of_an_item_is_that_of_its_message() -> None:
    identity = Identity(
        spiffe_id=SpiffeId.parse("spiffe://a/b"),
        dns_names=("y.test", "x.test"),
        lifetime=timedelta(seconds=60.9),
    )
    item = CertificateItem(identity=identity, csr=b"csr", signing=True)
    assert lifetime_seconds(item) == 60
    assert digest_of(item) == item_digest(
        csr=b"csr",
        spiffe_id="spiffe://a/b",
        dns_names=("x.test", "y.test"),
        lifetime=60,
        signing=True,
    )


names = st.lists(st.text(max_size=4), max_size=3).map(tuple)
parts = st.tuples(
    st.binary(max_size=4), st.text(max_size=4), names, st.integers(0, 9), st.booleans()
)


@given(parts, parts)
def test_two_items_have_one_digest_only_if_they_are_equal(one: tuple, other: tuple) -> None:  # type: ignore[type-arg]
    def digest(item: tuple) -> bytes:  # type: ignore[type-arg]
        csr, spiffe_id, dns_names, lifetime, signing = item
        return item_digest(
            csr=csr, spiffe_id=spiffe_id, dns_names=dns_names, lifetime=lifetime, signing=signing
        )

    assert (digest(one) == digest(other)) == (one == other)


def test_a_nonce_is_redeemed_once_by_its_stream_in_its_time() -> None:
    table = NonceTable(lifetime=10, limit=100)
    mine, other = table.open(), table.open()
    nonce = table.issue(mine, now=0)
    assert len(nonce) == 32
    with refused("nonce_unknown"):
        table.redeem(other, nonce, now=1)
    table.redeem(mine, nonce, now=1)
    with refused("nonce_used"):
        table.redeem(mine, nonce, now=1)
    late = table.issue(mine, now=1)
    with refused("nonce_expired"):
        table.redeem(mine, late, now=11)
    assert len(table) == 0


def test_nonces_go_with_their_stream() -> None:
    table = NonceTable(lifetime=10, limit=100)
    stream = table.open()
    nonce = table.issue(stream, now=0)
    table.close(stream)
    assert len(table) == 0
    with refused("nonce_unknown"):
        table.redeem(stream, nonce, now=0)


def test_the_table_is_bounded_and_the_oldest_make_room() -> None:
    table = NonceTable(lifetime=10, limit=3)
    streams = [table.open() for _ in range(5)]
    given = [table.issue(stream, now=0) for stream in streams]
    assert len(table) == 3
    with refused("nonce_expired"):
        table.redeem(streams[0], given[0], now=0)
    table.redeem(streams[4], given[4], now=0)
    hoarder = table.open()
    roomy = NonceTable(lifetime=10, limit=1000)
    for _ in range(200):
        roomy.issue(hoarder, now=0)
    assert len(roomy) == 16


actions = st.lists(
    st.tuples(st.sampled_from(["issue", "redeem", "close", "wait"]), st.integers(0, 3)),
    max_size=60,
)


@given(actions)
def test_the_table_never_lets_a_nonce_through_twice(steps: list[tuple[str, int]]) -> None:
    table = NonceTable(lifetime=5, limit=6)
    streams = [table.open() for _ in range(4)]
    given: list[tuple[int, bytes]] = []
    redeemed: set[bytes] = set()
    now = 0.0
    for action, which in steps:
        if action == "issue":
            given.append((which, table.issue(streams[which], now=now)))
        elif action == "close":
            table.close(streams[which])
        elif action == "wait":
            now += which
        for owner, nonce in given[-which:] if action == "redeem" else ():
            with contextlib.suppress(errors.RefusedError):
                table.redeem(streams[owner], nonce, now=now)
                fresh = nonce not in redeemed
                redeemed.add(nonce)
                assert fresh
        assert len(table) <= 6
        assert len(table) == sum(len(stream.living) for stream in streams)


async def test_callers_that_leave_while_no_evidence_comes_take_no_memory() -> None:
    begun, answer = asyncio.Event(), asyncio.Event()

    class Device:
        async def attest(self, _data: object) -> Evidence:
            begun.set()
            await answer.wait()
            return Evidence(kind=EvidenceKind.SEV_SNP, report=b"r")

    prover = Prover(Device(), lambda: STATEMENT)
    running = asyncio.create_task(prover.run())
    first = asyncio.create_task(prover.prove(b"first"))
    await begun.wait()
    for _ in range(3):
        callers = [asyncio.create_task(prover.prove(b"same")) for _ in range(10)]
        await asyncio.sleep(0)
        for caller in callers:
            caller.cancel()
        await asyncio.gather(*callers, return_exceptions=True)
    assert not prover._waiting
    stays = asyncio.create_task(prover.prove(b"stays"))
    await asyncio.sleep(0)
    answer.set()
    assert (await first).covered == (b"first",)
    assert (await stays).covered == (b"stays",)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def hellos(prover: Prover, count: int) -> list[asyncio.Task[Proof]]:
    """One in each turn of the loop, as the authority's port gives turns to strangers."""
    callers = []
    for number in range(count):
        callers.append(asyncio.create_task(prover.prove(eight(number))))
        await asyncio.sleep(0)
    return callers


async def test_hellos_of_several_turns_share_a_report_and_none_waits_for_many_turns() -> None:
    covered: list[int] = []

    class Instant:
        async def attest(self, _data: object) -> Evidence:
            return Evidence(kind=EvidenceKind.SEV_SNP, report=b"r")

    prover = Prover(Instant(), lambda: STATEMENT)
    running = asyncio.create_task(prover.run())
    proofs = await asyncio.gather(*await hellos(prover, 200))
    covered = [len(proof.covered) for proof in proofs]
    assert max(covered) <= 12  # the crowd never ends, and each is answered within some turns
    assert prover.reports <= 50
    # All of them leave while the report is put off: none is made.
    before = prover.reports
    leaving = [asyncio.create_task(prover.prove(b"leaves")) for _ in range(3)]
    await asyncio.sleep(0)
    for caller in leaving:
        caller.cancel()
    await asyncio.gather(*leaving, return_exceptions=True)
    assert prover.reports == before
    assert (await prover.prove(b"stays")).covered == (b"stays",)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def test_a_challenge_with_very_many_roots_is_refused_before_any_is_read() -> None:
    """A thousand of one name took two seconds of the event loop, a signature each."""
    issuing = self_signed(ca_wish("issuing")).der
    challenge = ca_pb2.Challenge(
        nonce=b"n" * 32,
        tls_spki_sha256=b"n" * 32,
        policy_digest=b"p" * 32,
        issuing_chain=[issuing],
        roots=[issuing, *(b"not read" for _ in range(MAX_ROOTS))],
    )
    with refused("authority_roots"):
        verify_challenge(challenge, nonce=b"m" * 32, tls_key=b"n" * 32, verifier=None, now=NOW)
