"""What the agent remembers of a policy: bounded in bytes, whoever comes and goes."""

from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest

from sds.agent import policy_authorizations, policy_peers
from sds.agent.policy_authorizations import PolicyAuthorizations
from sds.agent.policy_peers import PolicyPeers
from sds.identity import Identity, SpiffeId, TrustDomain
from sds.policy.authorized import Authorization, AuthorizationRule
from sds.rules.glob import Glob
from sds.rules.pattern import parse_spiffe_pattern
from sds.secrets.store import SecretStore
from sds.serving import extension_catalog, secret_catalog
from sds.serving.extension_catalog import ExtensionCatalog
from sds.serving.peer_policy import PeerContext, SanMatcher
from sds.serving.secret_catalog import Aliases, Catalog
from sds.workload.entitlement import Caller
from tests.support.clock import FakeClock
from tests.support.policy_mesh import Author, S
from tests.support.serving import TD, root

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

SOURCES = [f"{S}/ns/team-{number}/sa/service-{number}" for number in range(400)]
MIB = 1 << 20


def own(number: int) -> Caller:
    """A pod of a job, with an identity of its own."""
    identity = Identity(spiffe_id=SpiffeId.parse(f"{S}/job/{number}"))
    return Caller(name="job", selectors=frozenset(), identities=(identity,))


def grown(work: Callable[[int], object], times: int) -> int:
    """How many bytes of memory are there after the work that were not before."""
    work(-1)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(times):
            work(number)
        return tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()


@pytest.fixture(autouse=True)
def small_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough for a dozen callers, so that a few dozen show a growth."""
    monkeypatch.setattr(policy_peers, "_MOST_BYTES", MIB)
    monkeypatch.setattr(policy_authorizations, "_MOST_BYTES", MIB // 4)
    monkeypatch.setattr(extension_catalog, "_FILTER_BYTES", MIB)
    monkeypatch.setattr(secret_catalog, "_CONTEXT_BYTES", MIB)


@pytest.fixture(scope="module")
def everybody() -> Any:
    """A policy that lets many sources send requests to everybody."""
    author = Author()
    holder = author.holder()
    author.publish(holder, allow=[{"from": SOURCES, "to": f"{S}/**"}])
    return holder


def test_contexts_of_pods_that_are_gone_take_a_bounded_amount_of_memory(everybody: Any) -> None:
    known = PolicyPeers(everybody)
    grew = grown(lambda number: known.inbound(own(number)), 60)
    assert grew < 1.5 * MIB, f"{grew / MIB:.1f} MiB"
    assert known.inbound(own(59)) is known.inbound(own(59))


def test_what_pods_that_are_gone_accepted_takes_a_bounded_amount_of_memory(everybody: Any) -> None:
    now = everybody.current.not_before
    known = PolicyAuthorizations(everybody)
    grew = grown(lambda n: known.authorization(own(n).identities[0].spiffe_id, now=now), 160)
    assert grew < 0.4 * MIB, f"{grew / MIB:.1f} MiB"


class Same:
    """The same answer for each identity."""

    def __init__(self, rules: tuple[AuthorizationRule, ...]) -> None:
        self.rules = rules

    def authorization(self, identity: SpiffeId, *, now: datetime) -> Authorization:
        del now
        return Authorization(identity=identity, enforced=self.rules, epoch=7)


def test_filters_of_pods_that_are_gone_take_a_bounded_amount_of_memory() -> None:
    principals = tuple(map(parse_spiffe_pattern, SOURCES))
    domain = TrustDomain("example.org")
    rules = (AuthorizationRule(name="all", trust_domain=domain, principals=principals),)
    known = ExtensionCatalog(SecretStore(), policy=Same(rules), clock=FakeClock())
    first = known.find(own(0), "authorization")
    grew = grown(lambda number: known.find(own(number), "authorization"), 100)
    assert grew < 1.5 * MIB, f"{grew / MIB:.1f} MiB"
    assert first is not None
    again = known.find(own(0), "authorization")
    assert again is not None
    assert again.receipt == first.receipt, "it was made again, and is no other version"


class Many:
    """Peers with other matchers for each caller."""

    def inbound(self, caller: Caller) -> PeerContext:
        who = str(caller.identities[0].spiffe_id)
        matchers = tuple(SanMatcher("exact", f"{who}/{number}") for number in range(400))
        return PeerContext(matchers=matchers, trust_domains=(TD,))

    def outbound(self, caller: Caller, target: str) -> PeerContext | None:
        raise NotImplementedError


def test_versions_of_contexts_take_no_more_memory_than_is_counted() -> None:
    store = SecretStore()
    store.put_bundle(TD, [root("one").der])
    known = Catalog(store, aliases=Aliases(), peers=Many())
    first = known.find(own(0), "inbound")
    grew = grown(lambda number: known.find(own(number), "inbound"), 60)
    assert grew < 2 * MIB, f"{grew / MIB:.1f} MiB"
    again = known.find(own(0), "inbound")
    assert first is not None
    assert again is not None
    assert again.receipt == first.receipt, "it was encoded again, and is no other version"


def test_a_target_that_a_client_makes_up_is_compared_with_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    author = Author()
    taken = author.publish(
        author.holder(),
        services={"some": [SOURCES[3], f"{S}/nobody"]},
        allow=[{"from": f"{S}/gateway", "to": [*SOURCES, f"{S}/zone/**"]}],
    )
    decisions = taken.decisions
    gateway = SpiffeId.parse(f"{S}/gateway")
    compared: list[Glob] = []
    inner = Glob.intersection

    def counted(one: Glob, other: Glob) -> Glob | None:
        compared.append(one)
        return inner(one, other)

    monkeypatch.setattr(Glob, "intersection", counted)
    assert not decisions.outbound(gateway, f"{S}/made/up")
    assert not decisions.outbound(gateway, "made-up")
    assert len(decisions.outbound(gateway, SOURCES[5])) == 1
    assert len(decisions.outbound(gateway, f"{S}/zone/a/b")) == 1
    assert len(decisions.outbound(gateway, "some")) == 1
    assert not compared
