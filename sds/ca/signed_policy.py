"""Decides issuance by the signed policy that this authority verified itself.

Owns the authority's side of policy: who may ask, and what is granted. Invariants: the authority
accepts a policy from an agent only for its signatures; it issues nothing to an agent that has
another policy in force, and nothing at all while it has none in force itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sds.errors import PolicyError, RefusedError
from sds.policy.peer_comparison import Standing, standing
from sds.policy.trust import Epoch

if TYPE_CHECKING:
    from datetime import datetime

    from sds.attestation.evidence import Claims
    from sds.policy.holder import PolicyHolder
    from sds.policy.nodes import Permit, RequestedCertificate


class SignedIssuancePolicy:
    """Implements :class:`sds.ca.issuance.IssuancePolicy` from a :class:`PolicyHolder`."""

    def __init__(self, holder: PolicyHolder) -> None:
        """Decide by the policy in ``holder``, into which another task reloads files."""
        self._holder = holder

    @property
    def digest(self) -> bytes:
        return self._holder.digest

    @property
    def epoch(self) -> int:
        return self._holder.epoch

    @property
    def document(self) -> bytes:
        """Return what an agent that is behind needs to catch up."""
        return self._holder.document

    def admit(self, *, digest: bytes, epoch: int, document: bytes) -> None:
        """Admit an agent that has our policy; take the agent's policy if it proves to be newer.

        Raises:
            PolicyNotInForceError: ``policy_expired``: our policy has expired, so nothing is issued.
            PolicyNotInForceError: ``policy_absent``: we have no policy.
            RefusedError: ``policy_behind``: the agent is behind, or says that it is ahead and
                cannot prove it.
            PolicyError: ``policy_epoch_conflict``: the agent has another policy of our epoch.
        """
        peer = Epoch(number=epoch, digest=digest)
        if self._standing(peer) is Standing.BEHIND and document:
            outcome = self._holder.take_from_stranger(document)
            if outcome.refusal is not None and outcome.taken is None:
                raise outcome.refusal
        self._holder.in_force()
        match self._standing(peer):
            case Standing.EQUAL:
                return
            case Standing.AHEAD:
                raise RefusedError(
                    f"the agent has epoch {epoch} of the policy, and {self.epoch} is in force",
                    advice="take the signed policy that comes with this answer",
                    reason="policy_behind",
                )
            case Standing.BEHIND:
                raise RefusedError(
                    f"the agent says that it has the policy of epoch {epoch}, while epoch "
                    f"{self.epoch} is in force here, and did not prove it",
                    advice="send the signed policy of that epoch along",
                    reason="policy_behind",
                )
            case Standing.CONFLICT:
                raise PolicyError(
                    f"the agent has another policy of epoch {epoch} than is in force here",
                    advice="two policies of one epoch were signed: sign a higher epoch",
                    reason="policy_epoch_conflict",
                )

    def decide(self, claims: Claims, wanted: RequestedCertificate, *, now: datetime) -> Permit:
        """Permit what the policy in force grants to nodes with these claims.

        Raises:
            PolicyNotInForceError: ``policy_expired``: the policy has expired.
            RefusedError: the reason names what is not allowed.
        """
        del now  # the holder reads the same clock as the registration
        return self._holder.in_force().decisions.permit(claims, wanted)

    def _standing(self, peer: Epoch) -> Standing:
        return standing(Epoch(number=self.epoch, digest=self.digest), peer)
