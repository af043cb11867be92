"""Decides who may have which certificate: the port, and the rules of the configuration file.

Owns the port :class:`IssuancePolicy`. Both of its implementations let the same engine decide
(:class:`sds.policy.decision.Decisions`): :class:`ConfiguredIssuance` over the rules of the
configuration file, which nobody signed, and :class:`sds.ca.signed_policy.SignedIssuancePolicy` over
the signed policy in force.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from sds.policy.decision import Decisions
from sds.policy.peer_comparison import NO_POLICY_DIGEST

if TYPE_CHECKING:
    from datetime import datetime

    from sds.attestation.evidence import Claims
    from sds.policy.nodes import Permit, RequestedCertificate
    from sds.policy.ruleset import RuleSet


class IssuancePolicy(Protocol):
    """Decides which measured machine may have which certificate.

    Attributes:
        digest: the SHA-256 of the policy in force (of the empty string if there is none).
        epoch: the policy's epoch; 0 if there is none.
        document: the signed policy that is handed to an agent that is behind, or nothing.
    """

    @property
    def digest(self) -> bytes: ...

    @property
    def epoch(self) -> int: ...

    @property
    def document(self) -> bytes: ...

    def admit(self, *, digest: bytes, epoch: int, document: bytes) -> None:
        """Check the policy that the asking agent has in force, before anything is issued.

        Args:
            digest: the SHA-256 of the agent's policy, which its evidence covers.
            epoch: the epoch that the agent says it has.
            document: the agent's signed policy, if it says that it is ahead of us.

        Raises:
            PolicyBehindError: the agent must take our policy first.
        """
        ...

    def decide(self, claims: Claims, wanted: RequestedCertificate, *, now: datetime) -> Permit:
        """Decide what may be issued of the requested certificate.

        Raises:
            RefusedError: the reason names what is not allowed.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfiguredIssuance:
    """Decides by the rules of the configuration file, which has no signature and no epoch."""

    decisions: Decisions
    digest: bytes = NO_POLICY_DIGEST
    epoch: int = 0
    document: bytes = field(default=b"", repr=False)

    @classmethod
    def by(cls, rules: RuleSet) -> ConfiguredIssuance:
        """Make one that decides by these rules."""
        return cls(decisions=Decisions(rules))

    def admit(self, *, digest: bytes, epoch: int, document: bytes) -> None:
        """Admit every agent: without a signed policy none can be out of date."""

    def decide(self, claims: Claims, wanted: RequestedCertificate, *, now: datetime) -> Permit:
        """Apply the first rule that allows the whole certificate."""
        del now
        return self.decisions.permit(claims, wanted)
