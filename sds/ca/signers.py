"""The authority's own certificate over time, and the roots that it publishes.

Owns the issuing key over time, and two of the sources of its certificate: itself, and an authority
above it (the third is :mod:`sds.ca.operator_files`). Invariants: keys exist only in memory, and
every certificate has a new one; a new root is published as soon as the source names it, and is in
the bundle for ``settle`` before anything is signed under it (except the very first); an old root
stays until its certificate expires, or until the source has not named it for as long as a
certificate under it may be valid; if a renewal fails, the previous signer goes on and the renewal
is tried again.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import logging
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Protocol

from sds import threads
from sds.authority.port import Authority
from sds.backoff import QUICK, Backoff, Retry
from sds.ca.issuer import make_signer, self_sign
from sds.clock import elapsed, sleep_while
from sds.errors import AuthorityAnswerError, RefusedError, SdsError, without_frames
from sds.exchange.item import CertificateItem, IssuedChain
from sds.identity import Identity, KeyType, SpiffeId, TrustDomain
from sds.pki import (
    fit_a_bundle,
    generate_private_key,
    make_csr,
    read_root,
    verify_authority_chain,
)

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import datetime, timedelta

    from sds.ca.issuer import Signer
    from sds.clock import Clock, Instant

_LOGGER = logging.getLogger(__name__)
_RENEW_AT: Final = 0.5
"""The part of the time from receipt to expiry after which the signer is renewed."""
_ROOTS_PART: Final = 1 / 20
"""The part of the settling time after which the source is asked for its roots again."""
_ROOTS_SECONDS: Final = (1.0, 30.0)
_SPARE_PART: Final = 0.1
_SPARE_SECONDS: Final = 30.0
"""With less than this part of the settling time left, or these seconds, a signer is replaced before
the new root has settled: what it signs ends with it, before agents can renew it."""
_LEAST_SECONDS: Final = 1.0
"""The least seconds between two signers, however soon the authority above expires."""
HOPELESS_SIGNER: Final = Backoff(first=1.0, longest=30.0)
"""The pauses while a person must change something at the authority above."""


@dataclass(slots=True, kw_only=True)
class _Root:
    """A root in the bundle.

    ``since`` is when it joined the bundle, in monotonic seconds; ``named`` is when the source last
    named it or signed under it, in seconds of boot time, and ``until`` is its end in these, as it
    was expected when it joined.
    """

    not_after: datetime
    since: float
    named: float
    until: float

    def is_over(self, now: Instant) -> bool:
        """Say whether it has ended by both clocks: the wall clock may be ahead for a moment."""
        return self.not_after <= now.wall and self.until <= now.boottime


class SigningState:
    """The current signer and the trust bundle."""

    def __init__(self, *, clock: Clock) -> None:
        """Begin empty; :meth:`current` raises until a signer is activated."""
        self._clock = clock
        self._signer: Signer | None = None
        self._received = clock.now().wall
        self._roots: dict[bytes, _Root] = {}
        self.ready = asyncio.Event()

    def current(self) -> Signer:
        """Return the signer of now.

        Raises:
            RefusedError: ``authority_not_ready``: none was activated, it has expired, or it is not
                valid yet (it was made while the clock was ahead).
        """
        if self._signer is None:
            raise RefusedError(
                "the authority has no certificate of its own yet", reason="authority_not_ready"
            )
        if self._signer.not_after <= self._clock.now().wall:
            raise RefusedError(
                f"the authority's own certificate ended at {self._signer.not_after.isoformat()}",
                reason="authority_not_ready",
            )
        if self._signer.not_before > self._clock.now().wall:
            raise RefusedError(
                "the authority's own certificate is valid from "
                f"{self._signer.not_before.isoformat()}: the clock was set back",
                reason="authority_not_ready",
            )
        return self._signer

    @property
    def able(self) -> bool:
        """Say whether a certificate can be signed now: there is a valid signer."""
        signer = self._signer
        return signer is not None and signer.not_before <= self._clock.now().wall < signer.not_after

    def not_after(self) -> datetime | None:
        """Return the end of the signer's chain; None before there is one."""
        return None if self._signer is None else self._signer.not_after

    def remaining(self) -> float | None:
        """Return the part of the signer's time that is left: 1 is new, 0 is over; None before one.

        Counted from its receipt, because an authority may backdate it.
        """
        if self._signer is None:
            return None
        whole = (self._signer.not_after - self._received).total_seconds()
        left = (self._signer.not_after - self._clock.now().wall).total_seconds()
        return max(0.0, min(1.0, left / whole)) if whole > 0 else 0.0

    @property
    def roots(self) -> tuple[bytes, ...]:
        """Return the roots that have not expired: DER, sorted."""
        now = self._clock.now().wall
        return tuple(sorted(der for der, root in self._roots.items() if root.not_after > now))

    def publish(self, roots: tuple[bytes, ...], *, gone: Collection[bytes] = ()) -> None:
        """Add roots that the source names to the bundle.

        Args:
            roots: the roots in DER.
            gone: those that leave the bundle at the same time.

        Raises:
            AuthorityAnswerError: ``authority_roots``: there would be too many; nothing changed.
            CertificateError: some client cannot read one of them; nothing changed.
        """
        certificates = {der: read_root(der) for der in roots}
        now = self._clock.now()
        stay = {der for der, one in self._roots.items() if der not in gone and not one.is_over(now)}
        together = stay | certificates.keys()
        if not fit_a_bundle(together):
            raise AuthorityAnswerError(
                f"{len(together - stay)} new roots were named, which do not fit beside the "
                f"{len(stay)} under which certificates may be valid",
                reason="authority_roots",
            )
        since = now.monotonic if self._roots else -math.inf  # the first roots need not settle
        for der, certificate in certificates.items():
            known = self._roots.get(der)
            if known is not None:
                known.named = now.boottime
                continue
            end = certificate.not_valid_after_utc
            until = now.boottime + (end - now.wall).total_seconds()
            self._roots[der] = _Root(not_after=end, since=since, named=now.boottime, until=until)
            _LOGGER.info("a root is in the bundle", extra={"root": _fingerprint(der)})
        for der in [der for der, one in self._roots.items() if one.is_over(now)]:
            if der not in certificates and (self._signer is None or der != self._signer.root):
                del self._roots[der]

    def follow(self, roots: tuple[bytes, ...], *, retention: timedelta) -> None:
        """Make the bundle follow the source, which names exactly these roots now.

        Args:
            roots: the roots in DER.
            retention: how long a root stays that the source no longer names, because certificates
                under it may be valid. The current signer's root stays in any case.

        Raises:
            AuthorityAnswerError, CertificateError: as for :meth:`publish`.
        """
        now = self._clock.now().boottime
        signer = b"" if self._signer is None else self._signer.root
        if signer in self._roots:
            self._roots[signer].named = now
        gone = [
            der
            for der, root in self._roots.items()
            if der not in {signer, *roots} and now - root.named > retention.total_seconds()
        ]
        self.publish(roots, gone=gone)
        for der in gone:
            if self._roots.pop(der, None) is not None:
                _LOGGER.info(
                    "a root left the bundle: its source no longer names it",
                    extra={"root": _fingerprint(der)},
                )

    def known_since(self, root: bytes) -> float:
        """Return when this root joined the bundle, in monotonic seconds."""
        return self._roots[root].since

    def activate(self, signer: Signer, *, received: datetime | None = None) -> None:
        """Sign with this signer from now on; ``received`` is when it came, if that was earlier."""
        if self._signer is not None and self._signer.root in self._roots:
            self._roots[self._signer.root].named = self._clock.now().boottime
        self._signer = signer
        self._received = received if received is not None else self._clock.now().wall
        self.ready.set()
        _LOGGER.info(
            "the authority signs with a new certificate",
            extra={
                "issuing_key": signer.key_id.hex(),
                "serial": f"{signer.certificate.serial_number:x}",
                "not_after": signer.not_after.isoformat(),
                "subject": signer.certificate.subject.rfc4514_string(),
                "path_length": signer.path_length,
            },
        )


def _fingerprint(der: bytes) -> str:
    return hashlib.sha256(der).hexdigest()


class SignerSource(Protocol):
    """Gets one signer after the other."""

    async def next_signer(self) -> tuple[Signer, tuple[bytes, ...]]:
        """Make a signer with a fresh key, and return it with the roots of its bundle.

        Raises:
            SdsError: this is not possible now.
        """
        ...


class RootsTeller(Protocol):
    """A source that gives all its roots between two signers."""

    @property
    def outlived(self) -> timedelta:
        """Return how long others' certificates may live under a root that is no longer named."""
        ...

    async def roots(self) -> tuple[bytes, ...]:
        """Return the roots of now in DER.

        Raises:
            SdsError: this is not possible now.
        """
        ...


def roots_teller(source: SignerSource) -> RootsTeller | None:
    """Return the source if it tells its roots between two signers."""
    return source if callable(getattr(source, "roots", None)) else None  # type: ignore[return-value]


class UpstreamAuthority(Authority, Protocol):
    """An authority above us."""

    async def roots(self) -> tuple[bytes, ...]:
        """Return the roots that it vouches for now, in DER.

        Raises:
            SdsError: it cannot be asked.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfSigned:
    """An authority that is its own root."""

    trust_domain: TrustDomain
    key_type: KeyType
    lifetime: timedelta
    path_length: int | None
    backdate: timedelta
    clock: Clock

    async def next_signer(self) -> tuple[Signer, tuple[bytes, ...]]:
        signer = self_sign(
            key=await threads.SIGNERS.run(generate_private_key, self.key_type),
            trust_domain=self.trust_domain,
            lifetime=self.lifetime,
            path_length=self.path_length,
            now=self.clock.now().wall,
            backdate=self.backdate,
        )
        return signer, (signer.root,)


@dataclass(frozen=True, slots=True, kw_only=True)
class FromUpstream:
    """An intermediate below another authority, certified by the protocol that agents use."""

    trust_domain: TrustDomain
    key_type: KeyType
    lifetime: timedelta
    upstream: UpstreamAuthority
    clock: Clock

    @property
    def outlived(self) -> timedelta:
        """Return our lifetime, because authorities beside us have certificates like ours."""
        return self.lifetime

    async def roots(self) -> tuple[bytes, ...]:
        return await self.upstream.roots()

    async def next_signer(self) -> tuple[Signer, tuple[bytes, ...]]:
        key = await threads.SIGNERS.run(generate_private_key, self.key_type)
        identity = Identity(
            spiffe_id=SpiffeId(self.trust_domain), lifetime=self.lifetime, key_type=self.key_type
        )
        issuance = await self.upstream.issue(
            [CertificateItem(identity=identity, csr=make_csr(key, identity), signing=True)]
        )
        (outcome,) = issuance.outcomes
        if not isinstance(outcome, IssuedChain):
            raise outcome
        root = verify_authority_chain(
            outcome.chain,
            roots=issuance.roots,
            public_key=key.public_key(),
            now=self.clock.now().wall,
        )
        chain = tuple(der for der in outcome.chain if der != root)
        signer = make_signer(key=key, chain=chain, root=root, trust_domain=self.trust_domain)
        # One above that turned hostile may give years; no more counts than was asked for.
        asked_until = self.clock.now().wall + self.lifetime
        return replace(signer, not_after=min(signer.not_after, asked_until)), issuance.roots


async def keep_signing(
    signing: SigningState,
    source: SignerSource,
    *,
    clock: Clock,
    settle: timedelta,
    retry: Retry | None = None,
) -> None:
    """Get the first signer and renew it early, until cancelled.

    Args:
        signing: has the signer of the server.
        source: makes signers.
        clock: time and waiting.
        settle: how long a new root is in the bundle before anything is signed under it: the longest
            lifetime of a leaf, so that every agent has asked at least once in between.
        retry: says when to try again; code that notices a change tells it.
    """
    retry = retry if retry is not None else Retry(clock, QUICK, hopeless=HOPELESS_SIGNER)
    while True:
        try:
            signer, roots = await source.next_signer()
            signing.publish(roots)
        except SdsError as error:
            _LOGGER.warning(
                "no certificate for the authority itself: %s",
                error,
                extra={"reason": error.reason, "failures": retry.failures + 1},
            )
            without_frames(error)  # one of them has the key of this attempt
            await retry.pause(helps=error.retriable)
            continue
        retry.succeeded()
        received = clock.now()
        known = signing.known_since(signer.root)
        await _settle(signing, clock, since=known, seconds=settle.total_seconds())
        signing.activate(signer, received=received.wall)
        await clock.sleep(_LEAST_SECONDS)
        await sleep_while(clock, functools.partial(renewal_in, signer, received))


async def follow_roots(
    signing: SigningState, source: RootsTeller, *, clock: Clock, settle: timedelta
) -> None:
    """Keep the bundle equal to the source's roots, until cancelled.

    A new root above several authorities must be in the bundle of each before one of them signs
    under it, and each gets its next certificate at another time. A root that an operator takes back
    must not stay until then either.

    Args:
        signing: has the bundle.
        source: is asked.
        clock: waits.
        settle: as for :func:`keep_signing`.
    """
    shortest, longest = _ROOTS_SECONDS
    pause = min(max(_ROOTS_PART * settle.total_seconds(), shortest), longest)
    said = ""
    while True:
        await clock.sleep(pause)
        if not signing.ready.is_set():
            continue  # the first signer comes with its roots
        try:
            roots = await source.roots()
            signing.follow(roots, retention=max(settle, source.outlived))
        except SdsError as error:
            if str(error) != said:
                said = str(error)
                _LOGGER.warning(
                    "the roots cannot be read again, the earlier ones stay: %s",
                    error,
                    extra={"reason": error.reason},
                )
        else:
            said = ""


async def _settle(signing: SigningState, clock: Clock, *, since: float, seconds: float) -> None:
    """Wait until the new root is known, or what signs now is about to end.

    Agents ask while this machine runs, so that suspension does not count: ``since`` is monotonic.
    """
    spare = min(_SPARE_PART * seconds, _SPARE_SECONDS)

    def left(now: Instant) -> float:
        end = signing.not_after()
        if end is None or not signing.able:
            return 0.0
        return min(since + seconds - now.monotonic, (end - now.wall).total_seconds() - spare)

    await sleep_while(clock, left)


def renewal_in(signer: Signer, received: Instant, now: Instant) -> float:
    """Return the seconds until a signer is renewed, by whichever clock gives less; 0 or less: now.

    Args:
        signer: the signer.
        received: when it came.
        now: the time. Wall time may have been set since then, forward or back, and monotonic time
            stands still while the machine is suspended.
    """
    if now.wall < signer.not_before:
        return 0.0  # it came while the clock was ahead, so nobody else accepts it
    whole = (signer.not_after - received.wall).total_seconds()
    return whole * _RENEW_AT - elapsed(received, now)
