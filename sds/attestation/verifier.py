"""Verifies every kind of evidence, by dispatching on the kind.

Owns the one entry that the certificate authority and the agent call. Invariant: a kind without a
verifier is refused; a verifier never sees evidence of another kind. :mod:`sds.attestation.registry`
lists the kinds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sds.attestation.checks import one_of
from sds.errors import EvidenceError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from sds.attestation.evidence import Claims, Evidence, EvidenceKind, ReportData, Verifier


class EvidenceVerifier:
    """Hands each piece of evidence to the verifier of its kind."""

    def __init__(self, verifiers: Mapping[EvidenceKind, Verifier]) -> None:
        """Dispatch to ``verifiers``: kind -> verifier, such as an ``SnpVerifier``."""
        self._verifiers = dict(verifiers)

    def verify(self, evidence: Evidence, *, data: ReportData, now: datetime) -> Claims:
        """Verify with the verifier of the evidence's kind.

        Raises:
            EvidenceError: ``evidence_kind``: this kind has no verifier here.
        """
        verifier = self._verifiers.get(evidence.kind)
        if verifier is None:
            raise EvidenceError(
                f"evidence of kind {evidence.kind} is not accepted here",
                advice=f"accepted is {one_of(tuple(self._verifiers))}",
                reason="evidence_kind",
            )
        return verifier.verify(evidence, data=data, now=now)
