"""Where an authority's own certificate comes from: itself, an authority above it, or an operator.

Owns the issuing key over time. Invariants: keys exist only in memory and are made anew for every
certificate; a new root is published in the bundle for ``settle`` before anything is signed under
it (except the very first), and an old one stays until its certificate ends; a renewal that fails
leaves the signer of before at work and is tried again.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Protocol

from cryptography.hazmat.primitives.serialization import Encoding

from sds import threads
from sds.backoff import QUICK, Backoff, Retry
from sds.ca.issuer import authority_name, authority_request, make_signer, self_sign
from sds.clock import sleep_while
from sds.errors import CertificateError, RefusedError, SdsError
from sds.exchange.item import CertificateItem, IssuedChain
from sds.files import read_file, replace_file
from sds.identity import Identity, KeyType, SpiffeId, TrustDomain
from sds.pki import (
    certificate_der,
    certificates_from_pem,
    complete_anchors,
    generate_private_key,
    load_certificate,
    make_csr,
    read_root,
    verify_authority_chain,
)
from sds.pki.path import sorted_path

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from sds.authority.port import Authority
    from sds.ca.issuer import Signer
    from sds.clock import Clock, Instant
    from sds.pki import PrivateKey

_LOGGER = logging.getLogger(__name__)
_MAX_BYTES: Final = 1024 * 1024
_RENEW_AT: Final = 0.5
"""Part of the time from receipt to its end after which the signer is renewed."""
_LEAST_SECONDS: Final = 1.0
"""Between two signers, however little is left of the authority above."""
HOPELESS_SIGNER: Final = Backoff(first=1.0, longest=30.0)
"""Somebody has to change something at the authority above; when that is done, soon is soon."""


class SigningState:
    """The signer of now and the trust bundle; see the module."""

    def __init__(self, *, clock: Clock) -> None:
        """Empty: :meth:`current` raises until a signer is activated."""
        self._clock = clock
        self._signer: Signer | None = None
        self._roots: dict[bytes, datetime] = {}
        self.ready = asyncio.Event()

    def current(self) -> Signer:
        """The signer of now.

        Raises:
            RefusedError: ``authority_not_ready``: none was activated, it has ended, or it is not
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
        """Whether something can be signed now: a signer is there and is valid."""
        signer = self._signer
        return signer is not None and signer.not_before <= self._clock.now().wall < signer.not_after

    def not_after(self) -> datetime | None:
        """The end of the signer's chain; None before there is one."""
        return None if self._signer is None else self._signer.not_after

    @property
    def roots(self) -> tuple[bytes, ...]:
        """The roots that have not ended: DER, sorted."""
        now = self._clock.now().wall
        return tuple(sorted(der for der, not_after in self._roots.items() if not_after > now))

    def publish(self, roots: tuple[bytes, ...]) -> bool:
        """Add roots to the bundle; whether one of them is new beside others.

        Raises:
            CertificateError: one is not a root that every client can read.
        """
        new = [der for der in roots if der not in self._roots]
        for der in new:
            read_root(der)
        beside = bool(self._roots) and bool(new)
        for der in new:
            self._roots[der] = read_root(der).not_valid_after_utc
        return beside

    def activate(self, signer: Signer) -> None:
        """Sign with this one from now on."""
        self._signer = signer
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


class SignerSource(Protocol):
    """Gets one signer after the other."""

    async def next_signer(self) -> tuple[Signer, tuple[bytes, ...]]:
        """A signer with a fresh key, and the roots of its bundle.

        Raises:
            SdsError: not now.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfSigned:
    """A root of its own."""

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
    """An intermediate below another authority, by the protocol that agents speak."""

    trust_domain: TrustDomain
    key_type: KeyType
    lifetime: timedelta
    upstream: Authority
    clock: Clock

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
        return signer, issuance.roots


@dataclass(frozen=True, slots=True, kw_only=True)
class FromOperator:
    """An intermediate of an existing PKI or an offline root: CSR out, chain in, as PEM files.

    Attributes:
        csr_file: written anew for every key.
        chain_file: where the operator puts the chain: issuing certificate first.
        roots_file: the roots under which it must hold; they become the trust bundle.
    """

    trust_domain: TrustDomain
    key_type: KeyType
    csr_file: Path
    chain_file: Path
    roots_file: Path
    clock: Clock
    poll: timedelta = timedelta(seconds=1)

    async def next_signer(self) -> tuple[Signer, tuple[bytes, ...]]:
        """Write the CSR and wait for its chain; a chain that does not fit is said and passed over.

        Raises:
            RefusedError: ``authority_not_ready``: the CSR cannot be written.
        """
        key = await threads.SIGNERS.run(generate_private_key, self.key_type)
        self._write(authority_request(key, self.trust_domain).public_bytes(Encoding.PEM))
        _LOGGER.warning(
            "waiting for an operator: sign the request in %s and put the chain into %s",
            self.csr_file,
            self.chain_file,
            extra={"subject": authority_name(key.public_key()).rfc4514_string()},
        )
        said = ""
        while True:
            try:
                return self._read(key)
            except (OSError, SdsError) as error:
                if not isinstance(error, FileNotFoundError) and str(error) != said:
                    said = str(error)
                    _LOGGER.warning(
                        "the operator's chain cannot be used: %s",
                        error,
                        extra={"chain_file": str(self.chain_file)},
                    )
            await self.clock.sleep(self.poll.total_seconds())

    def _write(self, pem: bytes) -> None:
        try:
            replace_file(self.csr_file, pem, mode=0o644)
        except OSError as error:
            raise RefusedError(
                f"the request for the operator cannot be written to {self.csr_file}: {error}",
                advice="make the directory writable for `sds ca`",
                reason="authority_not_ready",
            ) from error

    def _read(self, key: PrivateKey) -> tuple[Signer, tuple[bytes, ...]]:
        chain = self._sorted(
            self._certificates(self.chain_file),
            roots := self._anchors(self._certificates(self.roots_file)),
        )
        root = verify_authority_chain(
            chain, roots=roots, public_key=key.public_key(), now=self.clock.now().wall
        )
        below = tuple(der for der in chain if der != root)
        return (
            make_signer(key=key, chain=below, root=root, trust_domain=self.trust_domain),
            roots,
        )

    @staticmethod
    def _certificates(path: Path) -> tuple[bytes, ...]:
        return certificates_from_pem(read_file(path, max_bytes=_MAX_BYTES), what=str(path))

    def _anchors(self, roots: tuple[bytes, ...]) -> tuple[bytes, ...]:
        """The roots, where every verifier can end a chain in each of them.

        Raises:
            CertificateError: one cannot be read, or is an intermediate without its root.
        """
        complete = set(complete_anchors(roots, f"root in {self.roots_file}"))
        for der in roots:
            if der not in complete:
                name = read_root(der).subject.rfc4514_string()
                raise CertificateError(
                    f"{self.roots_file}: {name} is not self-signed, and the certificate that "
                    "issued it is not there",
                    reason="certificate_constraint",
                    advice="put the self-signed root into roots_file: verifiers that want whole "
                    "chains, such as Envoy's SPIFFE validator, refuse chains that end in an "
                    "intermediate",
                )
        return roots

    @staticmethod
    def _sorted(chain: tuple[bytes, ...], roots: tuple[bytes, ...]) -> tuple[bytes, ...]:
        """The path from the issuing certificate, which comes first, to a root."""
        issuing, *others = [load_certificate(der) for der in chain]
        path = sorted_path(issuing, others, [read_root(der) for der in roots])
        return chain if path is None else tuple(certificate_der(one) for one in path)


async def keep_signing(
    signing: SigningState,
    source: SignerSource,
    *,
    clock: Clock,
    settle: timedelta,
    retry: Retry | None = None,
) -> None:
    """Get the first signer and renew it in good time, until cancelled.

    Args:
        signing: what the server signs from.
        source: where signers come from.
        clock: time and waiting.
        settle: how long a new root is in the bundle before anything is signed under it: the
            longest life of a leaf, so that every agent has asked at least once in between.
        retry: says when to try again; code that learns of a change tells it.
    """
    retry = retry if retry is not None else Retry(clock, QUICK, hopeless=HOPELESS_SIGNER)
    while True:
        try:
            signer, roots = await source.next_signer()
            new = signing.publish(roots)
        except SdsError as error:
            _LOGGER.warning(
                "no certificate for the authority itself: %s",
                error,
                extra={"reason": error.reason, "failures": retry.failures + 1},
            )
            await retry.pause(helps=error.retriable)
            continue
        retry.succeeded()
        received = clock.now()
        if new:
            await _settle(signing, clock, until=received.monotonic + settle.total_seconds())
        signing.activate(signer)
        await clock.sleep(_LEAST_SECONDS)
        await sleep_while(clock, functools.partial(renewal_in, signer, received))


async def _settle(signing: SigningState, clock: Clock, *, until: float) -> None:
    """Wait until the new root is known, or what signs now can sign no longer.

    Agents ask while this machine runs, so that suspension does not count: ``until`` is monotonic.
    """

    def left(now: Instant) -> float:
        end = signing.not_after()
        if end is None or not signing.able:
            return 0.0
        return min(until - now.monotonic, (end - now.wall).total_seconds())

    await sleep_while(clock, left)


def renewal_in(signer: Signer, received: Instant, now: Instant) -> float:
    """Seconds until a signer is renewed, by the clock that says less; 0 or less: now.

    Args:
        signer: which.
        received: when it came.
        now: the time. Wall time may have been set since then, forward or back, and monotonic time
            stands still while the machine is suspended.
    """
    if now.wall < signer.not_before:
        return 0.0  # it came while the clock was ahead: nobody else takes it
    whole = (signer.not_after - received.wall).total_seconds()
    age = max(
        (now.wall - received.wall).total_seconds(),
        now.boottime - received.boottime,
    )
    return whole * _RENEW_AT - age
