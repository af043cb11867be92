"""Rotation: keeps every wanted identity's certificate fresh in the store.

Owns one task an identity and the introduction of roots. Invariants: the store's only writer; what
is stored was verified; a failed renewal takes nothing away; a root is in the bundle, and ACKed by
every subscriber or waited for (bounded), before the first leaf under it is put; keys of retired
versions are wiped. What to do and when is decided in :mod:`sds.secrets.schedule` and
:mod:`sds.secrets.ledger`; this module carries it out.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Literal, Protocol

from sds.errors import AuthorityRefusedError, SdsError
from sds.secrets import schedule
from sds.secrets.exchange import Exchange, Granted, NotGranted, uniform
from sds.secrets.roots import RootKeeper
from sds.secrets.schedule import Ask, Lease, State, Wait, Withdraw
from sds.secrets.store import Svid

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from sds.authority.port import Authority
    from sds.clock import Clock, Instant
    from sds.identity import Identity, TrustDomain
    from sds.secrets.memory import SecretBytes
    from sds.secrets.store import SecretStore

_LOGGER = logging.getLogger(__name__)

_TICK_SECONDS: Final = 1.0
_CLOCK_STEP_SECONDS: Final = 0.5
_RELEASE_SECONDS: Final = 10.0
"""A retired key is wiped when no subscriber holds it, or after this long."""
_ROOTS_POLL_SECONDS: Final = (1.0, 30.0)


class RootsSource(Protocol):
    """An authority that can be asked for its roots alone."""

    async def roots(self) -> tuple[bytes, ...]:
        """DER roots that it vouches for now.

        Raises:
            AuthorityError: it cannot be asked.
            EvidenceError: its evidence does not hold.
        """
        ...


class RotationObserver(Protocol):
    """Hears of what went wrong, to count it."""

    def renewal_failed(self, error: SdsError) -> None:
        """One attempt for one identity failed."""
        ...


class _Deaf:
    def renewal_failed(self, error: SdsError) -> None:
        """Nobody counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RotationSettings:
    """How rotation behaves; every default serves one node and lifetimes from seconds to days.

    Attributes:
        attempt: an exchange that takes longer has failed.
        ack_wait: how long a new root waits for the ACKs of subscribers.
        settling: how long a new root stands in the bundle before a leaf under it replaces a valid
            one, so that other nodes learn of it too; at most a fifth of the certificate's time.
        retention: how long a root that the authority no longer names may still have leaves; None:
            the longest lifetime that was asked for on this node, or ``lifetime_elsewhere``.
        lifetime_elsewhere: the longest lifetime that other members of the trust domain are known
            to have.
    """

    attempt: timedelta = timedelta(seconds=30)
    ack_wait: timedelta = timedelta(seconds=5)
    settling: timedelta = timedelta(seconds=5)
    retention: timedelta | None = None
    lifetime_elsewhere: timedelta = timedelta(0)


Condition = Literal["valid", "waiting", "refused"]


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityStatus:
    """What ``sds status`` shows of one identity.

    Attributes:
        identity: which.
        condition: ``valid`` (a certificate is served), ``waiting`` (none yet, or it expired),
            ``refused`` (none, and retrying alone will not help).
        serial: of the certificate that is served.
        not_after: its end.
        renew_at: when the next renewal is due.
        rotations: certificates that were taken into service.
        attempts: attempts that failed since the last success.
        reason: of the last failure.
        message: of the last failure.
    """

    identity: Identity
    condition: Condition
    serial: int | None = None
    not_after: datetime | None = None
    renew_at: datetime | None = None
    rotations: int = 0
    attempts: int = 0
    reason: str = ""
    message: str = ""


@dataclass(slots=True, kw_only=True)
class _Kept:
    """One wanted identity."""

    state: State
    holders: int = 0
    rotations: int = 0
    task: asyncio.Task[None] | None = None
    woken: asyncio.Event = field(default_factory=asyncio.Event)


class Rotation:
    """See the module; :meth:`run` must run for anything to happen.

    Args:
        trust_domain: whose roots the authority gives.
        store: where secrets go.
        authority: who is asked; where it is a :class:`RootsSource` too, new roots are noticed
            before the next renewal.
        clock: time.
        settings: see there.
        observer: hears of failures.
        draw: uniform in [0, 1): jitter.
    """

    def __init__(
        self,
        *,
        trust_domain: TrustDomain,
        store: SecretStore,
        authority: Authority,
        clock: Clock,
        settings: RotationSettings = RotationSettings(),
        observer: RotationObserver | None = None,
        draw: Callable[[], float] = uniform,
    ) -> None:
        self._store = store
        self._authority = authority
        self._clock = clock
        self._settings = settings
        self._observer: RotationObserver = observer if observer is not None else _Deaf()
        self._draw = draw
        self._kept: dict[Identity, _Kept] = {}
        self._retired: list[tuple[str, SecretBytes, float]] = []
        self._group: asyncio.TaskGroup | None = None
        self._roots = RootKeeper(
            trust_domain,
            store,
            clock,
            ack_seconds=settings.ack_wait.total_seconds(),
            settling_seconds=settings.settling.total_seconds(),
        )
        self._exchange = Exchange(
            authority,
            clock,
            on_roots=self._roots.vouched,
            attempt_seconds=settings.attempt.total_seconds(),
            draw=draw,
        )

    # --- what is wanted -------------------------------------------------------------------------

    def ensure(self, identity: Identity) -> None:
        """Keep a certificate for this identity; every call is undone by one :meth:`release`."""
        kept = self._kept.get(identity)
        if kept is None:
            state = State(lifetime=identity.lifetime.total_seconds())
            kept = self._kept[identity] = _Kept(state=state)
            self._start(identity, kept)
        kept.holders += 1

    def release(self, identity: Identity) -> None:
        """Nobody wants the identity any more where this is the last call: its secret goes."""
        kept = self._kept[identity]
        kept.holders -= 1
        if kept.holders == 0:
            del self._kept[identity]
            if kept.task is not None:
                kept.task.cancel()
            self._withdraw(identity)

    # --- what is known --------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether every wanted identity has a valid certificate in the store."""
        return all(kept.state.lease is not None for kept in self._kept.values())

    def status(self) -> tuple[IdentityStatus, ...]:
        """One line an identity, by name."""
        found = [self._status(identity, kept) for identity, kept in self._kept.items()]
        return tuple(sorted(found, key=lambda one: (str(one.identity.spiffe_id), one.rotations)))

    def _status(self, identity: Identity, kept: _Kept) -> IdentityStatus:
        stored, lease, failure = self._store.svid(identity), kept.state.lease, kept.state.failure
        if lease is not None:
            condition: Condition = "valid"
        else:
            curable = failure is None or failure.error.retriable
            condition = "waiting" if curable else "refused"
        renew_at = None
        if lease is not None:
            renew_at = lease.received.wall + timedelta(seconds=lease.renew_after)
        return IdentityStatus(
            identity=identity,
            condition=condition,
            serial=stored.svid.serial if stored else None,
            not_after=stored.svid.not_after if stored else None,
            renew_at=renew_at,
            rotations=kept.rotations,
            attempts=failure.attempts if failure else 0,
            reason=reason_of(failure.error) if failure else "",
            message=str(failure.error) if failure else "",
        )

    # --- running --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Rotate until cancelled; wipes every key at the end."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                group.create_task(self._exchange.run(), name="exchange")
                group.create_task(self._tick(), name="clock watch")
                if (source := _roots_source(self._authority)) is not None:
                    group.create_task(self._poll_roots(source), name="roots")
                for identity, kept in self._kept.items():
                    self._start(identity, kept)
        finally:
            self._group = None
            for stored in self._store.svids().values():
                stored.svid.private_key.wipe()
            for _, secret, _ in self._retired:
                secret.wipe()

    def _start(self, identity: Identity, kept: _Kept) -> None:
        if self._group is not None:
            kept.task = self._group.create_task(
                self._keep(identity, kept), name=f"rotation {identity.spiffe_id}"
            )

    async def _keep(self, identity: Identity, kept: _Kept) -> None:
        while True:
            match schedule.decide(kept.state, self._clock.now()):
                case Withdraw():
                    self._expire(identity, kept)
                case Wait(seconds):
                    await self._pause(kept, seconds)
                case Ask(urgency):
                    span = kept.state.lease.span if kept.state.lease else kept.state.lifetime
                    answer = await self._exchange.ask(
                        identity, urgency, window=schedule.batch_window(span)
                    )
                    await self._take(identity, kept, answer)

    async def _pause(self, kept: _Kept, seconds: float) -> None:
        """Sleep; a step of a clock ends it."""
        kept.woken.clear()
        assert self._group is not None  # else nothing runs that could come here
        sleep = self._group.create_task(self._clock.sleep(seconds))

        def wake(_: asyncio.Task[None]) -> None:
            kept.woken.set()

        sleep.add_done_callback(wake)
        try:
            await kept.woken.wait()
        finally:
            # Without its callback: a cancelled sleep would end the next one.
            sleep.remove_done_callback(wake)
            sleep.cancel()

    async def _take(self, identity: Identity, kept: _Kept, answer: Granted | NotGranted) -> None:
        if isinstance(answer, NotGranted):
            self._failed(identity, kept, answer)
            return
        try:
            await self._roots.introduced(answer.verified.root, held=kept.state.lease)
        except BaseException:
            answer.private_key.wipe()
            raise
        verified = answer.verified
        lease = Lease(
            received=answer.received, valid_until=verified.valid_until, jitter=self._draw()
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
                not_after=verified.not_after,
                received_at=answer.received.wall,
                root=verified.root,
            )
        )
        if old is not None:
            self._retire(old.svid)
        self._roots.served(verified.root, verified.not_after)
        kept.state = schedule.received(kept.state, lease)
        kept.rotations += 1
        _LOGGER.info(
            "%s has certificate %x",
            identity.spiffe_id,
            verified.serial,
            extra={
                "spiffe_id": str(identity.spiffe_id),
                "serial": f"{verified.serial:x}",
                "not_after": verified.not_after.isoformat(),
                "version": version,
            },
        )

    def _failed(self, identity: Identity, kept: _Kept, answer: NotGranted) -> None:
        before = kept.state.failure
        error, now = answer.error, self._clock.now()
        kept.state = schedule.failed(kept.state, error, draw=answer.draw, now=now)
        self._observer.renewal_failed(error)
        # Loud once: at the first failure and whenever the reason changes.
        news = before is None or reason_of(before.error) != reason_of(error)
        loud = logging.WARNING if error.retriable else logging.ERROR
        failure = kept.state.failure
        _LOGGER.log(
            loud if news else logging.DEBUG,
            "no certificate for %s: %s",
            identity.spiffe_id,
            error,
            extra={
                "spiffe_id": str(identity.spiffe_id),
                "reason": reason_of(error),
                "attempt": failure.attempts if failure else 0,
            },
        )

    def _expire(self, identity: Identity, kept: _Kept) -> None:
        _LOGGER.error(
            "the certificate of %s expired and was withdrawn",
            identity.spiffe_id,
            extra={"spiffe_id": str(identity.spiffe_id), "reason": "expired"},
        )
        kept.state = schedule.withdrawn(kept.state)
        self._withdraw(identity)

    def _withdraw(self, identity: Identity) -> None:
        stored = self._store.svid(identity)
        self._store.withdraw_svid(identity)
        if stored is not None:
            self._retire(stored.svid)

    # --- keys that retire -----------------------------------------------------------------------

    def _retire(self, svid: Svid) -> None:
        self._retired.append((svid.key_id, svid.private_key, self._clock.now().boottime))

    def _wipe_retired(self, now: Instant) -> None:
        held = self._store.held_keys()
        left = []
        for key_id, secret, since in self._retired:
            if key_id in held and now.boottime - since < _RELEASE_SECONDS:
                left.append((key_id, secret, since))
            else:
                secret.wipe()
        self._retired = left

    # --- the passing of time --------------------------------------------------------------------

    async def _tick(self) -> None:
        """Every second: withdraw, wipe, prune roots, and look whether a clock was set."""
        before = self._clock.now()
        while True:
            await self._clock.sleep(_TICK_SECONDS)
            now = self._clock.now()
            for identity, kept in self._kept.items():
                # Its own task may be waiting for an authority that is silent.
                if isinstance(schedule.decide(kept.state, now), Withdraw):
                    self._expire(identity, kept)
            self._wipe_retired(now)
            self._roots.prune(now, retention=self._retention())
            passed = now.monotonic - before.monotonic
            stepped = (now.wall - before.wall).total_seconds() - passed
            suspended = now.boottime - before.boottime - passed
            if abs(stepped) > _CLOCK_STEP_SECONDS or suspended > _CLOCK_STEP_SECONDS:
                _LOGGER.warning(
                    "the wall clock moved by %.1f s of which %.1f s were a suspension",
                    stepped,
                    suspended,
                    extra={"stepped_seconds": stepped, "suspended_seconds": suspended},
                )
                for kept in self._kept.values():
                    kept.woken.set()
            before = now

    def _retention(self) -> timedelta:
        if self._settings.retention is not None:
            return self._settings.retention
        here = max((identity.lifetime for identity in self._kept), default=timedelta(hours=1))
        return max(here, self._settings.lifetime_elsewhere)

    async def _poll_roots(self, source: RootsSource) -> None:
        """Notice a new root before the next renewal, so that it has settled by then."""
        shortest, longest = _ROOTS_POLL_SECONDS
        while True:
            lifetime = min((kept.state.lifetime for kept in self._kept.values()), default=longest)
            await self._clock.sleep(min(max(schedule.RETRY_GAP * lifetime, shortest), longest))
            if not any(kept.state.lease for kept in self._kept.values()):
                continue  # whoever waits for a first certificate learns of the roots with it
            try:
                async with asyncio.timeout(self._settings.attempt.total_seconds()):
                    roots = await source.roots()
                self._roots.vouched(roots, self._clock.now())
            except TimeoutError:
                _LOGGER.debug("the authority was silent when asked for its roots")
            except SdsError as error:
                _LOGGER.debug("the authority did not tell its roots: %s", error)


def reason_of(error: SdsError) -> str:
    """The reason that the authority gave, or our own."""
    return error.wire_reason if isinstance(error, AuthorityRefusedError) else error.reason


def _roots_source(authority: Authority) -> RootsSource | None:
    return authority if callable(getattr(authority, "roots", None)) else None  # type: ignore[return-value]
