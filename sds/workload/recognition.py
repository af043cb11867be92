"""Recognises callers, and follows them for as long as they are connected.

Owns :class:`Recogniser` (attestors, rules, wanted identities) and one :class:`Recognition` for each
connection. Invariants: facts count only if the process that connected was seen alive after they
were gathered; if a fact about a caller becomes unknown, the caller keeps what it had (an outage of
the kubelet changes nobody), as far as the rules in force can give it; a new identity replaces an
old one only when it can be served, and only by the rules that are in force then; an old one that
the rules do not give any more stays for :attr:`Timing.replace` at most; a change that is announced
during a look causes another look.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from sds.errors import PeerGoneError, WorkloadError, without_frames
from sds.faults import report
from sds.trickle import Trickle
from sds.workload.connection_caller import CallerDescription
from sds.workload.entitlement import Caller, Entitlement
from sds.workload.explaining import explained
from sds.workload.facts import Facts, merge
from sds.workload.mapping import Decision, Defaults, Matching, decide, selector_types
from sds.workload.possible_identities import PossibleIdentities
from sds.workload.recognition_log import RecognitionLog, why_not
from sds.workload.wanted_identities import WantedIdentities

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sds.identity import Identity
    from sds.workload.facts import Attestor
    from sds.workload.mapping import WorkloadRule
    from sds.workload.peer import Peer
    from sds.workload.wanted_identities import IdentityKeeper

_REMEMBERED: Final = 512
"""How many decisions are remembered; callers of one pod or user often show the same facts."""
_REMEMBERED_FACTS: Final = 16_384
"""How many facts these rest on together: a pod has up to 256 labels of half a kilobyte, and its
author may change them at any time."""
LOOKS_A_TURN: Final = 16
"""How many recognitions one change wakes in a turn of the loop; a look takes about 0.2 ms."""
_POSTPONED: Final = WorkloadError("it has not been looked for yet", reason="undetermined")
_NOT_YET: Final = WorkloadError("the first look at it is not over", reason="undetermined")
_OTHER_RULES: Final = WorkloadError("other rules came during the look", reason="undetermined")
"""They may ask for facts that the look did not gather; the next look follows at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Maps callers to identities; replaced as a whole when the policy changes."""

    rules: tuple[WorkloadRule, ...]
    defaults: Defaults
    matching: Matching = Matching.FIRST

    def decide(self, facts: Facts) -> Decision:
        """Decide which identities a caller about whom ``facts`` are known may have."""
        return decide(self.rules, facts, matching=self.matching, defaults=self.defaults)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """The bounds of waiting, in seconds.

    Attributes:
        hold: how long a stream of an unrecognised caller waits before PERMISSION_DENIED.
        retry_first: the first gap between two looks at a caller that no rule matched.
        retry_most: the longest such gap.
        recheck: the gap between two looks at a recognised caller if no change was announced.
        replace: how long a new identity may take to get its certificate before we look again, and
            before a caller loses an old one that the rules do not give it any more.
        linger: how long an identity is kept after its last caller left (an Envoy that restarts).
    """

    hold: float = 30.0
    retry_first: float = 0.1
    retry_most: float = 1.0
    recheck: float = 30.0
    replace: float = 30.0
    linger: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RecognitionOutcome:
    """The result of one look at a caller."""

    facts: Facts = field(default_factory=Facts)
    decision: Decision = field(default_factory=Decision)


class Recogniser:
    """Recognises callers by attestors and rules, and keeps their identities in rotation."""

    def __init__(
        self,
        *,
        attestors: Sequence[Attestor],
        rules: Rules,
        keeper: IdentityKeeper,
        timing: Timing | None = None,
    ) -> None:
        """Start nothing; each connection runs :meth:`Recognition.follow`."""
        self.timing = timing or Timing()
        self._use(rules)
        self._decided: dict[tuple[object, ...], Decision] = {}
        self._decided_facts = 0
        self.attestors = tuple(attestors)
        self.wanted = WantedIdentities(keeper, linger=self.timing.linger)
        self.log = RecognitionLog()
        self.changes = 0
        """How many changes of facts or rules were announced."""
        self._waiting: dict[asyncio.Future[None], None] = {}
        """Recognitions that wait for a change."""
        self._looking = Trickle("recognition", LOOKS_A_TURN)
        self._stops = [attestor.listen(self.look_again) for attestor in self.attestors]

    def replace_rules(self, rules: Rules) -> None:
        """Use new rules, and look at every caller again now."""
        self._use(rules)
        self._decided.clear()
        self._decided_facts = 0
        self.look_again()

    def _use(self, rules: Rules) -> None:
        possible = PossibleIdentities(rules.rules, rules.defaults)
        needed = selector_types(rules.rules)
        # All at once: decisions by earlier rules must not be remembered for these.
        self.rules, self.possible, self._needed = rules, possible, needed

    def look_again(self) -> None:
        """Wake every recognition, a few in each turn, because facts or rules may have changed."""
        self.changes += 1
        waiting, self._waiting = self._waiting, {}
        self._looking.add_all(functools.partial(_wake, future) for future in waiting)

    def close(self) -> None:
        """Stop listening, and release identities that are kept a little longer."""
        for stop in self._stops:
            stop()
        self._looking.close()
        self.wanted.close()

    async def look(self, peer: Peer) -> RecognitionOutcome:
        """Gather facts about ``peer`` and decide.

        If an attestor raises anything else, the error is reported and the decision stays open: a
        recognised caller keeps what it has, and no caller becomes recognised.

        Raises:
            PeerGoneError: the process that connected has ended; nothing gathered counts.
        """
        rules, needed = self.rules, self._needed
        costly = needed & _costly(self.attestors)
        facts, failed = await self._gather(peer, self.attestors, needed - costly)
        if failed is None and costly:
            # Costly facts are gathered only if they can decide, and not for a caller that no rule
            # would match anyway.
            postponed = Facts(unknown=dict.fromkeys(costly, _POSTPONED))
            decision = rules.decide(merge([facts, postponed]))
            if decision.undetermined is _POSTPONED:
                some = [each for each in self.attestors if each.costly & costly]
                more, failed = await self._gather(peer, some, needed)
                facts = merge([more, facts])
            elif rules is self.rules:
                return RecognitionOutcome(facts=facts, decision=decision)
        if rules is not self.rules:
            failed = _OTHER_RULES
        if failed is not None:
            return RecognitionOutcome(facts=facts, decision=Decision(undetermined=failed))
        return RecognitionOutcome(facts=facts, decision=self._decide(facts))

    def _decide(self, facts: Facts) -> Decision:
        """Decide by the rules; equal facts give equal decisions, so these are remembered."""
        if facts.unknown:
            return self.rules.decide(facts)
        key = (facts.selectors, facts.services)
        decision = self._decided.get(key)
        if decision is None:
            count = 1 + len(facts.selectors) + len(facts.services)
            self._decided_facts += count
            if len(self._decided) >= _REMEMBERED or self._decided_facts > _REMEMBERED_FACTS:
                self._decided.clear()
                self._decided_facts = count
            decision = self._decided[key] = self.rules.decide(facts)
        return decision

    async def _gather(
        self, peer: Peer, attestors: Iterable[Attestor], needed: frozenset[str]
    ) -> tuple[Facts, WorkloadError | None]:
        """Return what these attestors find, and why that is not all."""
        found: list[Facts] = []
        failed: WorkloadError | None = None
        for attestor in attestors:
            try:
                found.append(await attestor.attest(peer, needed))
                peer.check()
            except PeerGoneError:
                raise
            except WorkloadError as error:
                failed = without_frames(error)
            except Exception as error:  # noqa: BLE001  the boundary between one look and the rest
                report("recognition", error, pid=peer.pid, attestor=attestor.name)
                failed = WorkloadError(
                    f"the attestor {attestor.name!r} failed: {type(error).__name__}",
                    reason="recognition_failed",
                )
        return merge(found), failed

    async def wait_for_change(self, seconds: float, *, since: int) -> None:
        """Wait until :attr:`changes` is not ``since``, at most ``seconds``."""
        changed = asyncio.get_running_loop().create_future()
        if self.changes == since:
            self._waiting[changed] = None
        else:  # it came during the last look
            self._looking.add(functools.partial(_wake, changed))
        try:
            async with asyncio.timeout(seconds):
                await changed
        except TimeoutError:
            return
        finally:
            self._waiting.pop(changed, None)

    async def until_ready(self, identities: Iterable[Identity], *, since: int) -> bool:
        """Wait a bounded time, until a change at most, and say whether all can be served."""
        ready = asyncio.ensure_future(self.wanted.until_ready(identities))
        changed = asyncio.ensure_future(self.wait_for_change(self.timing.replace, since=since))
        try:
            await asyncio.wait((ready, changed), return_when=asyncio.FIRST_COMPLETED)
            if not ready.done() or ready.cancelled():
                return False
            ready.result()  # raises what went wrong
        finally:
            ready.cancel()
            changed.cancel()
        return True


class Recognition:
    """One connected process, followed from its connection to its end."""

    def __init__(self, recogniser: Recogniser, peer: Peer) -> None:
        """Do nothing before :meth:`follow`; the code that opened ``peer`` closes it."""
        self.peer = peer
        self.outcome = RecognitionOutcome(decision=Decision(undetermined=_NOT_YET))
        self._recogniser = recogniser
        self._entitlement: Entitlement | None = None
        self._held: set[Identity] = set()
        self._matched = asyncio.Event()
        self._looked = asyncio.Event()
        self._gone: PeerGoneError | None = None
        self._told = Decision()
        self._ungiven_since: float | None = None
        """Since when it has an identity that the rules do not give it any more."""
        self._on_match: Callable[[], None] = lambda: None

    def when_matched(self, call: Callable[[], None]) -> None:
        """Call a function as soon as a rule matches the caller, before it asks for anything."""
        self._on_match = call

    async def entitlement(self) -> Entitlement:
        """Return the caller's entitlement; wait for a match for :attr:`Timing.hold` seconds.

        Raises:
            WorkloadError: ``no_match``: no rule matches; the text says what was found about the
                caller.
            WorkloadError: ``undetermined``: something a rule asks for could not be found out in
                time.
            PeerGoneError: the process has ended.
        """
        if self._entitlement is not None and self._gone is None:
            return self._entitlement
        hold = self._recogniser.timing.hold
        try:
            async with asyncio.timeout(hold):
                while self._entitlement is None and self._gone is None:
                    await self._matched.wait()
        except TimeoutError:
            raise self._why_not(hold) from None
        if self._gone is not None:
            raise self._gone
        if self._entitlement is None:
            raise self._why_not(hold)
        return self._entitlement

    async def describe(self) -> CallerDescription:
        """Return what is known about the caller now; wait for the first look, bounded.

        Raises:
            PeerGoneError: the process has ended.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._recogniser.timing.hold):
                await self._looked.wait()
        if self._gone is not None:
            raise self._gone
        decision = self.outcome.decision
        if decision.identities:
            state, why = "recognised", "matched by the rule beside each identity"
        else:
            error = self._why_not(0.0)
            state, why = error.reason, error.message
        return CallerDescription(
            name=self.outcome.facts.title,
            pid=self.peer.pid,
            selectors=self.outcome.facts.selectors,
            granted=decision.granted,
            state=state,
            why=" ".join([why, *decision.problems]),
            details=await explained(self._recogniser.attestors, self.peer),
        )

    async def follow(self) -> None:
        """Look at the caller at intervals, until cancelled or until its process has ended."""
        timing = self._recogniser.timing
        gap = timing.retry_first
        try:
            while True:
                since = self._recogniser.changes
                outcome = await self._recogniser.look(self.peer)
                settled = await self._apply(outcome, since)
                if settled:
                    gap = timing.retry_first
                    await self._recogniser.wait_for_change(timing.recheck, since=since)
                else:
                    await self._recogniser.wait_for_change(gap, since=since)
                    gap = min(gap * 2, timing.retry_most)
        except PeerGoneError as error:
            self._end(error)
        finally:
            self._end(PeerGoneError(f"the connection of process {self.peer.pid} ended"))

    async def _apply(self, outcome: RecognitionOutcome, since: int) -> bool:
        """Apply the outcome, and say whether there is nothing left to wait for."""
        now = asyncio.get_running_loop().time()
        self._recogniser.log.tell(self.peer, outcome.facts, outcome.decision, self._told, now=now)
        self._told = outcome.decision
        self.outcome = outcome
        self._looked.set()
        if (why := outcome.decision.undetermined) is not None:
            self._keep(outcome.facts, why)
            return False
        identities = outcome.decision.identities
        if not identities:
            self._lose()
            return False
        caller = Caller(
            name=outcome.facts.title or f"pid {self.peer.pid}",
            selectors=outcome.facts.selectors,
            identities=identities,
            pid=self.peer.pid,
        )
        if self._entitlement is None:
            self._hold_only(identities)
            self._entitlement = Entitlement(caller)
            self._ungiven_since = None
            self._matched.set()
            self._on_match()
            return True
        before, rules = self._entitlement.current.identities, self._recogniser.rules
        self._hold_only((*identities, *before))
        fresh = set(identities) - set(before)
        began = self._note_ungiven(before, identities, now)
        if fresh and not await self._recogniser.until_ready(identities, since=since):
            late = asyncio.get_running_loop().time() - began >= self._recogniser.timing.replace
            if not late:
                return False
        if rules is not self._recogniser.rules:
            return False  # other rules came meanwhile, and may not give it these identities
        self._entitlement.replace(caller)
        self._hold_only(identities)
        self._ungiven_since = None
        return True

    def _note_ungiven(
        self, before: Iterable[Identity], now_given: Iterable[Identity], now: float
    ) -> float:
        """Return since when the caller has a SPIFFE ID that the rules do not give it any more.

        It is kept until what comes in its place can be served, and no longer than that may take:
        the authority may never give the other certificate. Infinity if there is none.
        """
        given = {each.spiffe_id for each in now_given}
        if all(each.spiffe_id in given for each in before):
            self._ungiven_since = None
            return float("inf")
        if self._ungiven_since is None:
            self._ungiven_since = now
        return self._ungiven_since

    def _keep(self, facts: Facts, why: WorkloadError) -> None:
        """Keep the identities that the rules in force may give, while that cannot be decided."""
        if self._entitlement is None:
            return
        before = self._entitlement.current
        kept = self._recogniser.possible.kept(before.identities, facts, why)
        if not kept:
            self._lose()
        elif kept != before.identities:
            self._entitlement.replace(dataclasses.replace(before, identities=kept))
            self._hold_only(kept)

    def _lose(self) -> None:
        self._hold_only(())
        if self._entitlement is not None:
            ended, self._entitlement = self._entitlement, None
            self._matched.clear()
            ended.end(self._why_not(0.0))

    def _hold_only(self, identities: Iterable[Identity]) -> None:
        wanted = set(identities)
        for identity in wanted - self._held:
            self._recogniser.wanted.want(identity)
        for identity in self._held - wanted:
            self._recogniser.wanted.unwant(identity, self.peer.owner)
        self._held = wanted

    def _end(self, error: PeerGoneError) -> None:
        if self._gone is None:
            self._gone = error
            self._looked.set()
            self._matched.set()
            if self._entitlement is not None:
                self._entitlement.end(error)
            self._hold_only(())

    def _why_not(self, waited: float) -> WorkloadError:
        return why_not(self.outcome.facts, self.outcome.decision, waited)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _costly(attestors: Iterable[Attestor]) -> frozenset[str]:
    return frozenset[str]().union(*(each.costly for each in attestors))
