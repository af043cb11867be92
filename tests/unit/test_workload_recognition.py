"""What recognition need not do twice: decide about the same facts, and say the same."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sds.errors import WorkloadError
from sds.workload.entitlement import Selector
from sds.workload.facts import Facts
from sds.workload.mapping import Decision, Matching
from sds.workload.peer import Peer
from sds.workload.recognition import LOOKS_A_TURN, Recogniser, Recognition, Rules
from sds.workload.recognition_log import RecognitionLog
from tests.support.front_door import Keeper, rules
from tests.support.turn_counter import turns
from tests.support.virtual_time import in_virtual_time

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    import pytest

    from sds.workload.entitlement import Entitlement


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted(Rules):
    """Rules that remember about which facts they were asked."""

    asked: list[Facts] = field(default_factory=list)

    def decide(self, facts: Facts) -> Decision:
        self.asked.append(facts)
        return Rules.decide(self, facts)


def counted(*, uid: str) -> Counted:
    plain = rules({"unix:uid": uid})
    return Counted(rules=plain.rules, defaults=plain.defaults)


class Fixed:
    """An attestor that finds what it is told."""

    name = "fixed"
    costly: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.facts = Facts(selectors=frozenset({Selector("unix:uid", "7")}))

    async def attest(self, peer: Peer, needed: frozenset[str]) -> Facts:
        del peer, needed
        return self.facts

    def notices(self) -> tuple[str, ...]:
        return ()

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        del listener
        return lambda: None


class Living(Peer):
    """A caller that lives as long as the test."""

    __slots__ = ()

    def check(self) -> None:
        """It lives."""


def caller(owner: str = "uid 7") -> Peer:
    return Living(pid=1, uid=7, gid=7, groups=frozenset(), pidfd=None, owner=owner)


async def test_the_same_facts_are_decided_once_until_the_rules_change() -> None:
    attestor, first, second = Fixed(), counted(uid="7"), counted(uid="8")
    recogniser = Recogniser(attestors=[attestor], rules=first, keeper=Keeper())
    found = [await recogniser.look(caller()) for _ in range(5)]
    assert len(first.asked) == 1
    assert all(each.decision.granted for each in found)
    attestor.facts = Facts(selectors=frozenset({Selector("unix:uid", "9")}))
    assert not (await recogniser.look(caller())).decision.granted
    assert len(first.asked) == 2
    recogniser.replace_rules(second)
    attestor.facts = Facts(selectors=frozenset({Selector("unix:uid", "7")}))
    assert not (await recogniser.look(caller())).decision.granted
    assert len(second.asked) == 1


async def test_a_decision_about_something_unknown_is_not_remembered() -> None:
    attestor, mapping = Fixed(), counted(uid="7")
    late = WorkloadError("late", reason="undetermined")
    attestor.facts = Facts(unknown={"unix:uid": late})
    recogniser = Recogniser(attestors=[attestor], rules=mapping, keeper=Keeper())
    for _ in range(3):
        assert (await recogniser.look(caller())).decision.undetermined is late
    assert len(mapping.asked) == 3


async def test_callers_with_ever_new_facts_leave_a_bounded_memory() -> None:
    attestor, mapping = Fixed(), counted(uid="7")
    recogniser = Recogniser(attestors=[attestor], rules=mapping, keeper=Keeper())
    for number in range(2_000):
        attestor.facts = Facts(selectors=frozenset({Selector("unix:path", f"/{number}")}))
        await recogniser.look(caller())
    assert len(recogniser._decided) <= 512


async def test_facts_are_remembered_by_their_number_too() -> None:
    """A pod has up to 256 labels of half a kilobyte, and its author may change them."""
    attestor, mapping = Fixed(), counted(uid="7")
    recogniser = Recogniser(attestors=[attestor], rules=mapping, keeper=Keeper())
    for number in range(200):
        labels = {Selector(f"k8s:label:{number}.{each}", "x") for each in range(256)}
        attestor.facts = Facts(selectors=frozenset(labels))
        await recogniser.look(caller())
        await recogniser.look(caller())
    assert len(mapping.asked) == 200
    assert sum(len(selectors) for selectors, _ in recogniser._decided) <= 16_384  # type: ignore[arg-type, misc]


async def test_a_change_wakes_a_few_recognitions_in_each_turn() -> None:
    """One label of one pod changes, and every caller of the node is looked at again."""
    looked = 0

    class Counting(Fixed):
        async def attest(self, peer: Peer, needed: frozenset[str]) -> Facts:
            nonlocal looked
            looked += 1
            counter.happened()
            return await super().attest(peer, needed)

    recogniser = Recogniser(attestors=[Counting()], rules=counted(uid="7"), keeper=Keeper())
    async with turns() as counter, asyncio.TaskGroup() as group:
        following = [
            group.create_task(Recognition(recogniser, caller()).follow()) for _ in range(200)
        ]
        while looked < 200:
            await asyncio.sleep(0)
        counter.seen.clear()
        recogniser.look_again()
        recogniser.look_again()  # nobody is looked at twice for that
        while looked < 400:
            await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)
        assert looked == 400
        assert counter.most <= LOOKS_A_TURN
        for task in following:
            task.cancel()
    recogniser.close()


def test_an_owner_with_one_outcome_gets_one_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    log, nothing = RecognitionLog(), Decision()
    facts = Facts(selectors=frozenset({Selector("unix:uid", "7")}))
    given = rules({"unix:uid": "7"}).decide(facts)
    other = rules({"unix:uid": "7", "spiffe_id": "spiffe://example.org/other"}).decide(facts)
    for _ in range(100):
        log.tell(caller(), facts, given, nothing, now=1.0)
    assert len(caplog.records) == 1
    log.tell(caller("uid 8"), facts, given, nothing, now=1.0)
    log.tell(caller(), facts, other, nothing, now=1.0)  # news
    assert len(caplog.records) == 3
    log.tell(caller(), facts, given, nothing, now=12.0)
    assert caplog.records[-1].__dict__["times"] == 100


def test_strangers_under_many_names_cause_few_lines(caplog: pytest.LogCaptureFixture) -> None:
    """One user with subordinate IDs is 65,536 users."""
    caplog.set_level(logging.INFO)
    log, nothing = RecognitionLog(), Decision()
    facts = Facts(selectors=frozenset({Selector("unix:uid", "7")}))
    for number in range(5_000):
        strange = rules({"unix:uid": "1"}).decide(facts)
        log.tell(caller(f"uid {number}"), facts, strange, Decision(problems=("x",)), now=1.0)
    assert len(caplog.records) <= 65
    given = rules({"unix:uid": "7"}).decide(facts)
    log.tell(caller("pod 1"), facts, given, nothing, now=1.0)  # and nobody else is silenced
    assert caplog.records[-1].__dict__["owner"] == "pod 1"


class Slow(Fixed):
    """An attestor that finds what was true when it began, once it may answer."""

    def __init__(self) -> None:
        super().__init__()
        self.began = asyncio.Event()
        self.answers = asyncio.Event()

    async def attest(self, peer: Peer, needed: frozenset[str]) -> Facts:
        found = await super().attest(peer, needed)
        self.began.set()
        await self.answers.wait()
        return found


@in_virtual_time
async def test_a_change_during_a_look_causes_another_look() -> None:
    """It would be noticed at the next look otherwise, half a minute later."""
    attestor = Slow()
    both = rules({"unix:uid": "7"}, {"unix:uid": "8"})
    recogniser = Recogniser(attestors=[attestor], rules=both, keeper=Keeper())
    recognition = Recognition(recogniser, caller())
    following = asyncio.create_task(recognition.follow())
    await attestor.began.wait()
    attestor.facts = Facts(selectors=frozenset({Selector("unix:uid", "8")}))
    recogniser.look_again()
    attestor.answers.set()
    await asyncio.sleep(recogniser.timing.recheck / 10)
    entitlement = await recognition.entitlement()
    assert [str(each.spiffe_id) for each in entitlement.current.identities] == [
        "spiffe://example.org/r1"
    ]
    following.cancel()
    recogniser.close()


@contextlib.asynccontextmanager
async def following(recogniser: Recogniser) -> AsyncIterator[Entitlement]:
    """A caller's entitlement, which follows what the attestors find and what the rules say."""
    recognition = Recognition(recogniser, caller())
    task = asyncio.create_task(recognition.follow())
    yield await recognition.entitlement()
    task.cancel()
    recogniser.close()


@in_virtual_time
async def test_what_other_rules_take_away_meanwhile_is_not_given() -> None:
    """A certificate may take long, and the policy that granted it may have ended by then."""
    attestor, keeper = Fixed(), Keeper()
    both = rules({"unix:uid": "7"}, {"unix:uid": "8"})
    recogniser = Recogniser(attestors=[attestor], rules=both, keeper=keeper)
    async with following(recogniser) as entitlement:
        given: list[str] = []
        entitlement.listen(
            lambda: given.extend(str(each.spiffe_id) for each in entitlement.current.identities)
        )
        keeper.ready.clear()
        attestor.facts = Facts(selectors=frozenset({Selector("unix:uid", "8")}))
        recogniser.look_again()
        await asyncio.sleep(1)
        recogniser.replace_rules(rules({"unix:uid": "8", "spiffe_id": "spiffe://example.org/new"}))
        keeper.ready.set()
        await asyncio.sleep(recogniser.timing.recheck / 10)
        assert given == ["spiffe://example.org/new"]


@in_virtual_time
async def test_a_right_that_ends_while_another_is_prepared_ends_at_once() -> None:
    """The authority may not give the other certificate for a long time, or ever."""
    attestor, keeper = Fixed(), Keeper()
    recogniser = Recogniser(attestors=[attestor], rules=rules({"unix:uid": "7"}), keeper=keeper)
    async with following(recogniser) as entitlement:
        keeper.ready.clear()
        recogniser.replace_rules(rules({"unix:uid": "7", "spiffe_id": "spiffe://example.org/new"}))
        await asyncio.sleep(1)
        ended = [entitlement.ended]
        recogniser.replace_rules(rules({"unix:uid": "8"}))
        await asyncio.sleep(recogniser.timing.replace / 10)
        ended.append(entitlement.ended)
        assert [one is None for one in ended] == [True, False]


@in_virtual_time
async def test_a_right_that_ended_does_not_last_until_another_can_be_served() -> None:
    """The authority may never give the other certificate, and something may change all the time."""
    attestor, keeper = Fixed(), Keeper()
    recogniser = Recogniser(attestors=[attestor], rules=rules({"unix:uid": "7"}), keeper=keeper)
    async with following(recogniser) as entitlement:
        keeper.ready.clear()
        recogniser.replace_rules(rules({"unix:uid": "7", "spiffe_id": "spiffe://example.org/new"}))

        def has() -> list[str]:
            return [str(each.spiffe_id) for each in entitlement.current.identities]

        async def busy(seconds: float) -> None:
            for _ in range(int(seconds)):
                recogniser.look_again()
                await asyncio.sleep(1)

        await busy(recogniser.timing.replace / 2)
        assert has() == ["spiffe://example.org/r0"], "it has a moment to be replaced"
        await busy(recogniser.timing.replace)
        assert has() == ["spiffe://example.org/new"]
        assert {str(each.spiffe_id) for each in keeper.kept} >= {"spiffe://example.org/new"}


@in_virtual_time
async def test_other_names_of_the_same_identity_are_waited_for() -> None:
    """The rules still give the caller its SPIFFE ID, so an authority that is away takes nothing."""
    attestor, keeper = Fixed(), Keeper()
    recogniser = Recogniser(attestors=[attestor], rules=rules({"unix:uid": "7"}), keeper=keeper)
    async with following(recogniser) as entitlement:
        before = entitlement.current.identities
        keeper.ready.clear()
        longer = dataclasses.replace(
            recogniser.rules.defaults, lifetime=2 * recogniser.rules.defaults.lifetime
        )
        recogniser.replace_rules(Rules(rules=recogniser.rules.rules, defaults=longer))
        await asyncio.sleep(5 * recogniser.timing.replace)
        assert entitlement.current.identities == before
        keeper.ready.set()
        await asyncio.sleep(2 * recogniser.timing.replace)
        assert entitlement.current.identities != before


@in_virtual_time
async def test_a_right_that_no_rule_can_give_ends_though_facts_are_unknown() -> None:
    """They may be unknown by the caller's own doing, or for as long as an outage lasts."""
    attestor, keeper = Fixed(), Keeper()
    template = {"unix:gid": "*", "spiffe_id": "spiffe://example.org/{gid}"}
    recogniser = Recogniser(
        attestors=[attestor],
        rules=rules({"unix:uid": "7"}, template, matching=Matching.ALL),
        keeper=keeper,
    )
    attestor.facts = Facts(
        selectors=frozenset({Selector("unix:uid", "7"), Selector("unix:gid", "r9")})
    )
    async with following(recogniser) as entitlement:

        async def then(*matches: dict[str, str]) -> list[str]:
            recogniser.replace_rules(rules(*matches, matching=Matching.ALL))
            await asyncio.sleep(recogniser.timing.recheck / 10)
            if entitlement.ended is not None:
                return []
            return [str(each.spiffe_id)[-2:] for each in entitlement.current.identities]

        first = {"unix:uid": "7"}
        assert await then(first, template) == ["r0", "r9"]
        late = WorkloadError("late", reason="executable_late")
        attestor.facts = Facts(unknown={"unix:": late})
        assert await then(first, template) == ["r0", "r9"], "an outage takes nothing away"
        assert await then(first) == ["r0"]
        assert await then({"unix:uid": "7", "spiffe_id": "spiffe://example.org/r7"}) == []


class Hashing(Fixed):
    """An attestor that finds a digest only where a rule asks for one, and takes its time."""

    costly = frozenset({"unix:sha256"})

    def __init__(self) -> None:
        super().__init__()
        self.between: Callable[[], None] = lambda: None

    async def attest(self, peer: Peer, needed: frozenset[str]) -> Facts:
        found = {*self.facts.selectors}
        if "unix:sha256" in needed:
            found.add(Selector("unix:sha256", "ab"))
        self.between()
        return Facts(selectors=frozenset(found))


async def test_rules_never_decide_by_facts_that_were_gathered_for_other_rules() -> None:
    """The first rule matches by a fact that nobody looked for; the second one must not win."""
    attestor = Hashing()
    recogniser = Recogniser(attestors=[attestor], rules=rules({"unix:uid": "7"}), keeper=Keeper())
    later = rules({"unix:sha256": "ab"}, {"unix:uid": "7"})
    attestor.between = lambda: recogniser.replace_rules(later)
    first = (await recogniser.look(caller())).decision
    assert first.undetermined is not None
    attestor.between = lambda: None
    (granted,) = (await recogniser.look(caller())).decision.granted
    assert granted.rule == "r0"
