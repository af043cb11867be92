"""Minting ahead: for whom, how many, and for how long."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sds.errors import WorkloadError
from sds.workload.entitlement import Selector
from sds.workload.facts import Facts
from sds.workload.minting_ahead import DECISIONS_A_TURN, AheadLimits, MintingAhead
from sds.workload.recognition import Rules
from tests.support.clock import FakeClock
from tests.support.front_door import rules
from tests.support.turn_counter import turns

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection

    import pytest

    from sds.identity import Identity
    from sds.workload.mapping import Decision

BY_NAME = {"k8s:ns": "shop", "spiffe_id": "spiffe://{trust_domain}/{pod_name}"}
_CONTAINER = {"k8s:container-name": WorkloadError("not there yet", reason="undetermined")}


class Pods:
    """What a kubelet lists."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        self.pending: set[str] = set()
        self.listeners: list[Callable[[], None]] = []

    def list(self, **names: str) -> None:
        """Pods by UID: their names."""
        self.names = names
        for listener in self.listeners:
            listener()

    def coming(self) -> Collection[str]:
        return self.names

    def started(self, who: str) -> bool:
        return who not in self.pending

    async def expected(self, who: str) -> Facts:
        if who not in self.names:
            return Facts()
        found = {Selector("k8s:ns", "shop"), Selector("k8s:pod-name", self.names[who])}
        return Facts(selectors=frozenset(found), unknown=_CONTAINER)

    def listen_coming(self, listener: Callable[[], None]) -> Callable[[], None]:
        self.listeners.append(listener)
        return lambda: self.listeners.remove(listener)


class Keeper:
    """Rotation: what is expected now, and the most that ever was."""

    def __init__(self) -> None:
        self.now: Counter[Identity] = Counter()
        self.most = 0

    def expect(self, identity: Identity) -> None:
        self.now[identity] += 1
        self.most = max(self.most, self.now.total())

    def unexpect(self, identity: Identity) -> None:
        assert self.now[identity] > 0
        self.now[identity] -= 1

    @property
    def names(self) -> list[str]:
        return sorted(str(one.spiffe_id).rpartition("/")[2] for one in self.now.elements())


class World:
    def __init__(self, mapping: Rules, **limits: Any) -> None:
        self.clock, self.pods, self.keeper = FakeClock(), Pods(), Keeper()
        self.rules = mapping
        self.ahead = MintingAhead(
            self.pods,
            rules=lambda: self.rules,
            known=Facts(selectors=frozenset({Selector("socket:name", "node")})),
            of_a_process=["unix:uid", "unix:path"],
            keeper=self.keeper,
            limits=AheadLimits(**limits),
            clock=self.clock,
        )


@contextlib.asynccontextmanager
async def world(mapping: Rules, **limits: Any) -> AsyncIterator[World]:
    made = World(mapping, **limits)
    task = asyncio.create_task(made.ahead.run())
    try:
        await made.clock.settle()
        yield made
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert not made.keeper.names, "everything is released at the end"
        assert not made.pods.listeners


async def test_a_listed_pod_is_minted_for_and_released_if_nobody_comes() -> None:
    async with world(rules(BY_NAME), patience=60) as now:
        now.pods.list(u1="web")
        await now.clock.settle()
        assert now.keeper.names == ["web"]
        await now.clock.advance(61)
        assert now.keeper.names == []
        assert now.ahead.outcomes == {"used": 0, "unused": 1, "no_room": 0}
        now.pods.list(u1="web", u2="api")  # the first one had its time
        await now.clock.settle()
        assert now.keeper.names == ["api"]


async def test_patience_begins_when_the_pod_starts() -> None:
    """A node that starts 250 pods at once takes minutes for the last one."""
    async with world(rules(BY_NAME), patience=60) as now:
        now.pods.pending = {"u1", "u2"}
        now.pods.list(u1="web", u2="api")
        await now.clock.advance(300)
        assert now.keeper.names == ["api", "web"]
        now.pods.pending = {"u2"}
        now.pods.list(u1="web", u2="api")
        await now.clock.advance(59)
        assert now.keeper.names == ["api", "web"]
        await now.clock.advance(2)
        assert now.keeper.names == ["api"]
        await now.clock.advance(300)  # its image cannot be pulled, perhaps
        assert now.keeper.names == []


async def test_what_did_not_change_is_not_decided_again(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Facts] = []
    decide = Rules.decide

    def counted(self: Rules, facts: Facts) -> Decision:
        made.append(facts)
        return decide(self, facts)

    monkeypatch.setattr(Rules, "decide", counted)
    names = {f"u{number}": f"p{number}" for number in range(50)}
    async with world(rules(BY_NAME)) as now:
        now.pods.list(**names)
        await now.clock.settle()
        for number in range(50, 60):
            names[f"u{number}"] = f"p{number}"
            now.pods.list(**names)
            await now.clock.settle()
        assert len(now.keeper.names) == len(made) == 60
        names["u1"] = "another"
        now.pods.list(**names)
        await now.clock.settle()
        assert "another" in now.keeper.names
        assert len(made) == 61
        now.rules = rules(BY_NAME)
        now.ahead.look_again()
        await now.clock.settle()
        assert len(made) == 61 + 60


async def test_a_turn_of_the_loop_makes_few_decisions(monkeypatch: pytest.MonkeyPatch) -> None:
    decide = Rules.decide
    async with world(rules(BY_NAME)) as now, turns() as counter:

        def counted(self: Rules, facts: Facts) -> Decision:
            counter.happened()
            return decide(self, facts)

        monkeypatch.setattr(Rules, "decide", counted)
        now.pods.list(**{f"u{number}": f"p{number}" for number in range(200)})
        await now.clock.settle()
        assert counter.seen.total() == 200
        assert counter.most <= DECISIONS_A_TURN


async def test_a_turn_of_the_loop_has_few_looks_that_take_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A namespace with thousands of Services, of which one changed: nothing is decided anew."""
    async with world(rules(BY_NAME)) as now, turns() as counter:
        now.pods.list(**{f"u{number}": f"p{number}" for number in range(60)})
        await now.clock.settle()
        expected = now.pods.expected

        async def slow(who: str) -> Facts:
            counter.work()
            return await expected(who)

        monkeypatch.setattr(now.pods, "expected", slow)
        now.ahead.look_again()
        await now.clock.settle()
        assert counter.seen.total() == 60
        assert counter.most <= 4


async def test_a_pod_without_room_counts_once_and_gets_room_that_is_free() -> None:
    async with world(rules(BY_NAME), identities=1) as now:
        for _ in range(3):
            now.pods.list(u1="web", u2="api")
            await now.clock.settle()
        assert now.ahead.outcomes["no_room"] == 1
        (kept,) = now.keeper.names
        other = "u1" if kept == "api" else "u2"
        now.pods.list(**{other: {"u1": "web", "u2": "api"}[other]})
        await now.clock.settle()
        assert now.keeper.names == [{"u1": "web", "u2": "api"}[other]]


async def test_what_came_is_counted_as_used() -> None:
    async with world(rules(BY_NAME), patience=60) as now:
        now.pods.list(u1="web", u2="api")
        await now.clock.settle()
        (web,) = (one for one in now.keeper.now if str(one.spiffe_id).endswith("/web"))
        now.ahead.wanted(web)
        await now.clock.advance(61)
        assert now.ahead.outcomes == {"used": 1, "unused": 1, "no_room": 0}
        assert now.ahead.waiting == 0


async def test_rules_that_need_a_fact_of_the_process_mint_nothing_ahead() -> None:
    of_a_process = (
        {"unix:uid": "7"},
        {"k8s:ns": "shop", "unix:path": "/usr/bin/envoy"},
        {"k8s:ns": "shop", "k8s:container-name": "envoy"},
        {"k8s:ns": "shop", "spiffe_id": "spiffe://{trust_domain}/{uid}"},
    )
    for each in of_a_process:
        # Also if a rule after it would match: nobody knows yet that this one does not.
        async with world(rules(each, BY_NAME)) as now:
            now.pods.list(u1="web")
            await now.clock.settle()
            assert now.keeper.names == []


async def test_a_known_mismatch_lets_the_next_rule_decide() -> None:
    other = {"k8s:ns": "elsewhere", "unix:uid": "7"}
    socket = {**BY_NAME, "socket:name": "node"}
    async with world(rules(other, socket)) as now:
        now.pods.list(u1="web")
        await now.clock.settle()
        assert now.keeper.names == ["web"]


async def test_a_pod_that_goes_is_released_at_once() -> None:
    async with world(rules(BY_NAME)) as now:
        now.pods.list(u1="web", u2="api")
        await now.clock.settle()
        now.pods.list(u2="api")
        await now.clock.settle()
        assert now.keeper.names == ["api"]


async def test_other_rules_mint_for_other_identities() -> None:
    async with world(rules({"k8s:ns": "nowhere"})) as now:
        now.pods.list(u1="web")
        await now.clock.settle()
        assert now.keeper.names == []
        now.rules = rules(BY_NAME)
        now.ahead.look_again()
        await now.clock.settle()
        assert now.keeper.names == ["web"]


async def test_no_more_than_there_is_room_for() -> None:
    async with world(rules(BY_NAME), identities=3) as now:
        now.pods.list(**{f"u{number}": f"p{number}" for number in range(10)})
        await now.clock.settle()
        assert len(now.keeper.names) == now.ahead.waiting == 3
        assert now.ahead.outcomes["no_room"] == 7


_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("list"), st.sets(st.integers(0, 7))),
        st.tuples(st.just("wait"), st.integers(1, 40)),
        st.tuples(st.just("came"), st.integers(0, 7)),
        st.tuples(st.just("rules"), st.booleans()),
    ),
    max_size=12,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_STEPS)
def test_whatever_happens_it_stays_in_its_bounds(steps: list[tuple[str, Any]]) -> None:
    async def run() -> None:
        async with world(rules(BY_NAME), identities=4, patience=60) as now:
            for what, value in steps:
                if what == "list":
                    now.pods.list(**{f"u{number}": f"p{number}" for number in value})
                elif what == "wait":
                    await now.clock.advance(value)
                elif what == "came":
                    for identity in list(now.keeper.now.elements()):
                        if str(identity.spiffe_id).endswith(f"/p{value}"):
                            now.ahead.wanted(identity)
                else:
                    now.rules = rules(BY_NAME if value else {"k8s:ns": "nowhere"})
                    now.ahead.look_again()
                await now.clock.settle()
                assert now.keeper.most <= 4
                assert now.ahead.waiting == now.keeper.now.total()
                listed = {f"p{uid[1:]}" for uid in now.pods.names}
                assert set(now.keeper.names) <= listed

    asyncio.run(run())
