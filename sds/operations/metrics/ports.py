"""Wraps authority, attester and verifier, each in its own kind of port, to time and count them.

Invariant: a wrapper passes on the same arguments, answer and exception; it counts an exception by
its ``reason`` and raises it again.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from sds.attestation.evidence import answer_challenge
from sds.attestation.registry import KINDS
from sds.clock import stopwatch
from sds.errors import (
    AuthorityAnswerError,
    AuthorityRefusedError,
    AuthorityUnavailableError,
    EvidenceError,
    PolicyError,
    SdsError,
)
from sds.operations.metrics.families import (
    ACCEPTED,
    ISSUED,
    UNAVAILABLE,
    Reasons,
    start_at_zero,
)
from sds.reasons.attestation import ATTESTATION
from sds.reasons.authority import AUTHORITY

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sds.attestation.evidence import Attester, Claims, Evidence, ReportData, Verifier
    from sds.authority.port import Authority, Issuance
    from sds.exchange.item import CertificateItem
    from sds.operations.metrics.families import AgentFamilies, ProcessFamilies


def reason_of(error: BaseException) -> str:
    """Return an error's label: the authority's reason, ours, ``cancelled`` or ``internal``."""
    if isinstance(error, AuthorityRefusedError):
        return error.wire_reason
    if isinstance(error, SdsError):
        return error.reason
    return "cancelled" if isinstance(error, asyncio.CancelledError) else "internal"


_ANSWERED: Final = (AuthorityRefusedError, AuthorityAnswerError, EvidenceError, PolicyError)
"""Errors about what an authority answered: its evidence or policy is refused, say."""


class MeteredAuthority:
    """Times the exchanges with an authority, and counts their outcomes."""

    def __init__(self, inner: Authority, families: AgentFamilies) -> None:
        self._inner = inner
        self._families = families
        self._reasons = Reasons((ISSUED, *AUTHORITY))

    async def issue(self, items: Sequence[CertificateItem]) -> Issuance:
        started = stopwatch()
        try:
            issuance = await self._inner.issue(items)
        except BaseException as error:
            self._count(reason_of(error), len(items))
            self._note(error)
            raise
        finally:
            self._families.issue_latency.observe(stopwatch() - started)
        self._families.authority_up.set(1)
        for outcome in issuance.outcomes:
            self._count(reason_of(outcome) if isinstance(outcome, Exception) else ISSUED, 1)
        return issuance

    def _count(self, outcome: str, number: int) -> None:
        self._families.requests.labels(self._reasons.label(outcome)).inc(number)

    def _note(self, error: BaseException) -> None:
        """Note, by the error, whether the authority answers; some come before it is asked."""
        if isinstance(error, AuthorityUnavailableError):
            self._families.authority_up.set(0)
        elif isinstance(error, _ANSWERED):
            self._families.authority_up.set(1)


class MeteredRootsAuthority(MeteredAuthority):
    """Wraps an authority that can also be asked for its roots alone."""

    async def roots(self) -> tuple[bytes, ...]:
        try:
            found: tuple[bytes, ...] = await self._inner.roots()  # type: ignore[attr-defined]  # its maker chose the port
        except SdsError as error:
            self._note(error)
            raise
        self._families.authority_up.set(1)
        return found


class MeteredAttester:
    """Times the work of an attester."""

    def __init__(self, inner: Attester, families: ProcessFamilies) -> None:
        self._inner = inner
        self._families = families
        self._reasons = Reasons(UNAVAILABLE)

    async def attest(self, data: ReportData) -> Evidence:
        started = stopwatch()
        try:
            return await self._inner.attest(data)
        except BaseException as error:
            reason = self._reasons.label(reason_of(error))
            self._families.evidence_failures.labels(reason).inc()
            raise
        finally:
            self._families.evidence_latency.observe(stopwatch() - started)

    async def answer_challenge(self, challenge: bytes) -> None:
        """Answer as the real attester does."""
        await answer_challenge(self._inner, challenge)


VERDICTS: Final = (ACCEPTED, *ATTESTATION, "certificate_malformed")
"""Each is exported from the start, at 0, so that the first evidence that is refused is an increase:
alerts ask for one."""


class MeteredVerifier:
    """Counts the verdicts of a verifier; a question to the attester is none."""

    def __init__(self, inner: Verifier, families: ProcessFamilies) -> None:
        self._inner = inner
        self._families = families
        self._reasons = Reasons(VERDICTS)
        for kind in KINDS:
            start_at_zero(families.verdicts, VERDICTS, str(kind))

    @property
    def demands_evidence(self) -> bool:
        """Say whether the real verifier demands evidence now."""
        return bool(getattr(self._inner, "demands_evidence", True))

    def verify(self, evidence: Evidence, *, data: ReportData, now: datetime) -> Claims:
        try:
            claims = self._inner.verify(evidence, data=data, now=now)
        except SdsError as error:
            if not (isinstance(error, EvidenceError) and error.challenge):
                reason = self._reasons.label(reason_of(error))
                self._families.verdicts.labels(evidence.kind.value, reason).inc()
            raise
        self._families.verdicts.labels(evidence.kind.value, ACCEPTED).inc()
        return claims
