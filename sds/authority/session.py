"""One stream to an authority, and whether its other end is trusted.

Invariants: only :func:`verify_challenge` makes a :class:`TrustedAuthority`; a session without one
sends only Hellos.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

import grpc
import grpc.aio

from sds.attestation.evidence import Verifier
from sds.authority.connection_failure import OWN_AUTHORITY, explained
from sds.authority.patience import reason_of_end
from sds.errors import AuthorityAnswerError, AuthorityUnavailableError, EvidenceError
from sds.exchange import wire
from sds.exchange.challenge import NONCE_BYTES, AuthorityStatement, authority_report_data
from sds.pki import MAX_ROOTS, load_issuer, spki_sha256, supported_key, verify_authority_chain
from sds.reasons.authority import NO_ANSWER

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import datetime

    from sds._proto.sds.ca.v1 import ca_pb2
    from sds.attestation.evidence import Claims
    from sds.authority.channel import AuthorityConnection
    from sds.clock import Instant

VERIFIED_SECONDS: Final = 150.0
"""How long a Challenge that repeats a verified one is not verified again."""
MOST_UNVERIFIED_BYTES: Final = 4 * 1024 * 1024
"""Of an answer by who may be anybody: a chain, roots and evidence, and no policy."""
_MOST_WORDS: Final = 1000
"""Of what the other end says: it may be anybody, and has room for 16 KiB."""
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustedAuthority:
    """An authority whose Challenge was verified.

    Attributes:
        statement: what the authority states about itself.
        claims: what its evidence proved; None if plain verified TLS alone vouches for it.
        presented: its chain without the root, as it follows a leaf.
        nonce: the first nonce that it gave.
    """

    statement: AuthorityStatement
    claims: Claims | None
    presented: tuple[bytes, ...] = field(repr=False)
    nonce: bytes


@runtime_checkable
class ChangingDemands(Verifier, Protocol):
    """A verifier whose reference values come and go with the policy."""

    @property
    def demands_evidence(self) -> bool:
        """Say whether there are any now."""
        ...


def demanded(verifier: Verifier | None) -> Verifier | None:
    """Return the verifier if evidence is demanded now, else None."""
    if isinstance(verifier, ChangingDemands) and not verifier.demands_evidence:
        return None
    return verifier


def verify_challenge(
    challenge: ca_pb2.Challenge,
    *,
    nonce: bytes,
    tls_key: bytes | None,
    verifier: Verifier | None,
    now: datetime,
) -> TrustedAuthority:
    """Check an authority's answer to our Hello.

    The checks, in order (``docs/exchange.md``): 1. it gives a nonce of 32 bytes, a chain and
    not too many roots; 2. its evidence covers our nonce; 3. the TLS key that it names is the one
    that answers; 4. its evidence is valid, and binds all of this; 5. its issuing chain is valid
    under its own roots.

    Args:
        challenge: the answer.
        nonce: our own nonce.
        tls_key: SHA-256 of the key that answers; None if a configured root vouches for it.
        verifier: has the reference values for authorities; None if none are configured.
        now: the time at which evidence and chain must be valid.

    Raises:
        AuthorityAnswerError: it is not a Challenge that we can use.
        EvidenceError: the evidence is missing, is invalid or does not cover this.
        CertificateError: its issuing chain is invalid.
    """
    if len(challenge.nonce) != NONCE_BYTES or not challenge.issuing_chain or not challenge.roots:
        raise AuthorityAnswerError("the Challenge lacks a nonce, a chain or roots")  # 1
    if len(challenge.roots) > MAX_ROOTS:  # each may cost a signature
        raise AuthorityAnswerError(
            f"the authority names {len(challenge.roots)} roots, and at most {MAX_ROOTS} are read",
            reason="authority_roots",
        )
    key = supported_key(load_issuer(challenge.issuing_chain[0], "issuing certificate"))
    statement = wire.statement_from_wire(challenge, issuing_key=spki_sha256(key))
    covered = tuple(challenge.covered_nonces) or (nonce,)
    if nonce not in covered:  # 2
        raise EvidenceError(
            "the authority's evidence does not cover our nonce: it may be replayed",
            reason="authority_evidence",
        )
    if tls_key is not None and tls_key != statement.tls_key:  # 3
        raise EvidenceError(
            "the authority's evidence is for another TLS key than the one that answers",
            advice="somebody intercepts the connection, or ends TLS in front of the authority",
            reason="authority_evidence",
        )
    claims = None
    if verifier is not None:  # 4
        if not challenge.HasField("evidence"):
            raise EvidenceError(
                "the authority shows no evidence, and reference values demand it",
                reason="authority_evidence",
            )
        claims = verifier.verify(
            wire.evidence_from_wire(challenge.evidence),
            data=authority_report_data(statement, covered),
            now=now,
        )
    root = verify_authority_chain(  # 5
        statement.issuing_chain, roots=statement.roots, public_key=key, now=now
    )
    return TrustedAuthority(
        statement=statement,
        claims=claims,
        presented=tuple(der for der in statement.issuing_chain if der != root),
        nonce=challenge.nonce,
    )


class Session:
    """One open stream; used by one task at a time."""

    def __init__(self, *, address: str, connection: AuthorityConnection) -> None:
        """Take over the connection; :meth:`close` closes it."""
        self.address = address
        self.connection = connection
        self.nonce = b""
        self.proven = False
        """Whether the authority has accepted our evidence; it soon ends a stream that lacks it."""
        self._call: Any = None
        self._trusted: TrustedAuthority | None = None
        self._verified_at = float("-inf")
        self.verified_by = b""
        """The digest of the policy under which the other end was verified."""

    @property
    def usable(self) -> bool:
        """Say whether another request can be sent: the authority gave a nonce for it."""
        return len(self.nonce) == NONCE_BYTES

    def accepted(self, next_nonce: bytes) -> None:
        """Note that our evidence was accepted, with the nonce for the next request."""
        self.proven, self.nonce = True, next_nonce

    @property
    def trusted(self) -> TrustedAuthority:
        """Return the authority at the other end.

        Raises:
            AuthorityAnswerError: its evidence was not verified yet.
        """
        if self._trusted is None:
            raise AuthorityAnswerError("the authority's evidence has not been verified")
        return self._trusted

    def says_the_same(
        self, challenge: ca_pb2.Challenge, *, nonce: bytes, policy: bytes, now: Instant
    ) -> bool:
        """Say whether a Challenge repeats what was verified on this stream a short while ago.

        Such a Challenge says nothing new, so its evidence need not be verified: TLS, whose key the
        evidence covered, shows that this stream still leads to the same authority. Any other
        Challenge is verified as a whole. So is every Challenge under another policy or after
        :data:`VERIFIED_SECONDS`, so that revocations take effect.
        """
        known = self._trusted
        age = now.boottime - self._verified_at
        if known is None or age > VERIFIED_SECONDS or policy != self.verified_by:
            return False
        if len(challenge.nonce) != NONCE_BYTES or nonce not in (
            challenge.covered_nonces or [nonce]
        ):
            return False
        key = known.statement.issuing_key  # the same chain has the same key
        return wire.statement_from_wire(challenge, issuing_key=key) == known.statement

    def trust(self, authority: TrustedAuthority, *, policy: bytes, now: Instant) -> None:
        """Trust the authority, whose Challenge was verified under the policy with this digest."""
        known = self._trusted
        self._trusted, self._verified_at, self.verified_by = authority, now.boottime, policy
        self.nonce = authority.nonce
        claims = authority.claims
        if known is not None and known.statement.issuing_key == authority.statement.issuing_key:
            return  # a fresh Challenge of a known authority is not worth a log line
        fields = {
            "address": self.address,
            "measurement": claims.measurement if claims else "",
            "issuing_key": authority.statement.issuing_key.hex(),
            "policy_epoch": authority.statement.policy_epoch,
        }
        if claims is None:
            _LOGGER.warning(
                "the authority at %s shows no evidence that was verified: TLS under the "
                "configured root alone vouches for it",
                self.address,
                extra=fields,
            )
        elif claims.simulated:
            _LOGGER.warning(
                "SIMULATION: the evidence of the authority at %s comes from a simulated machine "
                "and proves nothing about hardware",
                self.address,
                extra=fields,
            )
        else:
            _LOGGER.info("the authority at %s is attested", self.address, extra=fields)

    async def start(self) -> None:
        """Open the stream; the first message makes the connection."""
        method: Any = self.connection.channel.stream_stream(wire.EXCHANGE)
        self._call = method()

    async def ask(self, request: ca_pb2.ExchangeRequest) -> ca_pb2.ExchangeResponse:
        """Send one message, and read the answer to it.

        Raises:
            AuthorityUnavailableError: the stream broke.
            AuthorityAnswerError: the answer cannot be parsed.
        """
        self.nonce = b""
        try:
            await self._call.write(request.SerializeToString())
            data = await self._call.read()
            if data is grpc.aio.EOF:
                code, details = await self._call.code(), await self._call.details() or ""
                raise AuthorityUnavailableError(
                    f"the authority at {self.address} ended the stream: {code.name} "
                    f"{details[:_MOST_WORDS]}",
                    reason=reason_of_end(code, details),
                )
        except grpc.aio.AioRpcError as error:
            details = error.details() or ""
            what, cure = explained(details, OWN_AUTHORITY) or ("it cannot be asked", "")
            raise AuthorityUnavailableError(
                f"the authority at {self.address}: {what}: {error.code().name} "
                f"{details[:_MOST_WORDS]}",
                advice=cure,
                reason=reason_of_end(error.code(), details),
            ) from error
        except asyncio.InvalidStateError as error:
            raise AuthorityUnavailableError(
                f"the stream to the authority at {self.address} is closed"
            ) from error
        if self._trusted is None and len(data) > MOST_UNVERIFIED_BYTES:
            raise AuthorityAnswerError(
                f"the authority at {self.address} answered Hello with {len(data)} bytes, and at "
                f"most {MOST_UNVERIFIED_BYTES} are read before its evidence was verified",
                advice="check that this is the address of an attested-sds authority",
            )
        return wire.parse_response(data)

    async def close(self) -> None:
        """End the stream and the connection.

        gRPC reads from a closed connection for as long as somebody has a call on it.
        """
        call, self._call = self._call, None
        if call is not None:
            call.cancel()
            del call
        await self.connection.channel.close()


@contextlib.asynccontextmanager
async def deadline(seconds: float, what: str) -> AsyncIterator[None]:
    """A block that an authority has so many seconds for; ``what`` it did not do begins the error.

    Raises:
        AuthorityUnavailableError: ``authority_no_answer``: they are over.
    """
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise AuthorityUnavailableError(f"{what} within {seconds:g} s", reason=NO_ANSWER) from error
