"""Mints certificates before their pods ask.

The kubelet lists a pod about half a second before its first process can connect. Owns
:class:`MintingAhead`: what to ask the authority for in that time. Invariants: nothing here decides
who a caller is, since every selector is looked at again when somebody connects; an identity that
depends on a fact of the process itself (its user, its executable, its container) is not minted
ahead; at most :attr:`AheadLimits.identities` wait for a caller, and each is released when its pod
is gone, or :attr:`AheadLimits.patience` seconds after a process of the pod may run; rotation asks
for them only while nobody waits; a pod about which nothing changed costs no decision; a turn of the
loop makes at most :data:`DECISIONS_A_TURN` of them, and begins no further look after
:data:`TURN_SECONDS`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

from sds.backoff import sleep_unless
from sds.errors import WorkloadError
from sds.workload.facts import Facts, merge

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from sds.clock import Clock
    from sds.identity import Identity
    from sds.workload.recognition import Rules

DECISIONS_A_TURN: Final = 16
"""Each takes about 0.1 ms."""
TURN_SECONDS: Final = 0.002
"""A look takes microseconds, or milliseconds where a namespace has thousands of Services."""
_NOT_STARTED: Final = 10
"""So many times its patience is kept what is for a pod that does not start: a node that starts 250
pods at once takes minutes, and an image that cannot be pulled takes forever."""
_OF_A_PROCESS: Final = WorkloadError("no process has connected yet", reason="undetermined")


@runtime_checkable
class Foresees(Protocol):
    """An attestor that knows of callers before they connect."""

    def coming(self) -> Collection[str]:
        """Return who may connect now or soon, by a name that is never used again (a pod's UID)."""
        ...

    def started(self, who: str) -> bool:
        """Whether a process of theirs may run already."""
        ...

    async def expected(self, who: str) -> Facts:
        """Return what it would find about a process of theirs; wait only a short, bounded time.

        Facts of the process itself are unknown. A caller that is gone has no facts.
        """
        ...

    def listen_coming(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call ``listener`` when any of this changed, until the result is called."""
        ...


class AheadKeeper(Protocol):
    """Rotation, as minting ahead uses it."""

    def expect(self, identity: Identity) -> None:
        """Get a certificate while nobody waits for another; one :meth:`unexpect` undoes this."""
        ...

    def unexpect(self, identity: Identity) -> None:
        """Give up an identity that is no longer expected."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AheadLimits:
    """The bounds of minting ahead.

    Attributes:
        identities: that are kept for callers who have not come yet.
        patience: seconds after which an identity is released, from the start of its pod.
    """

    identities: int = 256
    patience: float = 60.0


@dataclass(slots=True, kw_only=True)
class _Expected:
    """Somebody who may come.

    Attributes:
        until: monotonic seconds.
        started: whether a process of theirs may run.
        rules: those of the last decision.
        judged: its facts.
        chosen: the identities that were decided.
        identities: those that are kept, as far as there is room.
        came: those that a caller was given.
        no_room: whether it was counted that there is no room.
    """

    until: float
    started: bool = False
    rules: Rules | None = None
    judged: tuple[object, ...] = ()
    chosen: tuple[Identity, ...] = ()
    identities: tuple[Identity, ...] = ()
    came: set[Identity] = field(default_factory=set)
    no_room: bool = False


class MintingAhead:
    """Mints for callers that may come; nothing happens without :meth:`run`.

    Args:
        foresees: knows who may come, and what will be found about them.
        rules: gives the rules in force.
        known: the facts that are known about every caller of the socket.
        of_a_process: the selector types that other attestors find about a process.
        keeper: rotation.
        limits: the bounds.
        clock: time.

    Attributes:
        outcomes: counts what became of identities: ``used``, ``unused``, or ``no_room`` if they
            were not minted.
    """

    def __init__(
        self,
        foresees: Foresees,
        *,
        rules: Callable[[], Rules],
        known: Facts,
        of_a_process: Iterable[str],
        keeper: AheadKeeper,
        limits: AheadLimits,
        clock: Clock,
    ) -> None:
        self.outcomes: Counter[str] = Counter(used=0, unused=0, no_room=0)
        self._foresees = foresees
        self._rules = rules
        self._known = known
        self._unknown = Facts(unknown=dict.fromkeys(of_a_process, _OF_A_PROCESS))
        self._keeper = keeper
        self._limits = limits
        self._clock = clock
        self._expected: dict[str, _Expected] = {}
        self._kept = 0
        self._changed = asyncio.Event()

    @property
    def waiting(self) -> int:
        """Return how many identities are kept for callers that may come."""
        return self._kept

    def look_again(self) -> None:
        """Look again, because rules, pods or facts about them changed."""
        self._changed.set()

    def wanted(self, identity: Identity) -> None:
        """Note that a caller was given this identity."""
        for one in self._expected.values():
            if identity in one.identities:
                one.came.add(identity)

    async def run(self) -> None:
        """Mint for callers that may come, until cancelled; then release everything."""
        stop = self._foresees.listen_coming(self.look_again)
        try:
            while True:
                self._changed.clear()
                await self._look()
                await sleep_unless(self._changed, self._clock, self._seconds_left())
        finally:
            stop()
            for one in self._expected.values():
                self._keep(one, ())
            self._expected.clear()

    def _seconds_left(self) -> float:
        """Return the seconds until the next identity is released."""
        now = self._clock.now().monotonic
        ends = [one.until for one in self._expected.values() if one.identities]
        return max(0.0, min(ends, default=now + self._limits.patience) - now)

    async def _look(self) -> None:
        now = self._clock.now().monotonic
        coming = set(self._foresees.coming())
        for gone in self._expected.keys() - coming:
            self._keep(self._expected.pop(gone), ())
        patience = self._limits.patience
        for who in coming - self._expected.keys():
            self._expected[who] = _Expected(until=now + _NOT_STARTED * patience)
        loop = asyncio.get_running_loop()
        decided, began = 0, loop.time()
        for who, one in list(self._expected.items()):
            if not one.started and self._foresees.started(who):
                one.started, one.until = True, min(one.until, now + patience)
            if now >= one.until:
                self._keep(one, ())
            elif not one.came:
                decided += await self._decide(who, one)
                if decided >= DECISIONS_A_TURN or loop.time() - began > TURN_SECONDS:
                    await asyncio.sleep(0)
                    decided, began = 0, loop.time()

    async def _decide(self, who: str, one: _Expected) -> bool:
        """Expect what the rules give them; whether that had to be decided."""
        facts, rules = await self._foresees.expected(who), self._rules()
        judged = (facts.selectors, facts.services, frozenset(facts.unknown))
        is_news = rules is not one.rules or judged != one.judged
        if is_news:
            merged = merge([facts, self._known, self._unknown])
            one.rules, one.judged, one.chosen = rules, judged, rules.decide(merged).identities
        if self._expected.get(who) is one:
            self._keep(one, one.chosen)
        return is_news

    def _keep(self, one: _Expected, identities: tuple[Identity, ...]) -> None:
        """Expect exactly these identities, as far as there is room."""
        kept = [each for each in one.identities if each in identities]
        for each in one.identities:
            if each not in identities:
                self._keeper.unexpect(each)
                self.outcomes["used" if each in one.came else "unused"] += 1
                self._kept -= 1
        for each in identities:
            if each in kept:
                continue
            if self._kept >= self._limits.identities:
                self.outcomes["no_room"] += not one.no_room
                one.no_room = True
                break
            self._keeper.expect(each)
            self._kept += 1
            kept.append(each)
        one.identities = tuple(kept)
