import asyncio
import random
from datetime import UTC, datetime

import pytest
from prometheus_client import CollectorRegistry

from sds.identity import Identity, SpiffeId, TrustDomain
from sds.operations.metrics.families import AgentFamilies
from sds.operations.metrics.store import MeteredStore
from sds.secrets.key_memory import SecretBytes
from sds.secrets.store import Change, ResourceKey, SecretStore, SubscriptionId, Svid, Version
from sds.secrets.subscription_books import MOST_VERSIONS, SubscriptionBooks

TD = TrustDomain("example.org")
IDENTITY = Identity(spiffe_id=SpiffeId(TD, "/a"))


def svid(key_id: str, identity: Identity = IDENTITY) -> Svid:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    return Svid(
        identity=identity,
        chain=(b"leaf",),
        private_key=SecretBytes(b"key"),
        key_id=key_id,
        serial=1,
        not_before=now,
        not_after=now,
        received_at=now,
        root="r",
    )


def test_versions_never_repeat_between_runs() -> None:
    first, second = SecretStore(), SecretStore()
    assert first.put_svid(svid("k")) != second.put_svid(svid("k"))


def test_an_equal_bundle_changes_nothing_and_tells_nobody() -> None:
    store = SecretStore()
    changes: list[Change] = []
    version = store.put_bundle(TD, [b"b", b"a"])
    stop = store.listen(changes.append)
    assert store.put_bundle(TD, [b"a", b"b", b"a"]) == version
    assert changes == []
    store.put_bundle(TD, [b"a"])
    assert changes == [Change(keys=frozenset({TD}))]
    stop()
    store.withdraw_bundle(TD)
    assert len(changes) == 1


def with_two_keys() -> tuple[SecretStore, SubscriptionId, Version]:
    """A subscription that ACKed one key and was sent another; the version of that one."""
    store = SecretStore()
    subscription = store.open_subscription()
    first = store.put_svid(svid("k1"))
    store.sent(subscription, IDENTITY, first)
    store.acked(subscription, IDENTITY, first)
    second = store.put_svid(svid("k2"))
    store.sent(subscription, IDENTITY, second)
    return store, subscription, second


def test_a_key_is_held_until_the_next_one_is_acked() -> None:
    store, subscription, second = with_two_keys()
    assert "k1" in store.held_keys()
    assert "k2" in store.held_keys()
    store.acked(subscription, IDENTITY, second)
    assert "k1" not in store.held_keys()
    store.close_subscription(subscription)
    assert "k2" not in store.held_keys()


def test_a_nack_keeps_the_old_key_held() -> None:
    store, subscription, second = with_two_keys()
    store.nacked(subscription, IDENTITY, second)
    assert "k1" in store.held_keys()
    assert "k2" not in store.held_keys()
    store.close_subscription(subscription)
    assert "k1" not in store.held_keys()


async def test_waits_for_every_subscriber_of_a_bundle() -> None:
    store = SecretStore()
    first, second = store.open_subscription(), store.open_subscription()
    version = store.put_bundle(TD, [b"a"])
    for subscription in (first, second):
        store.sent(subscription, TD, version)
    store.acked(first, TD, version)
    assert store.stragglers(TD, version) == {second}
    waiter = asyncio.create_task(store.until_acked(TD, version, timeout_seconds=30))
    await asyncio.sleep(0)
    store.acked(second, TD, version)
    assert await waiter == frozenset()


async def test_the_wait_is_bounded_and_names_the_stragglers() -> None:
    store = SecretStore()
    subscription = store.open_subscription()
    version = store.put_bundle(TD, [b"a"])
    store.sent(subscription, TD, version)
    assert await store.until_acked(TD, version, timeout_seconds=0.01) == {subscription}


def test_an_ended_stream_holds_no_key() -> None:
    store = SecretStore()
    subscription = store.open_subscription()
    store.sent(subscription, IDENTITY, store.put_svid(svid("k1")))
    assert store.held_keys() == {"k1"}
    store.close_subscription(subscription)
    assert store.held_keys() == frozenset()


async def test_who_waits_for_answers_does_not_look_at_everybody_after_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Clients choose how many names they subscribe to, and when they answer."""
    store = SecretStore()
    version = store.put_bundle(TD, [b"a"])
    subscriptions = [store.open_subscription() for _ in range(10)]
    for subscription in subscriptions:
        store.sent(subscription, TD, version)
    looked: list[object] = []
    monkeypatch.setattr(SubscriptionBooks, "stragglers", lambda *_: looked.append(0))
    waiter = asyncio.create_task(store.until_acked(TD, version, timeout_seconds=30))
    for subscription in subscriptions:
        await asyncio.sleep(0)
        assert not waiter.done()
        store.acked(subscription, TD, version)
    assert await waiter == frozenset()
    assert not looked


def test_a_client_that_never_answers_is_remembered_within_a_bound() -> None:
    store = SecretStore()
    subscription = store.open_subscription()
    first = store.put_svid(svid("first"))
    store.sent(subscription, IDENTITY, first)
    store.acked(subscription, IDENTITY, first)
    for number in range(1_000):
        store.sent(subscription, IDENTITY, store.put_svid(svid(f"k{number}")))
    assert len(store.held_keys()) == MOST_VERSIONS
    assert {"first", "k999"} < store.held_keys()
    (delivery,) = store._books._deliveries[subscription].values()
    assert len(delivery.keys) == MOST_VERSIONS


def test_what_a_name_stood_for_before_is_forgotten() -> None:
    """Each Service that begins to select a pod makes a new identity; its streams stay."""
    store = MeteredStore(AgentFamilies(CollectorRegistry()))
    subscription = store.open_subscription()
    bundle = store.put_bundle(TD, [b"a"])
    store.sent(subscription, TD, bundle)
    for number in range(100):
        identity = Identity(spiffe_id=SpiffeId(TD, "/a"), dns_names=(f"s{number}.svc",))
        version = store.put_svid(svid(f"k{number}", identity))
        store.sent(subscription, identity, version)
        store.acked(subscription, identity, version)
        store.keep_only(subscription, [(identity, version)])
        assert store.held_keys() == {f"k{number}"}
    assert not store.stragglers(TD, bundle)
    assert len(store._books._deliveries[subscription]) == 1
    assert len(store._written[subscription]) == 1
    assert not store._books._acks


@pytest.mark.parametrize("seed", range(20))
def test_sums_are_those_of_the_books(seed: int) -> None:
    draw = random.Random(seed)
    store = SecretStore()
    books = store._books
    live = [store.open_subscription() for _ in range(4)]
    svids, bundles = [store.put_svid(svid("k"))], [store.put_bundle(TD, [b"0"])]
    both: list[tuple[ResourceKey, list[Version]]] = [(IDENTITY, svids), (TD, bundles)]
    for step in range(300):
        subscription = draw.choice(live)
        key, versions = draw.choice(both)
        match draw.choice(["put", "sent", "sent", "acked", "nacked", "closed"]):
            case "put" if key is IDENTITY:
                svids.append(store.put_svid(svid(f"k{step}")))
            case "put":
                bundles.append(store.put_bundle(TD, [str(step).encode()]))
            case "sent":
                store.sent(subscription, key, draw.choice(versions[-3:]))
            case "acked":
                store.acked(subscription, key, draw.choice(versions[-3:]))
                last = versions[-1]
                parts: list[tuple[ResourceKey, Version]]
                parts = draw.choice([[(key, last)], [(IDENTITY, last), (TD, last)]])
                store.keep_only(subscription, parts)
            case "nacked":
                store.nacked(subscription, key, draw.choice(versions[-3:]))
            case "closed" if draw.random() < 0.2:
                store.close_subscription(subscription)
                live[live.index(subscription)] = store.open_subscription()
        kept = [one for each in books._deliveries.values() for one in each.values()]
        assert books.held_keys() == {key for one in kept for key in one.keys.values() if key}
        for version in bundles:
            assert books.lags(TD, version) == bool(books.stragglers(TD, version))
    for subscription in live:
        store.close_subscription(subscription)
    assert not store._books._acks
    assert not store._books._held
