"""Divides the event loop's time between owners of connections.

Everything that a client causes runs as a job of its owner (see :mod:`sds.transport.budget`): a
bounded piece of what the client sent, or one step of a handler. Owns the order of these jobs.
Invariants: in one turn of the loop, all jobs together take about :data:`TURN_SECONDS` of processor
time, and so do all steps, even if one event wakes thousands of handlers (a process exits, deadlines
end together); accepting takes :data:`ACCEPT_SECONDS`, however many sockets listen; owners that wait
take turns, one job each, and so do the connections of an owner; an owner that used up its share of
the processor waits until it has some again, and nobody else waits for it.

Time is measured by the monotonic clock, because reading the thread's processor time costs ten times
as much. On a busy machine this also counts the time of others, so turns become shorter, not longer.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from contextvars import Context
from typing import TYPE_CHECKING, Final, TypeAlias

from sds.faults import report
from sds.transport.one_per_loop import OnePerLoop

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Hashable

    from sds.transport.budget import Account, Owner

    Job: TypeAlias = Callable[[], bool]
    """Does a bounded piece of work, and says whether more is left."""

BUFFER_BYTES: Final = 128 * 1024
TURN_SECONDS: Final = 0.003
"""Processor time for all jobs in one turn of the loop."""
JOBS_SECONDS: Final = 0.001
"""Of that, what jobs have in any case: where each step of a handler takes longer than a turn, as
where certificates are signed, clients would otherwise be read one at a time between two steps."""
STEP_SECONDS: Final = 0.0005
"""Processor time after which a handler that goes on reading or writing waits for its turn."""
ACCEPT_SECONDS: Final = 0.002
"""Time for accepting on all sockets together, in one turn of the loop."""
_UNNOTICED_SECONDS: Final = 0.0005
"""Time too short to matter for any turn."""
_LEAST_REST_SECONDS: Final = 0.001
_NEVER: Final = float("inf")


class Turns(OnePerLoop):
    """The turns of one event loop; ``of`` gives them."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._clock = time.perf_counter
        self._jobs: dict[Account, OrderedDict[Hashable, deque[Job]]] = {}
        """Waiting jobs, by the account that pays and by connection."""
        self._row: deque[Account] = deque()
        """Accounts that have jobs, without those that used up their share."""
        self._spent = 0.0
        """Seconds of this turn that were used, or promised to steps of handlers."""
        self._stepped = 0.0
        """Seconds that steps of handlers took since the last turn."""
        self.is_over = False
        """Whether steps of handlers took all of this turn, so that the next one waits."""
        self._step_began = _NEVER
        self._accepted = 0.0
        """Seconds that accepting took since the last turn."""
        self._turn_is_due = False
        self._context = Context()
        """Of every turn: an empty one, not that of the handler which happened to need a turn."""
        self.buffer = bytearray(BUFFER_BYTES)
        """The buffer into which all sockets of this loop read."""

    def now(self) -> float:
        """Read the clock by which turns are measured, in seconds."""
        return self._clock()

    # --- accepting ------------------------------------------------------------------------------

    def accepted(self, seconds: float) -> None:
        """Count the time of a connection that was accepted, on any socket, or turned away."""
        self._accepted += seconds
        self._expect_turn()

    @property
    def accepts_no_more(self) -> bool:
        """Say whether accepting used its part of this turn, so that a socket takes one at most."""
        return self._accepted >= ACCEPT_SECONDS

    # --- jobs -----------------------------------------------------------------------------------

    def run(self, owner: Owner, connection: Hashable, job: Job) -> None:
        """Run a job now, if this turn has time and nothing of the owner waits; else in its turn.

        The job is repeated until it says that nothing is left.
        """
        account = owner.account
        if self._spent < TURN_SECONDS and account not in self._jobs:
            now = self._loop.time()
            if account.processor.rest_seconds(now) <= 0 and not self._do(account, job, now):
                return
        self.queue(owner, connection, job)

    def queue(self, owner: Owner, connection: Hashable, job: Job) -> None:
        """Run a job when it is the turn of its owner and its connection."""
        account = owner.account
        lanes = self._jobs.get(account)
        if lanes is None:
            lanes = self._jobs[account] = OrderedDict()
            self._row.append(account)
        lane = lanes.get(connection)
        if lane is None:
            lane = lanes[connection] = deque()
        lane.append(job)
        if not self._turn_is_due:
            self._expect_turn()

    def move(self, connection: Hashable, before: Account, owner: Owner) -> None:
        """What waits of a connection waits for its owner's turn now, and not for strangers'."""
        lanes = self._jobs.get(before)
        if lanes is None or owner.account is before:
            return
        for job in lanes.pop(connection, ()):
            self.queue(owner, connection, job)

    def _do(self, account: Account, job: Job, now: float) -> bool:
        outer, self._step_began = self._step_began, self._clock()
        began = self._step_began
        try:
            return job()
        except Exception as error:  # noqa: BLE001  the boundary between one client and the loop
            report("connection", error)
            return False
        finally:
            self._step_began = outer
            took = self._clock() - began
            self._spend(took)
            account.processor.use(took, now)

    def _spend(self, seconds: float) -> None:
        """Count seconds of this turn that were used or promised."""
        self._spent += seconds
        if self._spent > _UNNOTICED_SECONDS and not self._turn_is_due:
            self._expect_turn()

    def _expect_turn(self) -> None:
        """Expect a turn; callers that are called for each message look first whether one is due."""
        if not self._turn_is_due:
            self._turn_is_due = True
            self._loop.call_soon(self._turn, context=self._context)

    def _turn(self) -> None:
        self._turn_is_due = False
        self._accepted = 0.0
        self._spent, self._stepped = self._stepped, 0.0
        self.is_over = False
        now = self._loop.time()
        # Jobs have some time in every turn, so that steps of handlers cannot hold up the rest.
        most = max(TURN_SECONDS, self._spent + JOBS_SECONDS)
        while self._row and self._spent < most:
            account = self._row.popleft()
            if not self._jobs[account]:  # what waited was moved
                del self._jobs[account]
                continue
            rest = account.processor.rest_seconds(now)
            if rest > 0:
                self._loop.call_later(max(rest, _LEAST_REST_SECONDS), self._rested, account)
                continue
            self._next_job(account, now)
        if self._row:
            self._expect_turn()

    def _rested(self, account: Account) -> None:
        self._row.append(account)
        self._expect_turn()

    def _next_job(self, account: Account, now: float) -> None:
        """Run one job, and put its connection and its owner at the end of their queues."""
        lanes = self._jobs[account]
        connection, lane = next(iter(lanes.items()))
        job = lane.popleft()
        if self._do(account, job, now):
            lane.append(job)
        if lane:
            lanes.move_to_end(connection)
        else:
            del lanes[connection]
        if lanes:
            self._row.append(account)
        else:
            del self._jobs[account]

    # --- steps of handlers ----------------------------------------------------------------------

    def promise(self, owner: Owner) -> None:
        """Reserve time for a step of the owner's handler in the next turn of the loop."""
        self._spend(owner.account.step_seconds)

    def wake(self, owner: Owner, connection: Hashable, future: asyncio.Future[None]) -> None:
        """Let the handler that waits for ``future`` go on: now, or in its turn.

        The caller is a job of the owner, so it is the handler's turn too while the turn has time.
        """
        if self._spent >= TURN_SECONDS:
            self.later(owner, connection, future)
        elif not future.done():
            future.set_result(None)
            self._spend(owner.account.step_seconds)

    def later(self, owner: Owner, connection: Hashable, future: asyncio.Future[None]) -> None:
        """Let the handler that waits for ``future`` go on in its next turn."""
        self.queue(owner, connection, self._waking(owner, future))

    def _waking(self, owner: Owner, future: asyncio.Future[None]) -> Job:
        def job() -> bool:
            if not future.done():
                future.set_result(None)
                self.promise(owner)
            return False

        return job

    def step_begins(self) -> None:
        """Note that a handler runs until :meth:`step_ends`."""
        self._step_began = self._clock()

    def step_ends(self, owner: Owner) -> None:
        """Note that the handler waits or is done, and let its owner pay for the step."""
        took = self._clock() - self._step_began
        self._step_began = _NEVER
        self._stepped += took
        self.is_over = self._stepped >= TURN_SECONDS
        if self._stepped > _UNNOTICED_SECONDS and not self._turn_is_due:
            self._expect_turn()
        owner.account.stepped(took, self._loop.time())

    def step_is_long(self) -> bool:
        """Say whether the handler or the job that runs should leave the rest to its next turn."""
        return self._clock() - self._step_began > STEP_SECONDS
