"""Rotation: keeps every wanted identity's certificate fresh in the store.

Owns one task for each identity and carries out what :mod:`sds.secrets.schedule` (when) and
:mod:`sds.secrets.roots_ledger` (which roots) decide. Invariants: it is the store's only writer; it
stores only what it has verified; a failed renewal takes nothing away; a root is in the bundle, and
every subscriber has ACKed it or a bounded wait for the ACKs is over, before the first leaf under it
is stored; keys of retired versions are wiped; a failed task ends nothing else and starts again.

A worked example, with a lifetime of one hour:

====== ===========================================================================================
time   what happens
====== ===========================================================================================
0:00   ``ensure(web)``: ``decide`` says ``Ask(WAITING)``. The queue waits for nobody else, makes a
       key and a CSR, and asks the authority.
0:00   ``Credentials`` come back. Their root is the first of the bundle, so nobody has to ACK it.
       ``put_svid`` makes the SVID version ``…-2``; serving pushes it.
0:24   At 40 to 50 % of what was left at receipt (by jitter), ``decide`` says ``Ask(EARLY)``. The
       queue waits a second for other renewals, which share one request and its evidence.
0:24   The authority is unreachable. The SVID stays. The next attempt is due after 0.1 s, then 0.2
       s, … at most 3 % of the lifetime; the first answer to anybody wakes all that wait for one.
0:25   ``Credentials`` under a *new* root. It goes into the bundle first; the new SVID waits until
       every subscriber has ACKed that bundle (at most ``ack_wait``) and the root has settled, so
       that peers on other nodes know it too.
0:27   ``put_svid``: version ``…-5``. The old key retires: it is wiped once every subscriber has
       ACKed ``…-5``, at the latest after ten seconds.
1:25   The old root leaves the bundle: no leaf under it can be valid any more.
====== ===========================================================================================
"""

from __future__ import annotations

import asyncio
import functools
import logging
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

from sds.backoff import sleep_unless, uniform
from sds.secrets import schedule
from sds.secrets.clock_watch import watch_clock
from sds.secrets.held_identity import HeldIdentity
from sds.secrets.identity_status import Condition, IdentityStatus, reason_of
from sds.secrets.issuance_queue import Credentials, IssuanceQueue, NoCredentials
from sds.secrets.retirement import RetiredKeys
from sds.secrets.root_rollover import RootRollover
from sds.secrets.roots_poll import poll_roots, roots_source
from sds.secrets.rotation_settings import RotationSettings
from sds.secrets.schedule import Ask, Lease, State, Urgency, Wait, Withdraw
from sds.secrets.store import Svid
from sds.supervision import supervised

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sds.authority.port import Authority
    from sds.clock import Clock, Instant
    from sds.errors import SdsError
    from sds.identity import Identity, TrustDomain
    from sds.secrets.store import SecretStore

_LOGGER = logging.getLogger(__name__)


class RotationObserver(Protocol):
    """Is told of failures, to count them."""

    def renewal_failed(self, error: SdsError) -> None:
        """Note that one attempt for one identity failed."""
        ...


class _Deaf:
    def renewal_failed(self, error: SdsError) -> None:
        """Do nothing: nobody counts."""


class Rotation:
    """Keeps the certificates of all wanted identities fresh; nothing happens without :meth:`run`.

    Args:
        trust_domain: the trust domain whose roots the authority gives.
        store: takes the secrets.
        authority: is asked for certificates. If it is a :class:`sds.secrets.roots_poll.RootsSource`
            too, new roots are noticed before the next renewal.
        clock: time.
        settings: bounds in time.
        observer: is told of failures.
        draw: gives jitter, uniform in [0, 1).
    """

    def __init__(
        self,
        *,
        trust_domain: TrustDomain,
        store: SecretStore,
        authority: Authority,
        clock: Clock,
        settings: RotationSettings | None = None,
        observer: RotationObserver | None = None,
        draw: Callable[[], float] = uniform,
    ) -> None:
        self._store = store
        self._authority = authority
        self._clock = clock
        self._settings = settings = settings if settings is not None else RotationSettings()
        self._observer: RotationObserver = observer if observer is not None else _Deaf()
        self._draw = draw
        self._managed: dict[Identity, HeldIdentity] = {}
        self._blocked: set[Identity] = set()
        """Identities whose last attempt failed because of the authority and not of themselves."""
        self._retired = RetiredKeys()
        self._group: asyncio.TaskGroup | None = None
        self._roots = RootRollover(
            trust_domain,
            store,
            clock,
            ack_seconds=settings.ack_wait.total_seconds(),
            settling_seconds=settings.settling.total_seconds(),
        )
        self._issuance = IssuanceQueue(
            authority,
            clock,
            on_roots=self._roots.vouched,
            attempt_seconds=settings.attempt.total_seconds(),
            draw=draw,
        )

    # --- what is wanted -------------------------------------------------------------------------

    def ensure(self, identity: Identity) -> None:
        """Keep a certificate for this identity until :meth:`release` is called as often."""
        managed = self._managed_for(identity)
        managed.wanted += 1
        if managed.wanted == 1:
            managed.changed(schedule.hurried)
            self._issuance.hurry(identity)

    def expect(self, identity: Identity) -> None:
        """Get a certificate for a caller that may come, while nobody waits for another certificate.

        It is renewed only while somebody wants it (:meth:`ensure`).
        """
        self._managed_for(identity).expected += 1

    def unexpect(self, identity: Identity) -> None:
        """Undo one :meth:`expect`; who lets go last withdraws the secret."""
        self._managed[identity].expected -= 1
        self._let_go(identity)

    def _managed_for(self, identity: Identity) -> HeldIdentity:
        """Return the identity's entry, made if it is new, with one more holder."""
        managed = self._managed.get(identity)
        if managed is None:
            state = State(lifetime=identity.lifetime.total_seconds())
            managed = self._managed[identity] = HeldIdentity(state=state)
            self._start(identity, managed)
        managed.holders += 1
        return managed

    def release(self, identity: Identity, *, resting: bool = False) -> None:
        """Undo one :meth:`ensure`; who lets go last withdraws the secret.

        Args:
            identity: what was wanted.
            resting: whether it rests (:meth:`rest`) for the holder that lets go.
        """
        if not resting:
            self._managed[identity].wanted -= 1
        self._let_go(identity)

    def _let_go(self, identity: Identity) -> None:
        managed = self._managed[identity]
        managed.holders -= 1
        if managed.holders == 0:
            del self._managed[identity]
            self._blocked.discard(identity)
            if managed.task is not None:
                managed.task.cancel()
            self._withdraw(identity)

    def rest(self, identity: Identity, *, resting: bool) -> None:
        """Keep the identity's certificate without wanting a renewal, or want it again.

        One holder says so, of what it called :meth:`ensure` for: none of its callers may have the
        identity at the moment. A pod may be deleted, and then an authority would refuse it. As long
        as another holder wants the identity, it is renewed.
        """
        managed = self._managed[identity]
        managed.wanted += -1 if resting else 1
        managed.woken.set()

    # --- what is known --------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Say whether every wanted identity has a valid certificate in the store."""
        return not any(one.lacks for one in self._managed.values())

    def status(self) -> tuple[IdentityStatus, ...]:
        """Return the state of each identity, sorted by name."""
        found = [self._status(identity, managed) for identity, managed in self._managed.items()]
        return tuple(sorted(found, key=lambda one: (str(one.identity.spiffe_id), one.rotations)))

    def _status(self, identity: Identity, managed: HeldIdentity) -> IdentityStatus:
        stored = self._store.svid(identity)
        lease, failure = managed.state.lease, managed.state.failure
        renew_at = None
        if lease is not None:
            condition: Condition = "valid"
            renew_at = lease.received.wall + timedelta(seconds=lease.renew_after)
        else:
            curable = failure is None or failure.error.retriable
            condition = "waiting" if curable else "refused"
        return IdentityStatus(
            identity=identity,
            condition=condition,
            serial=stored.svid.serial if stored else None,
            not_after=stored.svid.not_after if stored else None,
            renew_at=renew_at,
            rotations=managed.rotations,
            attempts=failure.attempts if failure else 0,
            reason=reason_of(failure.error) if failure else "",
            message=str(failure.error) if failure else "",
            wanted=managed.wanted > 0,
        )

    # --- running --------------------------------------------------------------------------------

    def may_ask(self) -> bool:
        """Return whether to ask for news, which a first certificate brings anyway."""
        if not self._managed:
            return self._settings.idle_news
        if self._blocked and self._issuance.unanswered:  # the next request asks for roots too
            return False
        return any(one.state.lease for one in self._managed.values())

    async def run(self) -> None:
        """Rotate until cancelled, and wipe every key at the end."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                # A clock that moved may cure a failure, and leave less time than its pause.
                again = functools.partial(self._ask_again, schedule.due)
                watch = functools.partial(watch_clock, self._clock, tick=self._tick, on_step=again)
                group.create_task(self._issuance.run(), name="issuance")
                group.create_task(supervised("clock watch", watch, clock=self._clock))
                if (source := roots_source(self._authority)) is not None:
                    poll = functools.partial(
                        poll_roots,
                        source,
                        self._clock,
                        lifetime=self._shortest_lifetime,
                        may_ask=self.may_ask,
                        attempt_seconds=self._settings.attempt.total_seconds(),
                        on_roots=self._take_roots,
                    )
                    group.create_task(supervised("roots", poll, clock=self._clock))
                for identity, managed in self._managed.items():
                    self._start(identity, managed)
        finally:
            self._group = None
            for stored in self._store.svids().values():
                stored.svid.private_key.wipe()
            self._retired.wipe_all()

    def _start(self, identity: Identity, managed: HeldIdentity) -> None:
        if self._group is not None:
            keep = functools.partial(self._keep, identity, managed)
            managed.task = self._group.create_task(
                supervised("rotation of an identity", keep, clock=self._clock),
                name=f"rotation {identity.spiffe_id}",
            )

    async def _keep(self, identity: Identity, managed: HeldIdentity) -> None:
        while True:
            match schedule.decide(managed.state, self._clock.now()):
                case Withdraw():
                    self._expire(identity, managed)
                case Wait(seconds):
                    await self._pause(managed, seconds)
                case Ask() if managed.idle:
                    managed.woken.clear()
                    await managed.woken.wait()
                case Ask(urgency):
                    managed.cure = None
                    if managed.wanted:
                        self._ask_along(identity, managed)
                    answer = await self._issuance.ask(
                        identity,
                        urgency if managed.wanted else Urgency.AHEAD,
                        window=schedule.batch_window(managed.state.span),
                    )
                    await self._take(identity, managed, answer)

    async def _pause(self, managed: HeldIdentity, seconds: float) -> None:
        """Sleep, until a clock is stepped or something happens that may cure a failure."""
        managed.woken.clear()
        await sleep_unless(managed.woken, self._clock, seconds)

    async def _take(
        self, identity: Identity, managed: HeldIdentity, answer: Credentials | NoCredentials
    ) -> None:
        if isinstance(answer, NoCredentials):
            self._failed(identity, managed, answer)
            return
        try:
            await self._roots.introduced(answer.verified.root, held=managed.state.lease)
        except BaseException:
            answer.private_key.wipe()
            raise
        verified = answer.verified
        if verified.valid_until <= self._clock.now().wall:
            answer.private_key.wipe()  # it ended while it waited for its root
            return
        lease = Lease(
            received=answer.received,
            valid_until=verified.valid_until,
            valid_from=verified.valid_from,
            jitter=self._draw(),
        )
        old = self._store.svid(identity)
        version = self._store.put_svid(
            Svid(
                identity=identity,
                chain=verified.chain,
                private_key=answer.private_key,
                key_id=verified.key_id,
                serial=verified.serial,
                not_before=verified.not_before,
                not_after=verified.valid_until,
                received_at=answer.received.wall,
                root=verified.root,
            )
        )
        if old is not None:
            self._retired.add(old.svid, self._clock.now())
        self._roots.served(verified, asked_until=answer.received.wall + identity.lifetime)
        managed.state = schedule.received(managed.state, lease)
        managed.rotations += 1
        self._blocked.discard(identity)
        self._answered()
        _LOGGER.info(
            "%s has certificate %x",
            identity.spiffe_id,
            verified.serial,
            extra={
                "spiffe_id": str(identity.spiffe_id),
                "serial": f"{verified.serial:x}",
                "not_after": verified.valid_until.isoformat(),
                "version": version,
            },
        )

    def changed(self) -> None:
        """Ask again now: something changed that may cure failures (policy, configuration)."""
        self._ask_again(schedule.hurried)

    def _ask_along(self, identity: Identity, asking: HeldIdentity) -> None:
        """Let identities that wait after a failure ask together with this one.

        So they share one request, and do not each ask an authority that is gone or has too much to
        do. One that has no certificate may come at any time, and takes only others like it along.
        """
        first = asking.state.lease is None
        others = self._blocked - {identity} if first or identity in self._blocked else ()
        for other in others:
            managed = self._managed[other]
            if managed.wanted and not (first and managed.state.lease):
                self._blocked.discard(other)
                managed.state = schedule.due(managed.state)
                managed.woken.set()

    def _answered(self) -> None:
        """Wake the identities that waited for the authority, because it answers again."""
        blocked, self._blocked = self._blocked, set()
        for identity in blocked:
            if (managed := self._managed.get(identity)) is not None:
                managed.state = schedule.hurried(managed.state)
                managed.woken.set()

    def _failed(self, identity: Identity, managed: HeldIdentity, answer: NoCredentials) -> None:
        before = managed.state.failure
        error, now = answer.error, self._clock.now()
        managed.state = schedule.failed(managed.state, error, draw=answer.draw, now=now)
        if managed.cure is not None and not error.retriable:
            managed.state = managed.cure(managed.state)  # the refusal was decided before the change
        if answer.shared and error.retriable:
            self._blocked.add(identity)
        self._observer.renewal_failed(error)
        # Logged loudly at the first failure and whenever the reason changes.
        news = before is None or reason_of(before.error) != reason_of(error)
        loud = logging.WARNING if error.retriable else logging.ERROR
        if not managed.wanted:  # perhaps nobody ever asks for it
            loud = logging.DEBUG
        _LOGGER.log(
            loud if news else logging.DEBUG,
            "no certificate for %s: %s",
            identity.spiffe_id,
            error,
            extra={
                "spiffe_id": str(identity.spiffe_id),
                "reason": reason_of(error),
                "attempt": 1 + (before.attempts if before else 0),
            },
        )

    def _expire(self, identity: Identity, managed: HeldIdentity) -> None:
        _LOGGER.log(
            logging.ERROR if managed.wanted else logging.INFO,
            "the certificate of %s expired and was withdrawn",
            identity.spiffe_id,
            extra={"spiffe_id": str(identity.spiffe_id), "reason": "expired"},
        )
        managed.state = schedule.withdrawn(managed.state)
        self._withdraw(identity)

    def _withdraw(self, identity: Identity) -> None:
        stored = self._store.svid(identity)
        self._store.withdraw_svid(identity)
        if stored is not None:
            self._retired.add(stored.svid, self._clock.now())

    # --- the passing of time --------------------------------------------------------------------

    def _tick(self, now: Instant) -> None:
        """Withdraw, wipe and prune roots; called every second."""
        for identity, managed in self._managed.items():
            # The identity's own task may be waiting for an authority that does not answer.
            if isinstance(schedule.decide(managed.state, now), Withdraw):
                self._expire(identity, managed)
        self._retired.wipe(now, held=self._store.held_keys)
        self._roots.prune(now, retention=self._retention())

    def _ask_again(self, change: Callable[[State], State]) -> None:
        for managed in self._managed.values():
            managed.changed(change)

    def _retention(self) -> timedelta:
        if self._settings.retention is not None:
            return self._settings.retention
        here = max((identity.lifetime for identity in self._managed), default=timedelta(hours=1))
        return max(here, self._settings.lifetime_elsewhere)

    def _shortest_lifetime(self) -> float | None:
        return min((one.state.span for one in self._managed.values()), default=None)

    def _take_roots(self, roots: Sequence[bytes], now: Instant) -> None:
        self._roots.vouched(roots, now)
        self._answered()
