from __future__ import annotations

import datetime as dt
import re
from typing import TYPE_CHECKING, cast

import pytest
from prometheus_client import CollectorRegistry

from sds.clock import Instant, SystemClock
from sds.identity import Identity, SpiffeId, TrustDomain
from sds.operations.instruments import AgentInstruments
from sds.operations.metrics.families import AgentFamilies
from sds.operations.metrics.store import MAX_IDENTITIES, MeteredStore, StoreCollector
from sds.secrets.identity_status import IdentityStatus
from sds.secrets.key_memory import SecretBytes
from sds.secrets.store import Svid
from tests.support import need

if TYPE_CHECKING:
    from sds.attestation.evidence import Verifier

NOW = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
BUNDLE = TrustDomain("a.test")


class FixedClock:
    def now(self) -> Instant:
        return Instant(wall=NOW, monotonic=0, boottime=0)

    async def sleep(self, seconds: float) -> None:
        raise NotImplementedError


def svid(name: str, *, left: float, dns_names: tuple[str, ...] = (), life: float = 100) -> Svid:
    return Svid(
        identity=Identity(spiffe_id=SpiffeId.parse(f"spiffe://a.test/{name}"), dns_names=dns_names),
        chain=(b"leaf",),
        private_key=SecretBytes(b"key material"),
        key_id=name,
        serial=1,
        not_before=NOW,
        not_after=NOW + dt.timedelta(seconds=left),
        received_at=NOW - dt.timedelta(seconds=life - left),
        root="root",
    )


class Stopwatch:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def stopwatch() -> Stopwatch:
    return Stopwatch()


@pytest.fixture
def store(registry: CollectorRegistry, stopwatch: Stopwatch) -> MeteredStore:
    store = MeteredStore(AgentFamilies(registry), timer=stopwatch)
    StoreCollector(store, FixedClock(), registry)
    return store


def test_a_push_is_timed_from_the_change_and_a_first_answer_is_not(
    store: MeteredStore, registry: CollectorRegistry, stopwatch: Stopwatch
) -> None:
    first = store.put_bundle(BUNDLE, [b"one"])
    stream = store.open_subscription()
    stopwatch.seconds = 3600
    store.sent(stream, BUNDLE, first)
    assert registry.get_sample_value("sds_push_latency_seconds_count") == 0
    stopwatch.seconds = 3601
    store.acked(stream, BUNDLE, first)
    assert registry.get_sample_value("sds_ack_latency_seconds_sum") == 1
    second = store.put_bundle(BUNDLE, [b"two"])
    stopwatch.seconds = 3601.25
    store.sent(stream, BUNDLE, second)
    assert registry.get_sample_value("sds_push_latency_seconds_sum") == 0.25
    store.sent(stream, BUNDLE, second)  # sent again: no second push
    assert registry.get_sample_value("sds_push_latency_seconds_count") == 1
    assert registry.get_sample_value("sds_resources_sent_total") == 3


def test_subscriptions_are_counted(store: MeteredStore, registry: CollectorRegistry) -> None:
    version = store.put_bundle(BUNDLE, [b"one"])
    left, right = store.open_subscription(), store.open_subscription()
    store.sent(left, BUNDLE, version)
    assert registry.get_sample_value("sds_subscriptions") == 2
    store.close_subscription(right)
    assert registry.get_sample_value("sds_subscriptions") == 1


def test_expiry_is_exported_by_identity_and_as_a_minimum(
    store: MeteredStore, registry: CollectorRegistry
) -> None:
    assert registry.get_sample_value("sds_svid_not_after_min_timestamp_seconds") is None
    store.put_svid(svid("b", left=50))
    store.put_svid(svid("a", left=25))
    store.put_svid(svid("a", left=75, dns_names=("other.test",)))
    a = {"spiffe_id": "spiffe://a.test/a"}
    assert registry.get_sample_value("sds_svids") == 3
    assert registry.get_sample_value("sds_renewals_total") == 3
    least = NOW.timestamp() + 25
    assert registry.get_sample_value("sds_svid_not_after_min_timestamp_seconds") == least
    assert registry.get_sample_value("sds_svid_not_after_timestamp_seconds", a) == least
    assert registry.get_sample_value("sds_svid_remaining_ratio", a) == 0.25
    store.withdraw_svid(svid("a", left=1).identity)
    store.withdraw_svid(svid("a", left=1).identity)
    assert registry.get_sample_value("sds_svid_withdrawals_total") == 1
    assert registry.get_sample_value("sds_svid_remaining_ratio", a) == 0.75


def test_what_nobody_wants_is_neither_late_nor_unserved(
    store: MeteredStore, registry: CollectorRegistry
) -> None:
    """It is kept for an Envoy that restarts, or was minted ahead: nothing renews it."""
    collector = StoreCollector(store, FixedClock(), CollectorRegistry())
    used = svid("used", left=60)
    others = (svid("used", left=2, dns_names=("x.test",)), svid("at-rest", left=5))
    for one in (used, *others):
        store.put_svid(one)
    expired = Identity(spiffe_id=SpiffeId.parse("spiffe://a.test/expired"))
    failing = Identity(spiffe_id=SpiffeId.parse("spiffe://a.test/failing"))
    asks_again = Identity(spiffe_id=SpiffeId.parse("spiffe://a.test/asks-again"))
    collector.wanted = lambda: [
        *(
            IdentityStatus(
                identity=one.identity,
                condition="valid",
                not_after=one.not_after,
                rotations=1,
                wanted=one is used,
            )
            for one in (used, *others)
        ),
        IdentityStatus(identity=expired, condition="waiting", rotations=1, wanted=False),
        IdentityStatus(identity=failing, condition="waiting", attempts=3, reason="x", wanted=False),
        # The authority answered somebody, so attempts are counted anew: none has succeeded yet.
        IdentityStatus(identity=asks_again, condition="waiting", attempts=0, reason="x"),
    ]
    found = {one.name: one.samples for one in collector.collect()}
    left = {one.labels["spiffe_id"]: one.value for one in found["sds_svid_remaining_ratio"]}
    assert left == {"spiffe://a.test/used": 0.6}
    counts = {
        name: found[f"sds_identities_{name}"][0].value for name in ("wanted", "served", "failing")
    }
    assert counts == {"wanted": 2, "served": 1, "failing": 1}
    assert found["sds_svids"][0].value == 3


def test_identities_are_bounded_and_those_that_expire_first_are_kept(
    store: MeteredStore, registry: CollectorRegistry
) -> None:
    for number in range(MAX_IDENTITIES + 50):
        store.put_svid(svid(f"w{number}", left=1000 - number))
    (family,) = [f for f in registry.collect() if f.name == "sds_svid_not_after_timestamp_seconds"]
    assert len(family.samples) == MAX_IDENTITIES
    names = {sample.labels["spiffe_id"] for sample in family.samples}
    assert f"spiffe://a.test/w{MAX_IDENTITIES + 49}" in names
    assert "spiffe://a.test/w0" not in names


def test_a_late_svid_of_a_long_life_is_seen_among_many_short_ones(
    store: MeteredStore, registry: CollectorRegistry
) -> None:
    """It expires after all of them, but nobody renews it: alerts rest on the part that is left."""
    for number in range(MAX_IDENTITIES + 50):
        store.put_svid(svid(f"w{number}", left=60))
    store.put_svid(svid("late", left=100, life=1000))
    late = {"spiffe_id": "spiffe://a.test/late"}
    assert registry.get_sample_value("sds_svid_remaining_ratio", late) == 0.1
    assert registry.get_sample_value("sds_svid_not_after_timestamp_seconds", late) is None
    (family,) = [f for f in registry.collect() if f.name == "sds_svid_remaining_ratio"]
    assert len(family.samples) == MAX_IDENTITIES


def test_an_agent_exports_as_many_series_as_the_page_says() -> None:
    instruments = AgentInstruments(clock=SystemClock())
    for number in range(250):
        instruments.store.put_svid(svid(f"w{number}", left=60))
    instruments.verifier(cast("Verifier", None))
    found = sum(len(family.samples) for family in instruments.registry.collect())
    said = re.search(
        r"exports about ([0-9,]+) series", (need.ROOT / "docs" / "operations.md").read_text()
    )
    assert said is not None
    assert int(said[1].replace(",", "")) == pytest.approx(found, rel=0.05)
