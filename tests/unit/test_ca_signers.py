"""The issuing key over time: renewal, the next root in the bundle first, failures."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import weakref
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509

from sds import errors
from sds.authority.port import Issuance
from sds.ca import operator_files
from sds.ca.issuer import Signer, issue, make_signer, self_sign
from sds.ca.operator_files import FromOperator
from sds.ca.signers import FromUpstream, SelfSigned, SigningState, follow_roots, keep_signing
from sds.exchange.item import IssuedChain
from sds.identity import KeyType, SpiffeId
from sds.pki import (
    MAX_ROOTS,
    certificate_der,
    certificate_pem,
    csr_public_key,
    generate_private_key,
)
from sds.policy.nodes import Permit, RequestedCertificate
from tests.support.authority import TRUST_DOMAIN
from tests.support.certificates import Wish, ca_wish, self_signed
from tests.support.clock import FakeClock
from tests.support.refusals import refused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from sds.exchange.item import CertificateItem

LIFE = 7200.0
SETTLING = 300.0


class Source:
    """Self-signed authorities with a life of :data:`LIFE`; may fail a number of times."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.failures = 0
        self.given: list[Signer] = []

    async def next_signer(self) -> tuple[Signer, tuple[bytes, ...]]:
        if self.failures:
            self.failures -= 1
            raise errors.AuthorityUnavailableError("nobody there")
        signer = self_sign(
            key=generate_private_key(KeyType.EC_P256),
            trust_domain=TRUST_DOMAIN,
            lifetime=timedelta(seconds=LIFE),
            path_length=1,
            now=self.clock.now().wall,
            backdate=timedelta(seconds=30),
        )
        self.given.append(signer)
        return signer, (signer.root,)


def operator(folder: Path, clock: FakeClock, key_type: KeyType = KeyType.EC_P256) -> FromOperator:
    return FromOperator(
        trust_domain=TRUST_DOMAIN,
        key_type=key_type,
        csr_file=folder / "csr.pem",
        chain_file=folder / "chain.pem",
        roots_file=folder / "roots.pem",
        clock=clock,
    )


@contextlib.asynccontextmanager
async def signing(source: Any, clock: FakeClock) -> AsyncIterator[SigningState]:
    state = SigningState(clock=clock)
    task = asyncio.create_task(
        keep_signing(state, source, clock=clock, settle=timedelta(seconds=SETTLING))
    )
    try:
        yield state
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def polled(task: asyncio.Task[Any], clock: FakeClock) -> Any:
    """What the task returns, which looks at files in a thread again and again."""
    while not task.done():
        await clock.advance(1)
        await asyncio.sleep(0.005)
    return await task


async def test_a_new_root_stands_in_the_bundle_before_anything_is_signed_under_it() -> None:
    clock = FakeClock()
    source = Source(clock)
    async with signing(source, clock) as state:
        await clock.advance(1)
        first = state.current()
        assert state.roots == (first.root,)
        assert state.remaining() == pytest.approx(1, abs=0.01)
        await clock.advance(LIFE / 2)  # half of its life
        assert state.remaining() == pytest.approx(0.5, abs=0.01)
        assert len(source.given) == 2
        assert state.current() is first
        assert set(state.roots) == {signer.root for signer in source.given}
        await clock.advance(SETTLING)
        assert state.current() is source.given[1]
        assert state.remaining() == pytest.approx(1 - SETTLING / LIFE, abs=0.01)
        # The old root stays for as long as it lives.
        await clock.advance(LIFE / 2 - 2 * SETTLING)
        assert first.root in state.roots
        await clock.advance(2 * SETTLING)
        assert first.root not in state.roots


async def test_a_failed_renewal_leaves_the_signer_of_before_at_work() -> None:
    clock = FakeClock()
    source = Source(clock)
    async with signing(source, clock) as state:
        await clock.advance(1)
        first = state.current()
        source.failures = 3
        await clock.advance(LIFE / 2)
        assert state.current() is first
        await clock.advance(SETTLING + 60)
        assert state.current() is source.given[1]


async def test_a_key_that_got_no_certificate_is_gone_before_the_next_attempt() -> None:
    clock = FakeClock()
    made: list[weakref.ref[Key]] = []

    class Key:
        """Something that must not outlive the attempt."""

    class Refused:
        async def next_signer(self) -> tuple[Signer, tuple[bytes, ...]]:
            key = Key()
            made.append(weakref.ref(key))
            raise errors.AuthorityUnavailableError("the certificate cannot be used")

    gc.disable()
    try:
        async with signing(Refused(), clock):
            await clock.advance(0)
            assert [key() for key in made] == [None]
    finally:
        gc.enable()


async def test_nothing_is_signed_before_the_first_and_after_the_last() -> None:
    clock = FakeClock()
    source = Source(clock)
    source.failures = 10**6
    async with signing(source, clock) as state:
        await clock.advance(60)
        with refused("authority_not_ready"):
            state.current()
        source.failures = 0
        await clock.advance(60)
        assert state.current() is source.given[0]
        source.failures = 10**6
        clock.step(LIFE)
        with refused("authority_not_ready"):
            state.current()
        assert state.roots == ()


async def test_the_key_type_is_the_configured_one() -> None:
    clock = FakeClock()
    source = SelfSigned(
        trust_domain=TRUST_DOMAIN,
        key_type=KeyType.ED25519,
        lifetime=timedelta(hours=1),
        path_length=None,
        backdate=timedelta(0),
        clock=clock,
    )
    signer, roots = await source.next_signer()
    assert roots == (signer.root,)
    assert signer.presented == ()
    assert signer.not_after == clock.wall + timedelta(hours=1)


@pytest.mark.parametrize("with_root", [False, True])
async def test_an_operators_chain(tmp_path: Path, with_root: bool) -> None:  # noqa: FBT001  a parameter of the test
    clock = FakeClock()
    root = self_signed(ca_wish("offline"))
    source = operator(tmp_path, clock, KeyType.EC_P384)
    (tmp_path / "roots.pem").write_bytes(certificate_pem([root.der]))
    task = asyncio.create_task(source.next_signer())
    while not (tmp_path / "csr.pem").exists():
        await asyncio.sleep(0.01)
    request = x509.load_pem_x509_csr((tmp_path / "csr.pem").read_bytes())
    assert request.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    key = request.public_key()
    skid = x509.SubjectKeyIdentifier.from_public_key(key)
    wish = ca_wish("from the operator", path_length=0)
    wish = Wish(
        subject=wish.subject,
        constraints=wish.constraints,
        usage=wish.usage,
        extended=(),
        more=((skid, False),),
    )
    certificate = root.issue(wish, key=_public(key))
    chain = [certificate.der, *([root.der] if with_root else [])]
    (tmp_path / "chain.pem").write_bytes(b"not yet")
    await clock.advance(2)
    assert not task.done()
    (tmp_path / "chain.pem").write_bytes(certificate_pem(chain))
    signer, roots = await polled(task, clock)
    assert signer.chain == (certificate.der,)
    assert (signer.root, roots) == (root.der, (root.der,))
    assert signer.path_length == 0


@pytest.mark.parametrize("case", ["no-skid", "swapped", "repeated", "intermediate-anchor"])
async def test_what_operators_tools_write(tmp_path: Path, case: str) -> None:
    clock = FakeClock()
    offline = self_signed(ca_wish("offline"))
    policy = offline.issue(ca_wish("policy"))
    anchor = policy if case == "intermediate-anchor" else offline
    source = operator(tmp_path, clock)
    (tmp_path / "roots.pem").write_bytes(certificate_pem([anchor.der]))
    task = asyncio.create_task(source.next_signer())
    while not (tmp_path / "csr.pem").exists():
        await asyncio.sleep(0.01)
    request = x509.load_pem_x509_csr((tmp_path / "csr.pem").read_bytes())
    # ca_wish writes no subject key identifier.
    between = policy.issue(ca_wish("between"))
    issuing = between.issue(ca_wish("issuing", path_length=0), key=_public(request.public_key()))
    chain = {
        "no-skid": [issuing, between, policy],
        "swapped": [issuing, policy, between],
        "repeated": [issuing, between, between, policy, offline, policy],
        "intermediate-anchor": [issuing, between],
    }[case]
    (tmp_path / "chain.pem").write_bytes(certificate_pem([one.der for one in chain]))
    await clock.advance(2)
    if case == "intermediate-anchor":
        assert not task.done()
        (tmp_path / "roots.pem").write_bytes(certificate_pem([policy.der, offline.der]))
    signer, _ = await polled(task, clock)
    assert signer.chain[:2] == (issuing.der, between.der)
    skid = x509.SubjectKeyIdentifier.from_public_key(request.public_key())
    assert signer.identifier.key_identifier == skid.digest


async def test_a_root_that_cannot_be_used_names_its_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = FakeClock()
    leaf = self_signed(Wish(subject=ca_wish("x").subject)).der  # no certificate authority
    source = operator(tmp_path, clock)
    for file in ("roots.pem", "chain.pem"):
        (tmp_path / file).write_bytes(certificate_pem([leaf]))
    task = asyncio.create_task(source.next_signer())
    said = f"the root in {tmp_path / 'roots.pem'} is not a certificate authority"
    while said not in caplog.text:
        await asyncio.sleep(0.01)
    task.cancel()


async def test_a_bundle_that_clients_cannot_read_is_not_published() -> None:
    clock = FakeClock()
    source = Source(clock)
    lame = self_signed(Wish(subject=ca_wish("x").subject)).der  # no certificate authority

    class Once:
        asked = 0

        async def next_signer(self) -> tuple[Signer, tuple[bytes, ...]]:
            self.asked += 1
            signer, roots = await source.next_signer()
            return signer, (*roots, lame) if self.asked == 1 else roots

    once = Once()
    async with signing(once, clock) as state:
        await clock.advance(0)
        assert not state.ready.is_set()
        assert state.roots == ()
        await clock.advance(10)
        assert state.ready.is_set()
        assert lame not in state.roots


async def test_a_long_outage_is_over_soon_after_it_ends() -> None:
    clock = FakeClock()
    source = Source(clock)
    source.failures = 1_000_000
    async with signing(source, clock) as state:
        await clock.advance(1800)
        source.failures = 0
        await clock.advance(6)
        assert state.ready.is_set()


def _public(key: Any) -> Any:
    """A key of which only the public half is used: the test signs for somebody else."""

    class Half:
        def public_key(self) -> Any:
            return key

    return Half()


async def test_a_request_that_cannot_be_written(tmp_path: Path) -> None:
    source = FromOperator(
        trust_domain=TRUST_DOMAIN,
        key_type=KeyType.EC_P256,
        csr_file=tmp_path / "missing" / "csr.pem",
        chain_file=tmp_path / "chain.pem",
        roots_file=tmp_path / "roots.pem",
        clock=FakeClock(),
    )
    with refused("authority_not_ready", match="missing"):
        await source.next_signer()


async def test_the_request_is_written_beside_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system that hangs would hold up every agent."""
    wrote: list[threading.Thread] = []

    def write(*_: object, **__: object) -> None:
        wrote.append(threading.current_thread())
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(operator_files, "replace_file", write)
    with refused("authority_not_ready", match="No space left"):
        await operator(tmp_path, FakeClock()).next_signer()
    assert wrote != [threading.current_thread()]
    assert len(wrote) == 1


YEAR = 365 * 86400.0


@pytest.mark.parametrize(
    "moved",
    [
        pytest.param(lambda clock: clock.suspend(2 * 86400), id="suspended for two days"),
        pytest.param(lambda clock: clock.suspend(0.6 * LIFE), id="suspended beyond its renewal"),
        pytest.param(lambda clock: clock.step(YEAR), id="a year forward"),
        pytest.param(lambda clock: clock.step(-86400), id="a day back"),
        pytest.param(lambda clock: clock.step(-YEAR), id="a year back"),
    ],
)
async def test_a_clock_that_moves_by_itself_costs_less_than_a_minute(
    moved: Callable[[FakeClock], None],
) -> None:
    clock = FakeClock()
    source = Source(clock)
    async with signing(source, clock) as state:
        await clock.advance(60)
        moved(clock)
        able = state.able
        await clock.advance(45)
        assert len(source.given) == 2
        # Where the first cannot sign any more, nobody waits for the root to be known.
        assert state.current() is source.given[int(not able)]
        assert state.able
        await clock.advance(SETTLING)
        assert state.current() is source.given[1]
        assert len(source.given) == 2  # and then nothing is hurried


async def test_roots_that_are_over_do_not_come_back_with_a_clock_that_is_set_back() -> None:
    """After some months they were more than an agent takes."""
    clock = FakeClock()
    source = Source(clock)
    async with signing(source, clock) as state:
        await clock.advance(4 * LIFE)
        assert len(source.given) > 6
        clock.step(-YEAR)
        assert len(state.roots) <= 4


async def test_roots_stay_while_the_clock_is_ahead_for_a_moment() -> None:
    clock = FakeClock()
    state = SigningState(clock=clock)
    first, roots = await Source(clock).next_signer()
    state.publish(roots)
    clock.step(YEAR)
    _, roots = await Source(clock).next_signer()
    state.publish(roots)
    assert first.root not in state.roots
    clock.step(-YEAR)
    assert first.root in state.roots


async def test_a_new_root_settles_no_longer_than_the_old_signer_lives() -> None:
    clock = FakeClock()
    source = Source(clock)
    async with signing(source, clock) as state:
        await clock.advance(1)
        clock.suspend(LIFE - SETTLING / 2)
        await clock.advance(SETTLING / 4)
        assert state.current() is source.given[0]
        # Not in its last moment either: what it signs then ends before an agent can renew it.
        await clock.advance(SETTLING / 4 - 2)
        assert state.current() is source.given[1]


class Below:
    """An authority below another one: an intermediate from who signs there."""

    outlived = timedelta(seconds=2400)

    def __init__(self, above: SigningState, clock: FakeClock) -> None:
        self.above = above
        self.clock = clock

    async def next_signer(self) -> tuple[Signer, tuple[bytes, ...]]:
        key = generate_private_key(KeyType.EC_P256)
        signer = self.above.current()
        wanted = RequestedCertificate(
            spiffe_id=SpiffeId(TRUST_DOMAIN),
            dns_names=(),
            lifetime=self.outlived,
            key_type=KeyType.EC_P256,
            signing=True,
        )
        certificate = issue(
            signer,
            wanted=wanted,
            permit=Permit(lifetime=wanted.lifetime, path_length=0),
            public_key=key.public_key(),
            now=self.clock.now().wall,
            backdate=timedelta(seconds=30),
        )
        chain = (certificate_der(certificate),)
        made = make_signer(key=key, chain=chain, root=signer.root, trust_domain=TRUST_DOMAIN)
        return made, self.above.roots

    async def roots(self) -> tuple[bytes, ...]:
        return self.above.roots


async def test_a_new_root_above_is_known_to_all_authorities_before_one_signs_under_it() -> None:
    """Each renews its own certificate at another time; agents of all of them talk to each other."""
    clock = FakeClock()
    settle = timedelta(seconds=100)
    root, one, two = (SigningState(clock=clock) for _ in range(3))
    above = SelfSignedWithin(clock, lifetime=timedelta(seconds=4000))

    def start(state: SigningState, source: Any) -> list[asyncio.Task[None]]:
        keep = keep_signing(state, source, clock=clock, settle=settle)
        found = [asyncio.create_task(keep)]
        if source is not above:
            follow = follow_roots(state, source, clock=clock, settle=settle)
            found.append(asyncio.create_task(follow))
        return found

    tasks = start(root, above)
    await clock.advance(1)
    tasks += start(one, Below(root, clock))
    await clock.advance(1900)
    tasks += start(two, Below(root, clock))
    await clock.advance(50)
    first = root.current().root
    try:
        await clock.until(lambda: one.current().root != first, seconds=1200)
        assert two.current().root == first  # its own renewal comes later
        assert one.current().root in two.roots
        assert two.current().root in one.roots
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class SelfSignedWithin(Source):
    """Self-signed authorities with another life."""

    def __init__(self, clock: FakeClock, *, lifetime: timedelta) -> None:
        super().__init__(clock)
        self.lifetime = lifetime

    async def next_signer(self) -> tuple[Signer, tuple[bytes, ...]]:
        signer = self_sign(
            key=generate_private_key(KeyType.EC_P256),
            trust_domain=TRUST_DOMAIN,
            lifetime=self.lifetime,
            path_length=1,
            now=self.clock.now().wall,
            backdate=timedelta(seconds=30),
        )
        return signer, (signer.root,)


class Told:
    """Roots that somebody edits."""

    outlived = timedelta(0)

    def __init__(self, *roots: bytes) -> None:
        self.now: tuple[bytes, ...] | errors.SdsError = roots

    async def roots(self) -> tuple[bytes, ...]:
        if isinstance(self.now, errors.SdsError):
            raise self.now
        return self.now


async def test_roots_are_followed_between_two_certificates(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = FakeClock()
    source = Source(clock)
    more, bad = (
        self_signed(ca_wish("more")).der,
        self_signed(Wish(subject=ca_wish("x").subject)).der,
    )
    async with signing(source, clock) as state:
        await clock.advance(1)
        ours = state.current().root
        told = Told(ours, more)
        settle = timedelta(seconds=SETTLING)
        following = asyncio.create_task(follow_roots(state, told, clock=clock, settle=settle))
        await clock.advance(20)
        assert state.roots == tuple(sorted((ours, more)))
        # What cannot be read, or has a root that nobody can use, changes nothing.
        for trouble in (errors.RefusedError("gone"), None):
            told.now = (ours, bad) if trouble is None else trouble
            await clock.advance(2 * SETTLING)
            assert state.roots == tuple(sorted((ours, more)))
        assert caplog.text.count("cannot be read again") == 2
        # A root that was taken back leaves once nothing under it lives; ours never does.
        told.now = (more,)
        await clock.advance(SETTLING / 2)
        told.now = ()
        await clock.advance(SETTLING / 2 + 20)
        assert state.roots == tuple(sorted((ours, more)))
        await clock.advance(SETTLING)
        assert state.roots == (ours,)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def test_roots_of_an_operator_that_are_missing_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = FakeClock()
    source = operator(tmp_path, clock)
    (tmp_path / "chain.pem").write_bytes(certificate_pem([self_signed(ca_wish("x")).der]))
    task = asyncio.create_task(source.next_signer())
    while "roots.pem" not in caplog.text:
        await asyncio.sleep(0.01)
    task.cancel()
    with refused("authority_not_ready", match=r"roots\.pem"):
        await source.roots()
    root = self_signed(ca_wish("offline")).der
    (tmp_path / "roots.pem").write_bytes(certificate_pem([root]))
    assert await source.roots() == (root,)


class Generous:
    """An authority above that certifies for longer than it is asked."""

    def __init__(self, clock: FakeClock) -> None:
        self.root = self_sign(
            key=generate_private_key(KeyType.EC_P256),
            trust_domain=TRUST_DOMAIN,
            lifetime=timedelta(days=3650),
            path_length=1,
            now=clock.now().wall,
            backdate=timedelta(seconds=30),
        )
        self.clock = clock

    async def issue(self, items: Sequence[CertificateItem]) -> Issuance:
        (item,) = items
        certificate = issue(
            self.root,
            wanted=RequestedCertificate(
                spiffe_id=item.identity.spiffe_id, lifetime=item.identity.lifetime, signing=True
            ),
            permit=Permit(lifetime=timedelta(days=3000), path_length=0),
            public_key=csr_public_key(item.csr),
            now=self.clock.now().wall,
            backdate=timedelta(seconds=30),
        )
        chain = IssuedChain(chain=(certificate_der(certificate),))
        return Issuance(outcomes=(chain,), roots=(self.root.root,))

    async def roots(self) -> tuple[bytes, ...]:
        return (self.root.root,)


async def test_an_authority_s_certificate_counts_for_no_longer_than_it_was_asked_for() -> None:
    """Or one above that turned hostile would decide for years what is signed here."""
    clock = FakeClock()
    source = FromUpstream(
        trust_domain=TRUST_DOMAIN,
        key_type=KeyType.EC_P256,
        lifetime=timedelta(seconds=LIFE),
        upstream=Generous(clock),
        clock=clock,
    )
    signer, _ = await source.next_signer()
    assert signer.certificate.not_valid_after_utc > clock.now().wall + timedelta(days=2999)
    assert signer.not_after <= clock.now().wall + timedelta(seconds=LIFE)


def many_roots(count: int) -> tuple[bytes, ...]:
    return tuple(self_signed(ca_wish(f"root {number}")).der for number in range(count))


def test_an_authority_above_that_names_new_roots_all_the_time_reaches_a_bound() -> None:
    """Or it fills our memory, and agents refuse the bundle as a whole."""
    state = SigningState(clock=FakeClock())
    known, new = many_roots(MAX_ROOTS), many_roots(1)
    state.publish(known)
    with refused("authority_roots", match="do not fit beside the 64"):
        state.follow((*known[:1], *new), retention=timedelta(days=1))
    assert set(state.roots) == set(known)
    state.follow(known[:1], retention=timedelta(days=1))
    assert set(state.roots) == set(known)


async def test_roots_that_leave_make_room_for_those_that_come_at_once() -> None:
    clock = FakeClock()
    state = SigningState(clock=clock)
    first, second = many_roots(40), many_roots(40)
    state.publish(first)
    await clock.advance(1)
    state.follow(second, retention=timedelta(0))
    assert set(state.roots) == set(second)
