"""When to renew, retry and withdraw: the decisions of rotation, without a clock or a socket.

Owns the state of one identity's rotation and :func:`decide`: state and ``now`` in, the next action
out. Invariants: a certificate is renewed between 40 and 50 % of the time from receipt to not-after
(never counted from not-before: authorities backdate it), of which no more counts than was asked
for; jitter is drawn once per certificate and only makes the renewal earlier; a failed renewal
changes nothing about the present certificate; what has expired is withdrawn before anything else is
done.

Wall time says when a certificate ends, because peers use it. It can be stepped, and monotonic
time stands still while a guest is suspended: a renewal is due as soon as either wall time or
boottime says so, so that a clock that was set back does not let a certificate grow old. A
certificate that is not valid yet, because it came while the clocks were ahead, is renewed at once:
peers refuse it.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sds.backoff import HOPELESS, QUICK, Backoff
from sds.clock import elapsed
from sds.reasons.authority import NO_ANSWER

if TYPE_CHECKING:
    from datetime import datetime

    from sds.clock import Instant
    from sds.errors import SdsError

EARLIEST: Final = 0.40
"""No renewal is due before this part of a certificate's time has passed, if no clock was set."""
LATEST: Final = 0.50
"""Every renewal is due once this part of a certificate's time has passed."""
BATCH_WINDOW: Final = 0.02
"""Part of a certificate's time for which a renewal may wait for others to share its request."""
MAX_BATCH_WINDOW_SECONDS: Final = 1.0
RETRY_GAP: Final = 0.03
"""No gap between two attempts is longer than this part of a certificate's time."""
LAST_GAP: Final = 1 / 8
"""Nor is a gap longer than this part of the time that is left, so that many attempts fit in."""
UNANSWERED_RETRY_GAP: Final = 0.15
UNANSWERED_LAST_GAP: Final = 1 / 2
"""The same two bounds while the authority answers nobody in time, of what exceeds a minute. It may
have more to do than it can, and every attempt may cost it a handshake. The less time is left, the
shorter the gap, so those whose certificates end first go first (docs/performance.md, "The authority
at scale")."""
_LAST_MINUTE: Final = 60.0
URGENT: Final = 0.25
"""A renewal goes before the early ones if less than this part of its certificate's time is left."""
MAX_WAITING_GAP_SECONDS: Final = QUICK.longest
"""No gap between two attempts is longer than this while a workload has no certificate."""
MAX_HELD_GAP_SECONDS: Final = 300.0
"""No gap between two attempts is longer than this while a workload has one."""
MAX_WAITING_UNANSWERED_SECONDS: Final = 60.0
MAX_HELD_UNANSWERED_SECONDS: Final = 600.0
"""The same two bounds while the authority answers nobody in time."""
_REFUSED_GAP: Final = 0.10
_REFUSED_SECONDS: Final = (HOPELESS.first, HOPELESS.longest)


class Urgency(enum.Enum):
    """How urgent a request is: who waits for its answer."""

    WAITING = "waiting"
    """A workload has no certificate, or one that ends soon."""
    EARLY = "early"
    """An early renewal, which may wait a moment for others."""
    AHEAD = "ahead"
    """A certificate for a caller that may come; it waits until nobody else waits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The certificate that is served now.

    Attributes:
        received: when the authority's answer arrived.
        valid_until: the end of the chain's validity (the earliest not-after in it).
        valid_from: the beginning of the chain's validity (the latest not-before in it).
        jitter: drawn once, from 0 (renew as late as allowed) up to 1 (as early as allowed).
        asked: the seconds for which it was requested. An authority may give more, and a certificate
            of years would not be renewed for years, so it is renewed as if it had these.
    """

    received: Instant
    valid_until: datetime
    valid_from: datetime
    jitter: float
    asked: float = math.inf

    @property
    def span(self) -> float:
        """Return the seconds from receipt to the end; 0 if the certificate came too late."""
        return max(0.0, (self.valid_until - self.received.wall).total_seconds())

    @property
    def renew_after(self) -> float:
        """Return the seconds from receipt to the renewal."""
        span = min(self.span, self.asked)
        latest = LATEST * span - batch_window(span)
        return latest - self.jitter * (latest - EARLIEST * span)

    def age(self, now: Instant) -> float:
        """Return the seconds since receipt, by whichever clock shows more."""
        return elapsed(self.received, now)

    def left(self, now: Instant) -> float:
        """Return the seconds of wall time until the certificate ends."""
        return (self.valid_until - now.wall).total_seconds()

    def is_premature(self, now: Instant) -> bool:
        """Say whether the certificate is not valid yet: it came while the clocks were ahead."""
        return now.wall < self.valid_from


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """The last failed attempt since the last success.

    Attributes:
        error: why the attempt failed.
        attempts: how many failed in a row.
        at: when the last one failed.
        retry_seconds: how long after that the next one starts.
    """

    error: SdsError
    attempts: int
    at: Instant
    retry_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Everything that one identity's rotation remembers.

    Attributes:
        lifetime: the seconds for which certificates are requested.
        lease: of the present certificate, or None.
        failure: the last failed attempt since the last success.
    """

    lifetime: float
    lease: Lease | None = None
    failure: Failure | None = None

    @property
    def span(self) -> float:
        """Return the seconds that the present certificate has, or the next one will have."""
        return self.lease.span if self.lease is not None else self.lifetime


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask for a new certificate now."""

    urgency: Urgency


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Stop serving the certificate: it has expired."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do for this many seconds, unless a clock is set or the guest is suspended."""

    seconds: float


Action = Ask | Withdraw | Wait


def decide(state: State, now: Instant) -> Action:
    """Return the next action for one identity."""
    lease = state.lease
    if lease is not None and lease.left(now) <= 0:
        return Withdraw()
    if state.failure is not None:
        # Boottime: a suspended guest that wakes up retries at once.
        pause = state.failure.retry_seconds - (now.boottime - state.failure.at.boottime)
        if pause > 0:
            return Wait(pause if lease is None else min(pause, lease.left(now)))
    if lease is None or lease.is_premature(now):
        return Ask(Urgency.WAITING)
    until_due = lease.renew_after - lease.age(now)
    if until_due > 0:
        return Wait(min(until_due, lease.left(now)))
    urgent = lease.left(now) < URGENT * lease.span
    return Ask(Urgency.WAITING if urgent else Urgency.EARLY)


def received(state: State, lease: Lease) -> State:
    """Return the state after a success."""
    return State(lifetime=state.lifetime, lease=dataclasses.replace(lease, asked=state.lifetime))


def withdrawn(state: State) -> State:
    """Return the state after an expired certificate was withdrawn; failures still count."""
    return State(lifetime=state.lifetime, failure=state.failure)


def failed(state: State, error: SdsError, *, draw: float, now: Instant) -> State:
    """Return the state after a failed attempt; the present certificate stays.

    Args:
        state: the state before.
        error: why it failed. If it is not retriable, retries are slower, because a person must
            change something first, but they do not end.
        draw: jitter, from 0 to 1. Identities that failed together share it, so that their next
            attempt is one request again.
        now: when it failed.
    """
    attempts = 1 + (state.failure.attempts if state.failure is not None else 0)
    pause = _backoff(state, error).seconds(attempts, draw=draw)
    if state.lease is not None and error.retriable:
        left = state.lease.left(now)
        most = LAST_GAP * left
        if unanswered(error):
            most = max(most, UNANSWERED_LAST_GAP * (left - _LAST_MINUTE))
        pause = min(pause, max(QUICK.first, most))
    failure = Failure(error=error, attempts=attempts, at=now, retry_seconds=pause)
    return State(lifetime=state.lifetime, lease=state.lease, failure=failure)


def hurried(state: State) -> State:
    """Return the state after a change that may cure the failure: to ask again at once."""
    if state.failure is None:
        return state
    failure = dataclasses.replace(state.failure, attempts=0, retry_seconds=0.0)
    return dataclasses.replace(state, failure=failure)


def due(state: State) -> State:
    """Return the state after a change that may cure the failure, if many such changes may follow.

    It asks at once; if that fails too, the pause is as long as after the failures before.
    """
    if state.failure is None:
        return state
    return dataclasses.replace(state, failure=dataclasses.replace(state.failure, retry_seconds=0.0))


def _backoff(state: State, error: SdsError) -> Backoff:
    span = state.span
    if error.retriable:
        held, waiting, part = MAX_HELD_GAP_SECONDS, MAX_WAITING_GAP_SECONDS, RETRY_GAP * span
        if unanswered(error):
            held, waiting = MAX_HELD_UNANSWERED_SECONDS, MAX_WAITING_UNANSWERED_SECONDS
            part = max(part, UNANSWERED_RETRY_GAP * (span - _LAST_MINUTE))
        longest = min(part, waiting if state.lease is None else held)
        return Backoff(first=min(QUICK.first, longest), longest=longest)
    shortest, most = _REFUSED_SECONDS
    refused = min(max(_REFUSED_GAP * span, shortest), most)
    return Backoff(first=refused, longest=refused)


def unanswered(error: SdsError) -> bool:
    """Say whether the authority took too long, and may have too much to do."""
    return error.reason == NO_ANSWER


def batch_window(span: float) -> float:
    """Return the seconds that an early renewal waits for others to share its request."""
    return min(BATCH_WINDOW * span, MAX_BATCH_WINDOW_SECONDS)
