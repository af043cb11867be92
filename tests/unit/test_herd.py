"""After an outage all agents ask one authority that has too few processors: it must catch up.

Virtual time, and the agents' own decisions. One processor serves 10,000 agents one after the other
(here a fiftieth of both) at the costs that were measured (docs/performance.md). It cannot tell that
a caller has gone until it has done a part of the work.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from sds.authority.attested import AuthoritySettings
from sds.authority.patience import patient_seconds
from sds.clock import Instant
from sds.errors import AuthorityUnavailableError
from sds.secrets import schedule
from sds.secrets.schedule import Lease, State
from tests.support.certificates import NOW

if TYPE_CHECKING:
    from collections.abc import Callable

AGENTS = 200
SCALE = 10_000 / AGENTS
HELLO, CERTIFICATES, GONE = 0.007 * SCALE, 0.025 * SCALE, 0.003 * SCALE
"""Seconds of a processor: handshakes with a Challenge, 30 certificates, either for nobody."""
LIFETIME = 3600.0
SETTINGS = AuthoritySettings(addresses=("127.0.0.1:8443",))
LATE = AuthorityUnavailableError("late", reason="authority_no_answer")


@dataclass(slots=True, eq=False)
class Caller:
    """One agent; ``question`` is the number of its present one: an answer to another is late."""

    state: State
    ends: float
    unanswered: int = 20
    question: int = 0
    served: float | None = None

    @property
    def retry(self) -> float:
        assert self.state.failure is not None
        return self.state.failure.retry_seconds

    @property
    def expired(self) -> bool:
        return self.served is None or self.served > self.ends


def at(seconds: float) -> Instant:
    return Instant(wall=NOW + timedelta(seconds=seconds), monotonic=seconds, boottime=seconds)


class Herd:
    """Agents whose certificates were from 0 to 48 % old when the outage began; it ends at 0."""

    def __init__(self, outage: float, seed: int) -> None:
        self.draw = random.Random(seed)
        self.events: list[tuple[float, int, Callable[[float], None]]] = []
        self.queue: deque[tuple[float, Caller, int, Callable[[float, Caller], None]]] = deque()
        self.busy = False
        self._number = itertools.count()
        self.callers = [self._caller(outage) for _ in range(AGENTS)]

    def _caller(self, outage: float) -> Caller:
        ends = LIFETIME * self.draw.uniform(0.52, 1.0) - outage
        received = at(ends - LIFETIME)
        lease = Lease(
            received=received, valid_until=at(ends).wall, valid_from=received.wall, jitter=0.0
        )
        state = State(lifetime=LIFETIME, lease=lease if ends > 0 else None)
        for _ in range(20):
            state = schedule.failed(state, LATE, draw=self.draw.random(), now=at(0))
        caller = Caller(state=state, ends=ends)
        self._push(self.draw.uniform(0, caller.retry), lambda now: self._ask(now, caller))
        return caller

    def play(self, seconds: float) -> list[Caller]:
        """Let the time pass, and return the agents."""
        while self.events and self.events[0][0] < seconds:
            now, _, happen = heapq.heappop(self.events)
            happen(now)
            if self.queue and not self.busy:
                self._serve(now)
        return self.callers

    def _push(self, when: float, happen: Callable[[float], None]) -> None:
        heapq.heappush(self.events, (when, next(self._number), happen))

    def _ask(self, now: float, caller: Caller) -> None:
        self._wait(now, caller, patient_seconds(SETTINGS, caller.unanswered), HELLO, self._request)

    def _request(self, now: float, caller: Caller) -> None:
        self._wait(now, caller, SETTINGS.answer_seconds, CERTIFICATES, self._issued)

    def _issued(self, now: float, caller: Caller) -> None:
        caller.served = now

    def _wait(
        self,
        now: float,
        caller: Caller,
        patience: float,
        work: float,
        then: Callable[[float, Caller], None],
    ) -> None:
        caller.question += 1
        question = caller.question
        self.queue.append((work, caller, question, then))
        self._push(now + patience, lambda now: self._late(now, caller, question))

    def _late(self, now: float, caller: Caller, question: int) -> None:
        if question != caller.question:
            return
        caller.question += 1
        caller.unanswered += 1
        if caller.ends <= now:
            caller.state = schedule.withdrawn(caller.state)
        caller.state = schedule.failed(caller.state, LATE, draw=self.draw.random(), now=at(now))
        self._push(now + caller.retry, lambda now: self._ask(now, caller))

    def _serve(self, now: float) -> None:
        work, caller, question, then = self.queue.popleft()
        self.busy = True

        def done(now: float) -> None:
            self.busy = False
            if question == caller.question:
                caller.question += 1
                then(now, caller)

        self._push(now + (work if question == caller.question else GONE), done)


@pytest.mark.parametrize("seed", range(3))
def test_after_an_outage_of_half_a_lifetime_nobodys_certificate_expires(seed: int) -> None:
    callers = Herd(LIFETIME / 2, seed).play(LIFETIME)
    assert [one for one in callers if one.expired] == []


@pytest.mark.parametrize("seed", range(3))
def test_it_catches_up_even_if_every_certificate_has_expired(seed: int) -> None:
    callers = Herd(1.1 * LIFETIME, seed).play(LIFETIME)
    assert [one for one in callers if one.served is None] == []
