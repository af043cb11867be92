"""The common part of all verifiers: refuse other kinds, run the checks, make a verdict.

Owns :class:`KindExaminer`. Invariant: the checks of a kind never see evidence of another one, and
:meth:`KindExaminer.verify` returns claims only if every check passed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from sds.attestation.checks import Checks, Verdict

if TYPE_CHECKING:
    from datetime import datetime

    from sds.attestation.evidence import Claims, Evidence, EvidenceKind, ReportData


class KindExaminer(ABC):
    """Verifies and appraises evidence of one kind."""

    def __init__(self, kind: EvidenceKind) -> None:
        self._kind = kind

    def verify(self, evidence: Evidence, *, data: ReportData, now: datetime) -> Claims:
        return self.examine(evidence, data=data, now=now).claims_or_raise()

    def examine(self, evidence: Evidence, *, data: ReportData | None, now: datetime) -> Verdict:
        """Run every check that can run, in the order of the kind's documents.

        Args:
            evidence: the evidence.
            data: the required report data; None requires none.
            now: the time at which certificates, lists and collateral must be valid.
        """
        checks = Checks()
        claims = None
        if checks.add(
            "kind",
            "evidence_kind",
            ok=evidence.kind is self._kind,
            found=evidence.kind,
            expected=self._kind,
        ):
            claims = self._check(checks, evidence, data, now)
        return Verdict(kind=self._kind, checks=tuple(checks.done), claims=claims)

    @abstractmethod
    def _check(
        self, checks: Checks, evidence: Evidence, data: ReportData | None, now: datetime
    ) -> Claims | None:
        """Record this kind's checks; return what the evidence says, None if it cannot be read."""
