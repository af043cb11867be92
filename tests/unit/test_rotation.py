"""The engine, with a clock that tests move and an authority that really signs."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import logging
import traceback
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from hypothesis import given
from hypothesis import strategies as st

from sds import faults
from sds.agent.node_socket import StoreKeeper
from sds.ca.server import ExchangeLimits
from sds.clock import Instant
from sds.errors import (
    AuthorityRefusedError,
    AuthorityUnavailableError,
    SdsError,
    SecretWipedError,
)
from sds.identity import MAX_DNS_NAMES, Identity, KeyType, SpiffeId, TrustDomain
from sds.secrets.root_rollover import settling_left
from sds.secrets.roots_poll import pause_seconds
from sds.secrets.rotation import Rotation
from sds.secrets.rotation_settings import RotationSettings
from sds.secrets.schedule import Lease
from sds.secrets.store import SecretStore, Svid, Version
from sds.threads import Threads
from sds.workload.recognition import Recogniser
from tests.support.clock import FakeClock
from tests.support.fake_authority import FakeAuthority, FakeAuthorityWithRoots
from tests.support.front_door import rules
from tests.support.raw_exchange import item_message

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from sds.exchange.item import CertificateItem, IssuedChain

TD = TrustDomain("example.org")
LATE = AuthorityUnavailableError("late", reason="authority_no_answer")
DOWN = AuthorityUnavailableError("the authority is down")


def identity(name: str = "web", *, seconds: float = 100.0, **more: Any) -> Identity:
    return Identity(spiffe_id=SpiffeId(TD, f"/{name}"), lifetime=timedelta(seconds=seconds), **more)


WEB = identity()


class Failures:
    def __init__(self) -> None:
        self.seen: list[SdsError] = []

    def renewal_failed(self, error: SdsError) -> None:
        self.seen.append(error)


@dataclass
class World:
    clock: FakeClock
    store: SecretStore
    authority: FakeAuthority
    rotation: Rotation
    failures: Failures

    def serial(self, of: Identity = WEB) -> int | None:
        stored = self.store.svid(of)
        return stored.svid.serial if stored else None

    async def served(self, of: Identity = WEB) -> int:
        await self.clock.until(lambda: self.store.svid(of) is not None)
        serial = self.serial(of)
        assert serial is not None
        return serial

    async def renewed(self, of: Identity = WEB, *, seconds: float = 200.0) -> None:
        before = self.serial(of)
        await self.clock.until(lambda: self.serial(of) not in (before, None), seconds=seconds)


@pytest.fixture(autouse=True)
def _no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work for threads is done in place, so that a fake clock sees a still world."""

    async def inline(_self: Threads, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    monkeypatch.setattr(Threads, "run", inline)


@contextlib.asynccontextmanager
async def world(
    *identities: Identity,
    roots: bool = False,
    draw: float = 0.5,
    settings: RotationSettings | None = None,
) -> AsyncIterator[World]:
    clock = FakeClock()
    store = SecretStore()
    authority = FakeAuthorityWithRoots(clock) if roots else FakeAuthority(clock)
    failures = Failures()
    rotation = Rotation(
        trust_domain=TD,
        store=store,
        authority=authority,
        clock=clock,
        settings=settings or RotationSettings(),
        observer=failures,
        draw=lambda: draw,
    )
    for wanted in identities:
        rotation.ensure(wanted)
    running = asyncio.create_task(rotation.run())
    try:
        await clock.settle()
        yield World(clock, store, authority, rotation, failures)
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


async def test_what_is_stored_is_ours_and_holds() -> None:
    wanted = identity(dns_names=("b.example.org", "a.example.org"))
    async with world(wanted) as w:
        await w.served(wanted)
        stored = w.store.svid(wanted)
        bundle = w.store.bundle(TD)
        assert stored is not None
        assert bundle is not None
        assert bundle.bundle.roots == (w.authority.root.der,)
        key = load_pem_private_key(stored.svid.private_key.reveal(), None)
        leaf = x509.load_der_x509_certificate(stored.svid.chain[0])
        assert leaf.public_key() == key.public_key()
        assert stored.svid.received_at == w.clock.wall
        assert w.rotation.ready


async def test_a_cold_start_is_one_request() -> None:
    many = [identity(f"w{number}") for number in range(50)]
    async with world(*many) as w:
        await w.clock.until(lambda: w.rotation.ready)
        assert [len(items) for _, items in w.authority.requests] == [50]


async def test_renewals_come_in_good_time_with_fresh_keys_for_ever() -> None:
    async with world(WEB) as w:
        await w.served()
        keys = set()
        for _ in range(20):
            start = w.clock.monotonic
            stored = w.store.svid(WEB)
            assert stored is not None
            keys.add(stored.svid.key_id)
            await w.renewed()
            assert 40 <= w.clock.monotonic - start <= 50.01
        assert len(keys) == 20
        assert not w.failures.seen


async def test_backdating_does_not_count() -> None:
    short = identity(seconds=10)
    async with world(short) as w:  # the authority backdates by 120 s
        await w.served(short)
        start = w.clock.monotonic
        await w.renewed(short)
        assert 4 <= w.clock.monotonic - start <= 5.01


async def test_an_authority_that_gives_years_is_asked_as_if_it_gave_what_was_asked_for() -> None:
    """Its answer said how long a key lives: of a certificate for ten years, four years or more."""
    async with world(WEB) as w:
        w.authority.lifetime = timedelta(days=300)
        await w.served()
        await w.renewed()
        for _ in range(3):
            start = w.clock.monotonic
            await w.renewed()
            assert 40 <= w.clock.monotonic - start <= 50.01


async def test_identities_with_many_long_names_do_not_make_a_request_too_large() -> None:
    """An authority refuses the whole of one that is, and with it everybody else's."""
    names = tuple(f"s{number:03}." + ".".join(["x" * 60] * 4) for number in range(MAX_DNS_NAMES))
    many = [identity(f"w{number}", dns_names=names) for number in range(90)]
    async with world(WEB, *many) as w:
        await w.clock.until(lambda: w.rotation.ready)
        sizes = [
            sum(item_message(item).ByteSize() for item in got) for _, got in w.authority.requests
        ]
    assert sum(sizes) > ExchangeLimits().message_bytes
    assert max(sizes) < ExchangeLimits().message_bytes * 3 / 4  # evidence and a policy come along
    assert len(sizes) == 3


async def test_renewals_that_fall_due_together_share_a_request() -> None:
    many = [identity(f"w{number}") for number in range(20)]
    async with world(*many) as w:
        await w.clock.until(lambda: w.rotation.ready)
        await w.renewed(many[0])
        await w.clock.settle()
        assert [len(items) for _, items in w.authority.requests] == [20, 20]


async def test_a_failed_renewal_keeps_the_valid_one_and_retries_without_long_gaps() -> None:
    async with world(WEB) as w:
        serial = await w.served()
        w.authority.failure = DOWN
        await w.clock.advance(95)
        assert w.serial() == serial
        assert w.rotation.ready
        moments = [moment for moment, _ in w.authority.requests[1:]]
        assert len(moments) > 10
        assert max(b - a for a, b in itertools.pairwise(moments)) <= 3.0 + 1.0
        assert w.failures.seen[0] is DOWN
        (status,) = w.rotation.status()
        assert (status.condition, status.reason) == ("valid", "authority_unavailable")
        assert status.attempts == len(w.failures.seen)
        w.authority.failure = None
        await w.renewed(seconds=4)
        assert w.rotation.status()[0].attempts == 0


async def test_an_expired_certificate_is_withdrawn_and_readiness_falls() -> None:
    async with world(WEB) as w:
        await w.served()
        w.authority.failure = DOWN
        await w.clock.until(lambda: w.serial() is None, seconds=101.1)
        assert not w.rotation.ready
        assert w.rotation.status()[0].condition == "waiting"
        w.authority.failure = None
        await w.renewed(seconds=1.1)
        assert w.rotation.ready


async def test_it_expires_in_time_while_the_authority_is_silent() -> None:
    async with world(WEB, settings=RotationSettings(attempt=timedelta(hours=1))) as w:
        await w.served()
        w.authority.silent = asyncio.Event()
        await w.clock.advance(99)
        assert w.serial() is not None
        await w.clock.advance(2.1)
        assert w.serial() is None


async def test_a_silent_authority_does_not_hold_a_renewal_for_ever() -> None:
    async with world(WEB, settings=RotationSettings(attempt=timedelta(milliseconds=20))) as w:
        serial = await w.served()
        w.authority.silent = asyncio.Event()
        await w.clock.advance(51)
        await asyncio.sleep(0.1)  # the attempt's limit is real time
        await w.clock.settle()
        assert w.failures.seen[0].reason == "authority_no_answer"
        w.authority.silent = None
        await w.clock.advance(5)
        assert w.serial() not in (serial, None)


async def test_a_refused_identity_does_not_disturb_others_and_is_told_loudly_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bad = identity("bad")
    async with world(WEB, bad) as w:
        await w.served()
        w.authority.refused[str(bad.spiffe_id)] = "measurement_not_allowed"
        bad_serial = w.serial(bad)
        await w.renewed()
        await w.clock.settle()
        assert w.serial(bad) == bad_serial
        await w.clock.advance(60)
        assert w.serial(bad) is None
        told = [r for r in caplog.records if getattr(r, "reason", "") == "measurement_not_allowed"]
        assert [r.levelno for r in told if r.levelno >= logging.WARNING] == [logging.ERROR]
        statuses = {str(s.identity.spiffe_id): s for s in w.rotation.status()}
        assert statuses[str(bad.spiffe_id)].condition == "refused"
        assert statuses[str(WEB.spiffe_id)].condition == "valid"
        assert len(w.authority.requests) < 20  # slowly


@pytest.mark.parametrize(
    "failure", [KeyError("what a library raises"), asyncio.CancelledError(), MemoryError()]
)
async def test_whatever_the_authority_s_client_raises_answers_everybody_and_ends_nothing(
    failure: BaseException,
) -> None:
    other = identity("other")
    async with world(WEB, other) as w:
        await w.served()
        w.authority.failure = failure  # type: ignore[assignment]  # no error of ours
        await w.clock.advance(60)
        assert {status.reason for status in w.rotation.status()} == {"authority_unavailable"}
        assert w.failures.seen
        serials = {w.serial(), w.serial(other)}
        w.authority.failure = None
        await w.clock.until(lambda: not serials & {w.serial(), w.serial(other)}, seconds=5)


async def test_a_lane_that_ends_starts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(WEB) as w:
        await w.served()
        before = faults.counts()["task"]
        batch = w.rotation._issuance._batch
        ended: list[Any] = []

        async def ends(requests: Any) -> None:
            if not ended:
                ended.append(requests)
                raise ZeroDivisionError
            await batch(requests)

        monkeypatch.setattr(w.rotation._issuance, "_batch", ends)
        late = identity("late")
        w.rotation.ensure(late)
        await w.clock.settle()
        assert ended
        assert faults.counts()["task"] == before + 1
        new = identity("new")
        w.rotation.ensure(new)
        await w.served(new)
        await w.served(late)


async def test_the_first_answer_wakes_all_that_wait_for_the_authority() -> None:
    slow, quick = identity("slow", seconds=86400.0), identity("quick", seconds=86400.0)
    async with world() as w:
        w.authority.failure = DOWN
        w.rotation.ensure(slow)
        await w.clock.advance(120)
        assert w.serial(slow) is None
        w.authority.failure = None
        w.rotation.ensure(quick)
        await w.clock.settle()
        assert w.serial(quick) is not None
        assert w.serial(slow) is not None  # it did not wait for its own next attempt


async def test_a_change_makes_refused_identities_ask_again_at_once() -> None:
    async with world() as w:
        w.authority.refused[str(WEB.spiffe_id)] = "measurement_not_allowed"
        w.rotation.ensure(WEB)
        await w.clock.advance(30)
        w.authority.refused.clear()
        w.rotation.changed()
        await w.clock.settle()
        assert w.serial() is not None


@pytest.mark.parametrize("cure", ["policy", "clock", "caller"])
async def test_a_change_while_the_authority_answers_is_not_lost(cure: str) -> None:
    """Before, who was refused as the policy changed asked again only after up to five minutes."""
    async with world() as w:
        w.authority.refused[str(WEB.spiffe_id)] = "spiffe_id_not_allowed"
        w.authority.silent = asyncio.Event()
        (w.rotation.expect if cure == "caller" else w.rotation.ensure)(WEB)
        await w.clock.advance(1.5)
        assert len(w.authority.requests) == 1
        if cure == "caller":
            w.rotation.ensure(WEB)
        elif cure == "policy":
            w.rotation.changed()
        else:
            w.clock.step(60)
            await w.clock.advance(1)
        refuse = w.authority._outcome

        def refuse_once(item: CertificateItem) -> IssuedChain | AuthorityRefusedError:
            refused = refuse(item)
            w.authority.refused.clear()
            return refused

        w.authority._outcome = refuse_once  # type: ignore[method-assign]
        w.authority.silent.set()
        await w.clock.settle()
        assert len(w.failures.seen) == 1
        assert w.serial() is not None
        assert len(w.authority.requests) == 2


async def test_those_that_failed_together_ask_again_together() -> None:
    many = [identity(f"w{number}") for number in range(30)]
    async with world() as w:
        w.authority.failure = DOWN
        for one in many:
            w.rotation.ensure(one)
        await w.clock.advance(5)
        assert {len(items) for _, items in w.authority.requests} == {30}


async def test_renewals_of_many_ages_ask_an_authority_that_is_gone_together() -> None:
    """Each has another part of its time left; together they are one request, and not one each."""
    asked = []
    for count in (1, 12):
        async with world() as w:
            for number in range(count):
                w.rotation.ensure(identity(f"w{number}", seconds=600.0 + 10 * number))
            await w.clock.until(lambda: w.rotation.ready, seconds=5)
            w.authority.failure = LATE
            await w.clock.advance(330)
            w.authority.requests.clear()
            await w.clock.advance(200)
            asked.append(len(w.authority.requests))
            names = {item.identity for _, items in w.authority.requests for item in items}
            assert len(names) == count
    assert asked[1] <= 3 * asked[0]  # who notices first asks alone; each alone: 12 times as many


async def test_those_that_wait_behind_a_request_without_an_answer_fail_with_it() -> None:
    async with world(WEB) as w:
        await w.served()
        w.authority.requests.clear()
        w.authority.silent, w.authority.failure = asyncio.Event(), LATE
        w.rotation.ensure(identity("first"))
        await w.clock.settle()
        w.rotation.ensure(identity("second"))
        await w.clock.settle()
        w.authority.silent.set()
        await w.clock.settle()
        assert len(w.failures.seen) == 2
        assert len(w.authority.requests) == 1
        w.authority.failure = None
        await w.clock.until(lambda: w.rotation.ready, seconds=1)


def test_questions_for_roots_become_rarer_while_nobody_answers_in_time() -> None:
    assert [pause_seconds(3600, late) for late in (0, 1, 2, 100)] == [30, 60, 90, 300]
    assert pause_seconds(10, 100) == 1.5
    assert pause_seconds(None, 100) == 300


@pytest.mark.slow
async def test_many_that_came_one_after_the_other_ask_a_silent_authority_as_seldom_as_one() -> None:
    async with world() as w:
        w.authority.failure = DOWN
        for number in range(40):
            w.rotation.ensure(identity(f"w{number}", seconds=86400.0))
            await w.clock.advance(0.7)
        await w.clock.advance(60)
        w.authority.requests.clear()
        await w.clock.advance(60)
        assert len(w.authority.requests) <= 60  # each alone: 16 in a minute, so 640
        asked = {item.identity for _, items in w.authority.requests for item in items}
        assert len(asked) == 40
        w.authority.failure = None
        await w.clock.until(lambda: w.rotation.ready, seconds=6)


def frames(error: BaseException | None) -> list[str]:
    """The functions that an error and its causes keep alive."""
    if error is None:
        return []
    own = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    return own + frames(error.__cause__) + frames(error.__context__)


async def test_the_error_of_a_failed_request_keeps_no_key() -> None:
    async with world(WEB) as w:
        await w.served()
        w.authority.failure = DOWN  # raised while the request holds its keys
        await w.clock.until(lambda: bool(w.failures.seen), seconds=100)
        w.authority.failure = None
        w.authority.root = FakeAuthority(w.clock).root  # raised where the certificate meets its key
        await w.clock.until(lambda: len({type(e) for e in w.failures.seen}) == 2, seconds=100)
        assert [frames(error) for error in w.failures.seen if frames(error)] == []


async def test_the_error_of_one_certificate_keeps_no_token_with_which_it_was_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refusal(_item: object) -> AuthorityRefusedError:
        error = AuthorityRefusedError("no", wire_reason="measurement_not_allowed")
        with contextlib.suppress(AuthorityRefusedError):
            raise error
        return error

    async with world(WEB) as w:
        monkeypatch.setattr(w.authority, "_outcome", refusal)
        await w.clock.until(lambda: bool(w.failures.seen), seconds=100)
        assert [frames(error) for error in w.failures.seen if frames(error)] == []


async def test_another_certificate_than_was_asked_for_is_never_served() -> None:
    async with world() as w:
        stranger = FakeAuthority(w.clock)
        w.authority.root = stranger.root  # signs with a key that its bundle does not cover
        w.rotation.ensure(WEB)
        await w.clock.advance(20)
        assert w.serial() is None
        assert {error.reason for error in w.failures.seen} == {"certificate_untrusted"}


async def test_a_released_identity_goes_and_its_key_is_wiped() -> None:
    async with world(WEB) as w:
        await w.served()
        stored = w.store.svid(WEB)
        assert stored is not None
        w.rotation.ensure(WEB)
        w.rotation.release(WEB)
        assert w.serial() is not None  # somebody else wants it still
        w.rotation.release(WEB)
        assert w.serial() is None
        await w.clock.advance(1.1)
        with pytest.raises(SecretWipedError):
            stored.svid.private_key.reveal()
        asked = len(w.authority.requests)
        await w.clock.advance(300)
        assert len(w.authority.requests) == asked


async def test_an_identity_released_while_it_is_asked_for_leaves_nothing() -> None:
    async with world() as w:
        w.authority.silent = asyncio.Event()
        w.rotation.ensure(WEB)
        await w.clock.settle()
        w.rotation.release(WEB)
        w.authority.silent.set()
        await w.clock.advance(5)
        assert w.serial() is None


async def test_a_workload_that_comes_later_does_not_wait_for_renewals() -> None:
    async with world(WEB) as w:
        await w.served()
        await w.clock.advance(30)
        new = identity("new")
        w.rotation.ensure(new)
        await w.clock.settle()
        assert w.serial(new) is not None


async def test_retired_keys_are_wiped_once_nobody_holds_them() -> None:
    async with world(WEB) as w:
        await w.served()
        first = w.store.svid(WEB)
        assert first is not None
        subscription = w.store.open_subscription()
        w.store.sent(subscription, WEB, first.version)
        w.store.acked(subscription, WEB, first.version)
        await w.renewed()
        await w.clock.advance(1.5)
        assert first.svid.private_key.reveal()
        second = w.store.svid(WEB)
        assert second is not None
        w.store.sent(subscription, WEB, second.version)
        w.store.acked(subscription, WEB, second.version)
        await w.clock.advance(1.5)
        with pytest.raises(SecretWipedError):
            first.svid.private_key.reveal()
        assert second.svid.private_key.reveal()


async def test_a_subscriber_that_never_acks_keeps_a_key_alive_for_seconds_only() -> None:
    async with world(WEB) as w:
        await w.served()
        first = w.store.svid(WEB)
        assert first is not None
        w.store.sent(w.store.open_subscription(), WEB, first.version)
        await w.renewed()
        await w.clock.advance(12)
        with pytest.raises(SecretWipedError):
            first.svid.private_key.reveal()


@pytest.mark.parametrize("seconds", [60.0, -3600.0, 1e6])
async def test_a_stepped_wall_clock_leads_to_a_valid_certificate(seconds: float) -> None:
    async with world(WEB) as w:
        await w.served()
        w.clock.step(seconds)
        await w.clock.advance(52)
        stored = w.store.svid(WEB)
        assert stored is not None
        assert stored.svid.received_at >= w.clock.wall - timedelta(seconds=53)
        assert stored.svid.not_after > w.clock.wall


async def test_a_step_of_the_clock_wakes_each_identity_once() -> None:
    async with world(WEB) as w:
        await w.served()
        before = w.clock.sleeps
        w.clock.step(5.0)  # not enough for a renewal
        await w.clock.advance(3)
        # One more sleep of the identity that was woken, and three of the watch of the clock.
        assert w.clock.sleeps - before <= 6


async def test_a_clock_that_is_set_right_ends_the_wait_after_what_it_made_fail() -> None:
    async with world() as w:
        w.authority.clock = FakeClock()
        w.clock.step(365 * 86400)
        wanted = identity(seconds=86400)  # refused, it waits for minutes
        w.rotation.ensure(wanted)
        await w.clock.until(lambda: w.rotation.status()[0].reason == "certificate_expired")
        await w.clock.advance(2)
        w.clock.step(-365 * 86400)
        await w.clock.advance(2)
        assert w.serial(wanted) is not None


async def test_a_clock_that_is_set_forward_leaves_time_for_another_attempt() -> None:
    """A hypervisor that pauses a guest stops its boot time too; only the wall clock is set then."""
    wanted = identity(seconds=86400)
    async with world(wanted) as w:
        serial = await w.served(wanted)
        w.authority.failure = DOWN
        await w.clock.advance(0.5 * 86400)
        w.authority.failure = None
        stored = w.store.svid(wanted)
        assert stored is not None
        w.clock.step((stored.svid.not_after - w.clock.wall).total_seconds() - 20)
        await w.clock.advance(2)
        assert w.serial(wanted) not in (serial, None)


async def test_what_peers_refuse_since_the_clock_was_set_back_does_not_wait_for_a_root() -> None:
    """The authority's clock was ahead too, so it has a new root as well."""
    long = identity(seconds=3600)
    async with world(long) as w:
        w.clock.step(86400)
        await w.clock.advance(2)
        await w.served(long)
        w.clock.step(-86400)
        w.authority.restart("second")
        await w.clock.advance(8)
        stored = w.store.svid(long)
        assert stored is not None
        assert stored.svid.not_before <= w.clock.wall


async def test_roots_are_asked_for_as_often_as_the_granted_lifetime_demands() -> None:
    """A policy may shorten what is asked for; a new root settles for a part of what is granted."""
    long = identity(seconds=86400)
    async with world(roots=True) as w:
        assert isinstance(w.authority, FakeAuthorityWithRoots)
        w.authority.lifetime = timedelta(seconds=100)
        w.rotation.ensure(long)
        await w.served(long)
        await w.clock.advance(31)  # until then it did not know
        before = w.authority.polls
        await w.clock.advance(20)
        assert w.authority.polls - before >= 5


async def test_a_certificate_that_outlives_its_root_is_said_to_end_with_it() -> None:
    long = identity(seconds=400 * 86400)
    async with world(long) as w:
        await w.served(long)
        (status,) = w.rotation.status()
        end = w.authority.root.certificate.not_valid_after_utc
        assert status.not_after == end
        await w.clock.advance(1)
        w.authority.failure = DOWN
        w.clock.step((end - w.clock.wall).total_seconds())
        await w.clock.advance(2)
        assert w.serial(long) is None


async def test_a_certificate_that_ended_while_it_waited_for_its_root_is_not_stored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = RotationSettings(settling=timedelta(seconds=60))
    async with world(WEB, settings=settings) as w:
        first = await w.served()
        w.authority.restart("second")
        await w.clock.until(lambda: len(w.authority.requests) == 2)
        left: list[float] = []
        put = w.store.put_svid

        def watched(svid: Svid) -> Version:
            left.append((svid.not_after - w.clock.wall).total_seconds())
            return put(svid)

        monkeypatch.setattr(w.store, "put_svid", watched)
        w.clock.suspend(3600)
        await w.clock.advance(5)
        assert w.serial() not in (first, None)
        assert min(left) > 0


async def test_a_guest_that_slept_past_the_end_has_a_new_certificate_at_once() -> None:
    async with world(WEB) as w:
        serial = await w.served()
        w.clock.suspend(8 * 3600)
        await w.clock.advance(1.2)
        assert w.serial() not in (serial, None)


async def test_a_guest_that_slept_a_little_renews_when_it_wakes_up() -> None:
    async with world(WEB) as w:
        await w.served()
        w.clock.suspend(49)
        await w.renewed(seconds=4)


async def test_slow_keys_are_made_too() -> None:
    rsa = identity("rsa", key_type=KeyType.RSA_2048)
    async with world(rsa) as w:
        await w.served(rsa)
        stored = w.store.svid(rsa)
        assert stored is not None
        assert b"PRIVATE KEY" in stored.svid.private_key.reveal()


async def test_slow_keys_are_made_ahead_too() -> None:
    rsa = identity("rsa", key_type=KeyType.RSA_2048)
    async with world() as w:
        w.rotation.expect(rsa)
        await w.clock.until(lambda: w.store.svid(rsa) is not None, seconds=1)


async def test_who_comes_while_its_key_is_made_ahead_is_not_asked_for_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rsa, first, other = identity("rsa", key_type=KeyType.RSA_2048), identity("a"), identity("b")
    inline, made = Threads.run, asyncio.Event()

    async def slowly(self: Threads, function: Callable[..., Any], *arguments: Any) -> Any:
        if arguments == (KeyType.RSA_2048,):
            await made.wait()
        return await inline(self, function, *arguments)

    monkeypatch.setattr(Threads, "run", slowly)
    async with world() as w:
        w.authority.silent = asyncio.Event()
        w.rotation.expect(rsa)
        w.rotation.ensure(first)
        await w.clock.until(lambda: len(w.authority.requests) == 1, seconds=1)
        w.rotation.ensure(other)
        w.rotation.ensure(rsa)
        made.set()
        await w.clock.settle()
        w.authority.silent.set()
        await w.clock.until(lambda: len(w.authority.requests) >= 2, seconds=1)
        _, items = w.authority.requests[1]
        assert {item.identity for item in items} == {other, rsa}


# --- roots --------------------------------------------------------------------------------------


def bundle_of(w: World) -> set[bytes]:
    stored = w.store.bundle(TD)
    return set(stored.bundle.roots) if stored else set()


async def test_a_new_root_is_acked_before_the_first_leaf_under_it() -> None:
    settings = RotationSettings(settling=timedelta(0), ack_wait=timedelta(hours=1))
    async with world(WEB, settings=settings) as w:
        serial = await w.served()
        old = w.authority.root.der
        first = w.store.bundle(TD)
        assert first is not None
        subscription = w.store.open_subscription()
        w.store.sent(subscription, TD, first.version)
        w.store.acked(subscription, TD, first.version)
        new = w.authority.restart("second").der
        await w.clock.advance(60)
        assert bundle_of(w) == {old, new}
        assert w.serial() == serial  # held back: nobody ACKed
        second = w.store.bundle(TD)
        assert second is not None
        w.store.sent(subscription, TD, second.version)
        w.store.acked(subscription, TD, second.version)
        await w.clock.settle()
        assert w.serial() != serial


async def test_a_straggler_delays_a_root_for_a_bounded_time_and_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = RotationSettings(settling=timedelta(0), ack_wait=timedelta(milliseconds=20))
    async with world(WEB, settings=settings) as w:
        serial = await w.served()
        first = w.store.bundle(TD)
        assert first is not None
        for _ in range(50):
            w.store.sent(w.store.open_subscription(), TD, first.version)
        w.authority.restart("second")
        await w.clock.advance(60)
        await asyncio.sleep(0.1)  # the wait for ACKs is real time
        await w.clock.settle()
        assert w.serial() != serial
        (said,) = [one for one in caplog.records if "subscriptions have not ACKed" in one.msg]
        assert said.getMessage().startswith("50 ")
        assert len(said.__dict__["stragglers"]) == 10


async def comes_back_with_another_root(w: World) -> None:
    """The authority was away until shortly before the end, and one subscriber never ACKs."""
    bundle = w.store.bundle(TD)
    assert bundle is not None
    w.authority.failure = DOWN
    await w.clock.advance(96)
    w.store.sent(w.store.open_subscription(), TD, bundle.version)
    w.authority.restart("second")
    w.authority.failure = None


async def test_a_root_is_waited_for_once_and_not_again_at_each_renewal() -> None:
    """Otherwise short certificates are replaced at the last moment while one client is silent."""
    async with world(WEB, settings=RotationSettings(settling=timedelta(0))) as w:
        await w.served()
        await comes_back_with_another_root(w)
        await w.renewed(seconds=5)  # before the wait for ACKs was over
        await w.renewed(seconds=51)  # half of its life, in a world where no real time passes


async def test_a_root_is_noticed_early_and_settles_before_it_is_used() -> None:
    async with world(WEB, roots=True) as w:
        await w.served()
        w.authority.restart("second")
        await w.clock.until(lambda: len(bundle_of(w)) == 2, seconds=4)
        assert w.clock.monotonic < 1010  # long before the renewal
        assert isinstance(w.authority, FakeAuthorityWithRoots)
        w.authority.failure = DOWN
        polls = w.authority.polls
        await w.clock.advance(9)
        assert w.authority.polls > polls  # and a failure ends nothing


@pytest.mark.parametrize("idle_news", [True, False])
async def test_who_follows_a_policy_hears_news_while_nobody_wants_anything(idle_news: bool) -> None:  # noqa: FBT001
    """Otherwise a policy that recognises nobody here would stay: nobody asks, and no news comes."""
    async with world(roots=True, settings=RotationSettings(idle_news=idle_news)) as w:
        assert isinstance(w.authority, FakeAuthorityWithRoots)
        await w.clock.advance(31)
        await w.clock.settle()
        assert w.authority.polls == (1 if idle_news else 0)


async def test_settling_holds_a_renewal_but_not_a_workload_that_waits() -> None:
    async with world(WEB) as w:
        serial = await w.served()
        w.authority.restart("second")
        await w.clock.until(lambda: len(bundle_of(w)) == 2, seconds=60)
        new = identity("new")
        w.rotation.ensure(new)
        await w.clock.settle()
        assert w.serial(new) is not None
        assert w.serial() == serial
        await w.clock.advance(19)
        assert w.serial() == serial
        await w.renewed(seconds=1.1)


async def test_nothing_holds_a_renewal_until_its_certificate_ends(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The authority was gone for long, and has another root: neither settling nor ACKs wait."""
    settings = RotationSettings(ack_wait=timedelta(hours=1))
    async with world(WEB, settings=settings) as w:
        await w.served()
        first = w.store.svid(WEB)
        assert first is not None
        await comes_back_with_another_root(w)
        await w.renewed(seconds=5)
        assert w.clock.wall < first.svid.not_after
        assert w.serial() is not None
        assert "the certificate that it replaces ends" in caplog.text


@given(
    span=st.floats(10, 400 * 86_400),
    age=st.floats(0, 1.1),
    waited=st.floats(0, 200),
)
def test_settling_ends_before_the_certificate_does(span: float, age: float, waited: float) -> None:
    clock = FakeClock()
    received = clock.now()
    ends = received.wall + timedelta(seconds=span)
    held = Lease(received=received, valid_until=ends, valid_from=received.wall, jitter=0.5)
    now = Instant(
        wall=received.wall + timedelta(seconds=age * span),
        monotonic=received.monotonic + age * span,
        boottime=received.boottime + age * span,
    )
    since = dataclasses.replace(now, boottime=now.boottime - waited)
    left = settling_left(held, since, now, settling_seconds=90)
    assert left < max(held.left(now), 0.001)
    if waited == 0 and age < 0.5:  # a renewal in good time: every other agent has asked twice
        assert left > 2 * pause_seconds(span) - 0.001
        assert left <= 0.2 * span + 0.001


async def test_an_old_root_leaves_when_its_last_leaf_has_ended() -> None:
    async with world(WEB) as w:
        await w.served()
        old = w.authority.root.der
        new = w.authority.restart("second").der
        await w.renewed()
        await w.clock.advance(20)
        assert bundle_of(w) == {old, new}
        await w.clock.advance(30)
        assert bundle_of(w) == {new}


async def test_a_leaf_for_years_keeps_its_root_no_longer_than_one_as_asked_for() -> None:
    """Or an authority that turned hostile would be trusted for years after nobody asks it."""
    async with world(WEB) as w:
        await w.served()
        w.authority.lifetime = timedelta(days=300)
        await w.renewed()
        new = w.authority.restart("second").der
        w.authority.lifetime = None
        await w.renewed()
        await w.clock.advance(110)
        assert bundle_of(w) == {new}


async def test_a_leaf_that_is_served_for_longer_than_was_asked_for_keeps_its_root() -> None:
    async with world(WEB, roots=True) as w:
        await w.served()
        w.authority.lifetime = timedelta(days=300)
        await w.renewed()
        serial = w.serial()
        old, new = w.authority.root.der, w.authority.new_root("second").der
        w.authority.bundle = [new]
        w.authority.refused = {str(WEB.spiffe_id): "spiffe_id_not_allowed"}
        await w.clock.advance(400)
        assert w.serial() == serial
        assert bundle_of(w) == {old, new}


async def test_the_end_wipes_every_key() -> None:
    async with world(WEB) as w:
        await w.served()
        stored = w.store.svid(WEB)
        assert stored is not None
    with pytest.raises(SecretWipedError):
        stored.svid.private_key.reveal()


async def test_an_identity_at_rest_is_kept_and_not_renewed() -> None:
    """Its callers are gone: its pod may be deleted, and the authority would refuse it."""
    async with world(WEB) as w:
        serial = await w.served()
        w.rotation.rest(WEB, resting=True)
        stored = w.store.svid(WEB)
        assert stored is not None
        remaining = (stored.svid.not_after - w.clock.wall).total_seconds()
        await w.clock.advance(remaining * 0.9)
        assert w.serial() == serial
        wanted = [one.wanted for one in w.rotation.status()]
        w.rotation.rest(WEB, resting=False)
        await w.renewed(seconds=5)
        assert [*wanted, *(one.wanted for one in w.rotation.status())] == [False, True]
        w.rotation.rest(WEB, resting=True)
        await w.clock.advance(2 * WEB.lifetime.total_seconds())
        assert w.store.svid(WEB) is None
        ready = w.rotation.ready  # nobody waits for it
        w.rotation.rest(WEB, resting=False)
        assert (ready, w.rotation.ready) == (True, False)
        await w.served()


async def test_who_holds_an_identity_at_rest_too_has_it_renewed() -> None:
    """A workload has it on a socket of its own, and callers of the node-wide socket had it."""
    async with world(WEB) as w:
        serial = await w.served()
        w.rotation.ensure(WEB)
        w.rotation.rest(WEB, resting=True)
        await w.renewed(seconds=60)
        assert w.serial() != serial
        w.rotation.release(WEB, resting=True)
        await w.renewed(seconds=60)


async def test_a_pod_that_was_expected_while_another_left_has_its_certificate_renewed() -> None:
    """They have one identity: a pod is replaced, and its successor takes long to start."""
    async with world(WEB) as w:
        await w.served()
        w.rotation.expect(WEB)
        w.rotation.rest(WEB, resting=True)
        w.rotation.release(WEB, resting=True)
        w.rotation.ensure(WEB)  # it has started, and connects
        w.rotation.unexpect(WEB)
        await w.renewed(seconds=60)


async def test_callers_that_leave_and_come_back_beside_what_is_expected() -> None:
    async with world() as w:
        callers = Recogniser(attestors=(), rules=rules(), keeper=StoreKeeper(w.rotation, w.store))
        w.rotation.expect(WEB)
        callers.wanted.want(WEB)
        serial = await w.served()
        callers.wanted.unwant(WEB)
        await w.clock.advance(60)
        assert w.serial() == serial, "nobody may have it now"
        callers.close()  # nobody came for long enough
        await w.clock.advance(10)
        assert w.serial() == serial, "it is expected"
        callers.wanted.want(WEB)
        await w.renewed(seconds=1)
        w.rotation.unexpect(WEB)
        await w.renewed(seconds=60)
        callers.wanted.unwant(WEB)
        callers.close()
        assert w.serial() is None


# --- ahead of callers ---------------------------------------------------------------------------


async def test_what_is_expected_is_minted_and_not_renewed_before_somebody_comes() -> None:
    async with world() as now:
        now.rotation.expect(WEB)
        serial = await now.served()
        assert now.rotation.ready
        await now.clock.advance(90)  # long past its renewal
        assert now.serial() == serial
        now.rotation.ensure(WEB)
        await now.renewed()
        now.rotation.unexpect(WEB)
        assert now.serial() is not None
        now.rotation.release(WEB)
        assert now.serial() is None


async def test_what_is_expected_and_ends_before_somebody_comes_is_no_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    async with world() as now:
        now.rotation.expect(WEB)
        await now.served()
        await now.clock.until(lambda: now.serial() is None, seconds=101.1)
        (said,) = (one for one in caplog.records if "withdrawn" in one.message)
        assert said.levelno == logging.INFO
        await now.clock.advance(60)
        assert now.serial() is None, "perhaps nobody ever comes"
        now.rotation.ensure(WEB)
        await now.clock.settle()
        assert now.serial() is not None


async def test_whoever_waits_goes_before_what_is_asked_for_ahead() -> None:
    async with world() as now:
        now.authority.silent = asyncio.Event()
        now.rotation.ensure(WEB)
        await now.clock.settle()
        ahead = [identity(f"ahead{number}") for number in range(100)]
        for one in ahead:
            now.rotation.expect(one)
        await now.clock.settle()
        assert len(now.authority.requests) == 1, "somebody waits"
        now.rotation.ensure(ahead[50])  # and comes while it is still in the queue
        await now.clock.settle()
        now.authority.silent.set()
        await now.served(ahead[99])
        asked = [[item.identity for item in items] for _, items in now.authority.requests]
        assert asked[:2] == [[WEB], [ahead[50]]]
        assert max(len(items) for items in asked) <= 32
        assert sorted(map(str, (one for items in asked for one in items))) == sorted(
            map(str, [WEB, *ahead])
        ), "each is asked for once"


async def test_what_fails_ahead_is_asked_for_at_once_when_somebody_comes() -> None:
    async with world() as now:
        now.authority.failure = DOWN
        now.rotation.expect(WEB)
        await now.clock.until(lambda: bool(now.failures.seen))
        await now.clock.advance(5)
        now.authority.failure = None
        before = now.clock.monotonic
        now.rotation.ensure(WEB)
        await now.clock.settle()
        assert now.serial() is not None
        assert now.clock.monotonic == before
