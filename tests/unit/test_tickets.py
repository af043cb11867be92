import asyncio
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sds.clock import LOOK_SECONDS, Instant
from sds.identity import Identity, SpiffeId, TrustDomain
from sds.secrets.key_memory import SecretBytes
from sds.secrets.store import SecretStore
from sds.serving.session_ticket_keys import KEY_BYTES, KEYS, SessionTickets, TicketKey, rotated
from tests.support.clock import FakeClock
from tests.support.serving import svid

TD = TrustDomain("example.org")
A = Identity(spiffe_id=SpiffeId(TD, "/a"))
B = Identity(spiffe_id=SpiffeId(TD, "/b"))
HOUR = timedelta(hours=1)


@dataclass
class HandClock:
    seconds: float = 0.0
    slept: list[float] = field(default_factory=list)

    def now(self) -> Instant:
        wall = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.seconds)
        return Instant(wall=wall, monotonic=self.seconds, boottime=self.seconds)

    async def sleep(self, seconds: float) -> None:
        self.seconds += seconds
        self.slept.append(seconds)


def make(clock: HandClock) -> SessionTickets:
    return SessionTickets(SecretStore(), identities=[A, B], longest_life=HOUR, clock=clock)


def keys(tickets: SessionTickets, identity: Identity = A) -> tuple[bytes, ...]:
    current = tickets.current(identity)
    assert current is not None
    return current[1]


@given(st.lists(st.floats(min_value=0, max_value=10_000), max_size=20))
def test_no_key_is_ever_used_beyond_the_shortest_lifetime(gaps: list[float]) -> None:
    life, clock = 3600.0, HandClock()
    ring: tuple[TicketKey, ...] = ()
    for gap in gaps:
        clock.seconds += gap
        now = clock.seconds
        ring = rotated(ring, SecretBytes(b"k"), now=clock.now(), longest_life=life)
        assert ring[0].born == clock.now()
        assert 1 <= len(ring) <= KEYS
        births = [key.born.boottime for key in ring]
        assert births == sorted(births, reverse=True)
        # The next rotation comes an interval later: until then no key may pass its life.
        assert all(now + life / KEYS - born <= life for born in births)


def test_keys_have_envoys_size_differ_between_identities_and_rotate_newest_first() -> None:
    clock = HandClock()
    tickets = make(clock)
    (first,) = keys(tickets)
    assert len(first) == KEY_BYTES
    assert keys(tickets, B) != (first,)
    clock.seconds = 900
    tickets.rotate()
    second, older = keys(tickets)
    assert older == first
    assert second != first


def test_a_change_of_trust_leaves_no_key_from_before() -> None:
    clock = HandClock()
    tickets = make(clock)
    tickets.rotate()
    before = set(keys(tickets))
    version = tickets.current(A)
    tickets.replace()
    assert not before & set(keys(tickets))
    assert len(keys(tickets)) == 1
    assert version is not None
    assert tickets.current(A) != version


def test_tickets_are_off_for_everybody_else() -> None:
    other = Identity(spiffe_id=SpiffeId(TD, "/other"))
    assert make(HandClock()).current(other) is None


async def test_no_key_outlives_certificates_while_a_hypervisor_pauses_the_guest() -> None:
    """Boot time stands still then, and afterwards the wall clock alone is set."""
    clock = FakeClock()
    tickets = SessionTickets(SecretStore(), identities=[A], longest_life=HOUR, clock=clock)
    before = set(keys(tickets))
    running = asyncio.create_task(tickets.run(lambda: None))
    await clock.advance(60)
    clock.step(86400)
    await clock.advance(LOOK_SECONDS)
    running.cancel()
    assert not before & set(keys(tickets))


async def test_no_key_outlives_a_certificate_that_lives_less_than_was_asked_for() -> None:
    """A policy may shorten it."""
    clock, store = FakeClock(), SecretStore()
    tickets = SessionTickets(store, identities=[A], longest_life=HOUR, clock=clock)
    before = set(keys(tickets))
    running = asyncio.create_task(tickets.run(lambda: None))
    await clock.settle()
    now = clock.wall
    granted = replace(svid(A), received_at=now, not_after=now + timedelta(minutes=10))
    store.put_svid(granted)
    await clock.advance(601)
    running.cancel()
    assert not before & set(keys(tickets))


async def test_rotation_runs_and_says_so() -> None:
    clock = HandClock()
    tickets = make(clock)
    said: list[float] = []

    def changed() -> None:
        said.append(clock.seconds)
        if len(said) == 3:
            raise RuntimeError

    with pytest.raises(RuntimeError):  # the only way out of a rotation that runs for ever
        await tickets.run(changed)
    assert said == [900, 1800, 2700]
