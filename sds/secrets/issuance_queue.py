"""Requests to the authority: many identities share one.

Owns the queue in front of the authority. Invariants: identities that ask within a short window
share one request and so one piece of evidence, up to a number of items and bytes; a request for a
first certificate overtakes early renewals that wait, and a request ahead of need waits until nobody
else waits; keys are made off the event loop, fresh for every request; only what was verified
against the key and the identity leaves this module; everybody who asks gets an answer, whatever the
authority's client raises; a lane that ends starts again; after a request that the authority did not
answer in time, one request at a time asks for everybody.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from sds import threads
from sds.backoff import uniform
from sds.errors import (
    AuthorityAnswerError,
    AuthorityUnavailableError,
    SdsError,
    without_frames,
)
from sds.exchange.item import CertificateItem, IssuedChain
from sds.faults import report
from sds.identity import KeyType
from sds.pki import generate_private_key, make_csr, private_key_pem, verify_svid_chain
from sds.reasons.authority import NO_ANSWER
from sds.secrets import schedule
from sds.secrets.key_memory import SecretBytes, wipe
from sds.secrets.schedule import Urgency
from sds.supervision import is_cancelled, supervised
from sds.untrusted_input import words_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sds.authority.port import Authority, Issuance
    from sds.clock import Clock, Instant
    from sds.identity import Identity
    from sds.pki import PrivateKey, VerifiedChain

MAX_ITEMS: Final = 1000
"""The most items in one request (``CertificateRequest.items``)."""
_MOST_BYTES: Final = 2 * 1024 * 1024
"""The most bytes of all items in one request, as they are estimated: authorities take messages of
4 MiB by default, and evidence and a policy come along. Owners of Services choose how many names the
pods of a node have, and a request that is too large is refused as a whole."""
_ITEM_BYTES: Final = 2048
"""The bytes of an item without its names: with an RSA key of 4096 bits, its CSR has 1.3 KiB."""
_NAME_BYTES: Final = 8
_AHEAD_ITEMS: Final = 32
"""The most items in one request ahead of need; a caller that comes meanwhile waits for no more."""
_CHUNK: Final = 32
"""How many chains are verified before the first of them is handed on."""
_SLOW_KEYS_OF: Final = {
    Urgency.WAITING: threads.SLOW_KEYS_OF_NEWCOMERS,
    Urgency.EARLY: threads.SLOW_KEYS,
    Urgency.AHEAD: threads.SLOW_KEYS_OF_NEWCOMERS,
}
_SLOW_KEYS: Final = frozenset({KeyType.RSA_2048, KeyType.RSA_3072, KeyType.RSA_4096})


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """A verified certificate and its key.

    Attributes:
        verified: the chain.
        private_key: PKCS#8 PEM; the receiver wipes it.
        received: when the authority's answer arrived.
    """

    verified: VerifiedChain
    private_key: SecretBytes = field(repr=False)
    received: Instant


@dataclass(frozen=True, slots=True, kw_only=True)
class NoCredentials:
    """The answer if there is no certificate.

    Attributes:
        error: why there is none.
        draw: jitter for the retry, the same for all that failed together.
        shared: whether the whole request failed, and not this identity alone.
    """

    error: SdsError
    draw: float
    shared: bool = False


@dataclass(slots=True, kw_only=True, eq=False)
class _Request:
    identity: Identity
    urgency: Urgency
    window: float
    answer: asyncio.Future[Credentials | NoCredentials]
    key: PrivateKey | None = field(repr=False, default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answered:
    """The authority's answer to a batch, and when it came."""

    issuance: Issuance
    received: Instant
    draw: float


class _Lane:
    """The requests of one urgency."""

    def __init__(self) -> None:
        self.pending: dict[_Request, None] = {}
        """In the order in which they came; thousands may be answered, or leave, at one moment."""
        self.arrived = asyncio.Event()
        self.quiet = asyncio.Event()
        """Set while nobody waits in this lane."""
        self.quiet.set()


class IssuanceQueue:
    """Collects requests and sends them; :meth:`ask` returns only while :meth:`run` runs.

    Args:
        authority: the authority that is asked.
        clock: gives the time at which chains must be valid, and waits.
        on_roots: gets the roots of each answer before any certificate of that answer is handed on.
        attempt_seconds: how long the authority may take before it counts as unavailable.
        draw: gives jitter, uniform in [0, 1).
    """

    def __init__(
        self,
        authority: Authority,
        clock: Clock,
        *,
        on_roots: Callable[[Sequence[bytes], Instant], None],
        attempt_seconds: float,
        draw: Callable[[], float] = uniform,
    ) -> None:
        self._authority = authority
        self._clock = clock
        self._on_roots = on_roots
        self._attempt_seconds = attempt_seconds
        self._draw = draw
        self._lanes = {urgency: _Lane() for urgency in Urgency}
        self._making: dict[_Request, None] = {}
        """Requests whose keys are still being made."""
        self.unanswered = False
        """Whether the authority did not answer the last request in time."""
        self._turn = asyncio.Lock()

    async def ask(
        self, identity: Identity, urgency: Urgency, *, window: float
    ) -> Credentials | NoCredentials:
        """Get a certificate for a fresh key.

        Args:
            identity: the identity of the certificate.
            urgency: ``WAITING`` goes at once; ``EARLY`` waits for others; ``AHEAD`` waits until
                nobody else waits.
            window: the longest wait for others, in seconds.
        """
        request = _Request(
            identity=identity,
            urgency=urgency,
            window=window,
            answer=asyncio.get_running_loop().create_future(),
        )
        if identity.key_type in _SLOW_KEYS:
            # This takes seconds, and no other request waits for it.
            self._making[request] = None
            try:
                make = _SLOW_KEYS_OF[urgency].run
                request.key = await make(generate_private_key, identity.key_type)
            finally:
                del self._making[request]
        self._queue(request)
        try:
            return await request.answer
        finally:
            for lane in self._lanes.values():
                lane.pending.pop(request, None)

    def hurry(self, identity: Identity) -> None:
        """Move a request ahead of need to the front, because somebody waits for it now."""
        ahead = self._lanes[Urgency.AHEAD].pending
        for request in [each for each in (*ahead, *self._making) if each.identity == identity]:
            if request.urgency is Urgency.AHEAD:
                request.urgency = Urgency.WAITING
                if request in ahead:
                    del ahead[request]
                    self._queue(request)

    def _queue(self, request: _Request) -> None:
        lane = self._lanes[request.urgency]
        lane.pending[request] = None
        lane.quiet.clear()
        lane.arrived.set()

    async def run(self) -> None:
        """Serve every lane until cancelled."""
        async with asyncio.TaskGroup() as group:
            for urgency, lane in self._lanes.items():
                serve = functools.partial(self._serve, urgency, lane)
                group.create_task(
                    supervised("issuance", serve, clock=self._clock),
                    name=f"issuance {urgency.value}",
                )

    async def _serve(self, urgency: Urgency, lane: _Lane) -> None:
        if lane.pending:  # the lane ended and starts again
            lane.arrived.set()
        most = MAX_ITEMS
        while True:
            await lane.arrived.wait()
            if urgency is Urgency.AHEAD:
                most = _AHEAD_ITEMS
                await self._lanes[Urgency.WAITING].quiet.wait()
            windows = [request.window for request in lane.pending]
            early = urgency is Urgency.EARLY
            # Even 0 seconds let every identity ask that becomes ready in this turn of the loop.
            await self._clock.sleep(min(windows, default=0.0) if early else 0.0)
            # An authority that has too much to do gets one request, and not one for each lane.
            async with self._turn if self.unanswered else contextlib.nullcontext():
                await self._next(lane, most)

    async def _next(self, lane: _Lane, most: int) -> None:
        batch = _fitting(lane.pending, most)
        for request in batch:
            del lane.pending[request]
        if not lane.pending:
            lane.arrived.clear()
        try:
            if batch:
                await self._batch(batch)
        finally:
            # Nobody may wait forever for a lane that ended in between.
            ended = AuthorityUnavailableError("the request ended without an answer")
            _answer_all(batch, NoCredentials(error=ended, draw=self._draw(), shared=True))
            if not lane.pending:
                lane.quiet.set()

    async def _batch(self, batch: Sequence[_Request]) -> None:
        """Send one request; every answer is set when this returns or raises, whatever happened."""
        draw = self._draw()
        try:
            await self._ask_for(batch, draw)
            self.unanswered = False
        except SdsError as error:
            failed = NoCredentials(error=without_frames(error), draw=draw, shared=True)
            _answer_all(batch, failed)
            self.unanswered = schedule.unanswered(error)
            if self.unanswered:
                self._fail_those_that_wait(failed)
        except (Exception, asyncio.CancelledError) as error:
            # An error that a library raises, or a cancellation that it makes, fails this one
            # request. A cancellation of this task itself takes effect after the answers.
            if not is_cancelled():
                report("issuance", error)
            failure = AuthorityUnavailableError(
                f"the authority's client failed: {type(error).__name__}: {words_of(error)}"
            )
            _answer_all(batch, NoCredentials(error=failure, draw=draw, shared=True))
            if is_cancelled():
                raise

    def _fail_those_that_wait(self, failed: NoCredentials) -> None:
        """Give this answer to all that wait: the authority would not answer them in time either."""
        for lane in self._lanes.values():
            waiting, lane.pending = lane.pending, {}
            lane.arrived.clear()
            lane.quiet.set()
            _answer_all(waiting, failed)

    async def _ask_for(self, batch: Sequence[_Request], draw: float) -> None:
        keys, items = await threads.ROTATION.run(_prepare, batch)
        issuance = await self._issue(items)
        answered = _Answered(issuance=issuance, received=self._clock.now(), draw=draw)
        self._on_roots(issuance.roots, answered.received)
        for start in range(0, len(batch), _CHUNK):
            part = slice(start, start + _CHUNK)
            outcomes = issuance.outcomes[part]
            answers = await threads.ROTATION.run(
                _verify, batch[part], keys[part], outcomes, answered
            )
            for request, answer in zip(batch[part], answers, strict=True):
                _answer(request, answer)

    async def _issue(self, items: Sequence[CertificateItem]) -> Issuance:
        try:
            async with asyncio.timeout(self._attempt_seconds):
                issuance = await self._authority.issue(items)
        except TimeoutError as error:
            raise AuthorityUnavailableError(
                f"the authority did not answer within {self._attempt_seconds:g} s",
                reason=NO_ANSWER,
            ) from error
        if len(issuance.outcomes) != len(items):
            raise AuthorityAnswerError(
                f"the authority gave {len(issuance.outcomes)} answers to {len(items)} items"
            )
        return issuance


def _fitting(pending: Iterable[_Request], most: int) -> list[_Request]:
    """Return the first of those that wait, as many as fit into one request."""
    batch: list[_Request] = []
    size = 0
    for request in itertools.islice(pending, most):
        size += _estimated_bytes(request.identity)
        if batch and size > _MOST_BYTES:
            break
        batch.append(request)
    return batch


def _estimated_bytes(identity: Identity) -> int:
    """Return at least how many bytes an item has; each name is in the CSR and beside it."""
    names = (str(identity.spiffe_id), *identity.dns_names)
    return _ITEM_BYTES + 2 * sum(len(name) + _NAME_BYTES for name in names)


def _prepare(batch: Sequence[_Request]) -> tuple[list[PrivateKey], list[CertificateItem]]:
    """Make keys and CSRs, in the order of the batch (in a thread)."""
    keys = [request.key or generate_private_key(request.identity.key_type) for request in batch]
    items = [
        CertificateItem(identity=request.identity, csr=make_csr(key, request.identity))
        for request, key in zip(batch, keys, strict=True)
    ]
    for request in batch:
        request.key = None
    return keys, items


def _verify(
    batch: Sequence[_Request],
    keys: Sequence[PrivateKey],
    outcomes: Sequence[IssuedChain | SdsError],
    answered: _Answered,
) -> list[Credentials | NoCredentials]:
    """Check part of an answer (in a thread)."""
    return [
        _verified(request.identity, key, outcome, answered)
        for request, key, outcome in zip(batch, keys, outcomes, strict=True)
    ]


def _verified(
    identity: Identity, key: PrivateKey, outcome: IssuedChain | SdsError, answered: _Answered
) -> Credentials | NoCredentials:
    if not isinstance(outcome, IssuedChain):
        return NoCredentials(error=without_frames(outcome), draw=answered.draw)
    try:
        verified = verify_svid_chain(
            outcome.chain,
            roots=answered.issuance.roots,
            identity=identity,
            public_key=key.public_key(),
            now=answered.received.wall,
        )
    except SdsError as error:
        return NoCredentials(error=without_frames(error), draw=answered.draw)
    pem = private_key_pem(key)
    private_key = SecretBytes(pem)
    wipe(pem)
    return Credentials(verified=verified, private_key=private_key, received=answered.received)


def _answer_all(batch: Iterable[_Request], answer: NoCredentials) -> None:
    """Give this answer to those that have none yet."""
    for request in batch:
        _answer(request, answer)


def _answer(request: _Request, answer: Credentials | NoCredentials) -> None:
    """Hand the answer on, or wipe it if nobody waits for it any more."""
    if not request.answer.done():
        request.answer.set_result(answer)
    elif isinstance(answer, Credentials):
        answer.private_key.wipe()
