"""The client of our own authority: it keeps one stream open and verifies its other end.

Owns the agent's side of the exchange. Invariants: until the authority's evidence is verified, only
a nonce and the policy's digest and epoch are sent; every returned chain is signed by the key that
this evidence covers, and the evidence covers every root; what an authority gives counts only while
a policy is in force, if there is one to follow, and only if the authority was verified under it; a
stream on which anything went wrong is closed and never used again. One exchange runs at a time; a
cancelled one closes the stream.
"""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from sds._proto.sds.ca.v1 import ca_pb2
from sds.attestation.evidence import answer_challenge
from sds.authority.channel import AttestedTls, VerifiedTls, connect, split_address
from sds.authority.patience import patient_seconds
from sds.authority.policy_peer import NoPolicy, require_for_certificates
from sds.authority.port import Issuance
from sds.authority.replicas import (
    ASK_ANOTHER,
    ReplicaOrder,
    is_better_asked_elsewhere,
    may_be_the_streams,
    most_telling,
)
from sds.authority.session import Session, deadline, demanded, verify_challenge
from sds.errors import (
    AuthorityAnswerError,
    AuthorityError,
    AuthorityRefusedError,
    AuthorityUnavailableError,
    CertificateError,
    ConfigurationError,
    EvidenceError,
    SdsError,
)
from sds.exchange import wire
from sds.exchange.challenge import digest_of, lifetime_seconds, new_nonce, request_report_data
from sds.exchange.item import IssuedChain
from sds.reasons.authority import NO_ANSWER

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from sds.attestation.evidence import Attester, Verifier
    from sds.authority.policy_peer import PolicyPeer
    from sds.clock import Clock
    from sds.exchange.item import CertificateItem

_Answer = TypeVar("_Answer")
_LOGGER = logging.getLogger(__name__)
_TRIES_ON_A_STREAM: Final = 3
_RANDOM: Final = random.SystemRandom()
_TRY_AGAIN: Final = frozenset({"nonce_expired", "nonce_unknown", "nonce_used"})
"""Refusals that the fresh nonce in the same answer cures at once."""
_SAY_HELLO: Final = frozenset({"challenge_stale"})


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthoritySettings:
    """How to reach our authority.

    Attributes:
        addresses: ``host:port`` of each replica. The first one is drawn, and others are asked if it
            fails.
        tls: attested, or verified against a configured root.
        connect_seconds: the time for handshake, Hello and Challenge with one address; longer after
            attempts that nobody answered in time (:mod:`sds.authority.patience`).
        answer_seconds: the time for one request, evidence included.
    """

    addresses: tuple[str, ...]
    tls: AttestedTls | VerifiedTls = AttestedTls()  # noqa: RUF009  frozen and without state
    connect_seconds: float = 5.0
    answer_seconds: float = 30.0


class AttestedAuthority:
    """An :class:`sds.authority.port.Authority` that asks ``sds ca``."""

    def __init__(
        self,
        settings: AuthoritySettings,
        *,
        attester: Attester,
        verifier: Verifier | None,
        clock: Clock,
        policy: PolicyPeer | None = None,
        shuffle: Callable[[list[tuple[str, ...]]], None] = _RANDOM.shuffle,
    ) -> None:
        """Make a client that connects nothing before the first exchange.

        Args:
            settings: addresses, TLS and time limits.
            attester: gives our evidence.
            verifier: verifies the authority's evidence. None accepts an authority without evidence,
                which only verified TLS allows; so does one that demands none now
                (:class:`sds.authority.session.ChangingDemands`).
            clock: gives the time at which evidence and chains must be valid.
            policy: gives our policy in force.
            shuffle: puts the replicas into an order.

        Raises:
            ConfigurationError: no address, or neither evidence nor a root to trust.
        """
        if not settings.addresses:
            raise ConfigurationError("authority.addresses is empty", advice="name host:port")
        for address in settings.addresses:
            split_address(address)
        if verifier is None and not isinstance(settings.tls, VerifiedTls):
            raise ConfigurationError(
                "attested TLS needs reference values for the authority",
                advice="set verification.reference_values, or authority.tls with root and "
                "server_name",
            )
        self._settings = settings
        self._attester = attester
        self._verifier = verifier
        self._clock = clock
        self._policy: PolicyPeer = policy if policy is not None else NoPolicy()
        self._turn = asyncio.Lock()
        self._session: Session | None = None
        self._place: tuple[str, ...] = ()
        self._unanswered = 0
        self._order = ReplicaOrder(settings, shuffle)

    @property
    def connected_to(self) -> str | None:
        """Return where the open stream leads: one replica, or several that gRPC chose from."""
        return self._session.address if self._session is not None else None

    async def issue(self, items: Sequence[CertificateItem]) -> Issuance:
        """Ask for a certificate for each item, in one exchange.

        Every replica is tried once. If an authority ends in the middle of an exchange, that costs
        only the time until the next one has answered.

        Raises:
            AuthorityUnavailableError: no replica could be reached, or none answered in time.
            AuthorityRefusedError: a replica refused the request as a whole.
            EvidenceError: our evidence cannot be collected, or that of every authority that was
                reached is refused.
        """
        if not items:
            return Issuance(outcomes=(), roots=())
        async with self._turn:
            return await self._anywhere(lambda session: self._exchange(session, items))

    async def roots(self) -> tuple[bytes, ...]:
        """Ask for the roots that the authority vouches for now, in DER, by a Hello alone.

        If the Challenge names a later policy than ours, ask for that too: an agent that wants no
        certificate, or none for long, would not learn of it.

        Raises:
            AuthorityUnavailableError: no replica could be reached, or none answered in time.
            AuthorityRefusedError: a replica refused.
            EvidenceError: the evidence of every authority that was reached is refused.
            PolicyNotInForceError: none is in force here.
        """
        async with self._turn:
            return await self._anywhere(self._roots)

    async def aclose(self) -> None:
        async with self._turn:
            await self._drop()

    async def _anywhere(self, use: Callable[[Session], Awaitable[_Answer]]) -> _Answer:
        try:
            answer = await self._one_after_another(use)
        except SdsError as error:
            self._unanswered = self._unanswered + 1 if error.reason == NO_ANSWER else 0
            raise
        except asyncio.CancelledError:
            self._order.failed(self._place)  # who asked waits no longer: another is first next time
            raise
        self._unanswered = 0
        return answer

    async def _one_after_another(self, use: Callable[[Session], Awaitable[_Answer]]) -> _Answer:
        if self._session is not None and await self._session.connection.is_outdated(
            self._settings.tls
        ):
            await self._drop()
        if self._session is not None:
            try:
                return await use(self._session)
            except SdsError as error:
                if not may_be_the_streams(error):
                    raise
                if isinstance(error, AuthorityRefusedError):
                    self._order.failed(self._place)
                _log_failure(error)
        failures: list[SdsError] = []
        for place in self._order.now():
            try:
                session = await self._open(place)
                return await use(session)
            except (AuthorityError, EvidenceError) as error:
                if isinstance(error, AuthorityRefusedError) and not (
                    error.retriable or error.wire_reason in ASK_ANOTHER
                ):
                    raise
                _log_failure(error)
                failures.append(error)
                self._order.failed(place)
        try:
            raise most_telling(failures)
        finally:
            failures.clear()  # the error's frames have this one, and its locals have connections

    async def _roots(self, session: Session) -> tuple[bytes, ...]:
        limit = patient_seconds(self._settings, self._unanswered)
        try:
            async with deadline(limit, f"the authority at {session.address} gave no Challenge"):
                await self._hello(session, for_news=True)
            if self._policy.follows and session.trusted.statement.policy_epoch > self._policy.epoch:
                await self._ask_for_policy(session)
        except BaseException:
            await self._drop()
            raise
        if not session.proven:
            await self._drop()
        self._policy.require_in_force()
        return session.trusted.statement.roots

    async def _ask_for_policy(self, session: Session) -> None:
        """Ask for the later policy alone; without it the roots count, and another is asked next."""
        try:
            await self._exchange(session, ())
        except (AuthorityRefusedError, AuthorityUnavailableError) as error:
            if error.reason == NO_ANSWER or session.verified_by != self._policy.digest:
                raise  # else it is of an earlier version, which takes no request without items
            _log_failure(error)
            self._order.failed(self._place)
            await self._drop()

    async def _drop(self) -> None:
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()

    async def _open(self, place: tuple[str, ...]) -> Session:
        self._place = place
        await self._drop()
        limit = patient_seconds(self._settings, self._unanswered)
        address = ", ".join(place)
        connection = await connect(place, self._settings.tls, seconds=limit)
        session = Session(address=address, connection=connection)
        try:
            async with deadline(limit, f"the authority at {address} gave no Challenge"):
                await session.start()
                await self._hello(session)
        except BaseException:
            await session.close()
            raise
        self._session = session
        return session

    async def _hello(self, session: Session, *, for_news: bool = False) -> None:
        """Say Hello and verify the answer; ``for_news``: only if it is another one than before."""
        nonce = new_nonce()
        answer = await session.ask(
            ca_pb2.ExchangeRequest(
                hello=ca_pb2.Hello(
                    nonce=nonce,
                    policy_digest=self._policy.digest,
                    policy_epoch=self._policy.epoch,
                )
            )
        )
        if answer.WhichOneof("response") == "refusal":
            raise self._refused(session, answer.refusal)
        if answer.WhichOneof("response") != "challenge":
            raise AuthorityAnswerError("the authority answered Hello with something else")
        now = self._clock.now()
        policy = self._policy.digest
        same = for_news and session.says_the_same(
            answer.challenge, nonce=nonce, policy=policy, now=now
        )
        if same:
            session.nonce = answer.challenge.nonce
            return
        try:
            trusted = verify_challenge(
                answer.challenge,
                nonce=nonce,
                tls_key=session.connection.tls_key,
                verifier=demanded(self._verifier),
                now=now.wall,
            )
        except CertificateError as error:
            raise AuthorityAnswerError(f"{session.address}: {error}") from error
        session.trust(trusted, policy=policy, now=now)

    async def _under_policy(self, session: Session) -> None:
        """Verify the authority under the policy that is in force now: it says who may be one.

        Raises:
            EvidenceError: ``authority_evidence``: it may not, and another replica is asked.
        """
        while session.verified_by != self._policy.digest:
            try:
                await self._hello(session)
            except EvidenceError as error:
                raise EvidenceError(
                    error.message, advice=error.advice, reason="authority_evidence"
                ) from error

    async def _exchange(self, session: Session, items: Sequence[CertificateItem]) -> Issuance:
        try:
            async with deadline(
                self._settings.answer_seconds,
                f"the authority at {session.address} did not answer in time",
            ):
                issuance = await self._ask(session, items)
        except AuthorityRefusedError:
            if not session.usable:
                await self._drop()
            raise
        except BaseException:
            await self._drop()
            raise
        if any(map(is_better_asked_elsewhere, issuance.outcomes)):
            self._order.failed(self._place)
            await self._drop()
        return issuance

    async def _ask(self, session: Session, items: Sequence[CertificateItem]) -> Issuance:
        digests = [digest_of(item) for item in items]
        refused: AuthorityRefusedError | None = None
        for _ in range(_TRIES_ON_A_STREAM):
            await self._under_policy(session)
            answer = await session.ask(await self._request(session, items, digests))
            match answer.WhichOneof("response"):
                case "certificates":
                    issuance = self._issuance(session, answer.certificates, items)
                    await self._under_policy(session)  # another one may have come meanwhile
                    require_for_certificates(self._policy, session.address)
                    return issuance
                case "refusal":
                    session.nonce = answer.refusal.next_nonce
                    refused = self._refused(session, answer.refusal)
                    if refused.wire_reason in _SAY_HELLO:
                        await self._hello(session)
                    elif not await self._curable(session, answer.refusal):
                        raise refused
                case _:
                    raise AuthorityAnswerError("the authority answered with something else")
        assert refused is not None
        raise refused

    async def _curable(self, session: Session, refusal: ca_pb2.Refusal) -> bool:
        """Say whether asking again at once can help."""
        if refusal.reason in _TRY_AGAIN:
            return session.usable
        if refusal.evidence_challenge:
            await answer_challenge(self._attester, refusal.evidence_challenge)
            return session.usable
        if refusal.reason == "policy_behind" and refusal.signed_policy:
            return session.usable and await self._policy.offer(refusal.signed_policy)
        return False

    async def _request(
        self, session: Session, items: Sequence[CertificateItem], digests: Sequence[bytes]
    ) -> ca_pb2.ExchangeRequest:
        # Read at once: another policy may come into force while evidence is made.
        policy_digest, policy_epoch = self._policy.digest, self._policy.epoch
        ahead = policy_epoch > session.trusted.statement.policy_epoch
        document = self._policy.document if ahead else b""
        evidence = await self._attester.attest(
            request_report_data(nonce=session.nonce, policy_digest=policy_digest, digests=digests)
        )
        return ca_pb2.ExchangeRequest(
            certificates=ca_pb2.CertificateRequest(
                nonce=session.nonce,
                items=[
                    ca_pb2.Item(
                        csr=item.csr,
                        spiffe_id=str(item.identity.spiffe_id),
                        dns_names=item.identity.dns_names,
                        lifetime_seconds=lifetime_seconds(item),
                        signing=item.signing,
                    )
                    for item in items
                ],
                evidence=wire.evidence_to_wire(evidence),
                policy_digest=policy_digest,
                policy_epoch=policy_epoch,
                signed_policy=document,
            )
        )

    def _refused(self, session: Session, refusal: ca_pb2.Refusal) -> AuthorityRefusedError:
        error = wire.refusal_from_wire(refusal)
        _LOGGER.log(
            # A question about our evidence is no failure: the next round answers it.
            logging.DEBUG if refusal.evidence_challenge else logging.WARNING,
            "the authority at %s refused: %s",
            session.address,
            error,
            extra={"address": session.address, "reason": error.wire_reason},
        )
        return error

    def _issuance(
        self,
        session: Session,
        answer: ca_pb2.CertificateResponse,
        items: Sequence[CertificateItem],
    ) -> Issuance:
        session.accepted(answer.next_nonce)
        trusted = session.trusted
        if len(answer.results) != len(items):
            raise AuthorityAnswerError(f"{len(answer.results)} results came for {len(items)} items")
        if tuple(answer.issuing_chain) != trusted.statement.issuing_chain or set(
            answer.roots
        ) != set(trusted.statement.roots):
            raise AuthorityAnswerError(
                "the authority answered with another key or bundle than its evidence covers"
            )
        outcomes: list[IssuedChain | AuthorityError] = []
        for item, result in zip(items, answer.results, strict=True):
            if result.WhichOneof("result") == "certificate":
                outcomes.append(IssuedChain(chain=(result.certificate.leaf, *trusted.presented)))
                continue
            error = wire.refusal_from_wire(result.refusal)
            _LOGGER.warning(
                "no certificate for %s: %s",
                item.identity.spiffe_id,
                error,
                extra={
                    "spiffe_id": str(item.identity.spiffe_id),
                    "reason": error.wire_reason,
                    "address": session.address,
                },
            )
            outcomes.append(error)
        return Issuance(outcomes=tuple(outcomes), roots=trusted.statement.roots)


def _log_failure(error: SdsError) -> None:
    _LOGGER.warning("an authority failed: %s", error, extra={"reason": error.reason})
