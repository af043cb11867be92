"""What the client of our own authority asks of the signed policy.

Owns the port, and its stand-in for a party that follows no policy. Invariant: the client reads no
document itself.
"""

from __future__ import annotations

from typing import Protocol

from sds.errors import AuthorityAnswerError, PolicyNotInForceError
from sds.policy.peer_comparison import NO_POLICY_DIGEST


class PolicyPeer(Protocol):
    """Gives the agent's policy in force, and takes a newer one that the authority hands over."""

    @property
    def follows(self) -> bool:
        """Say whether it takes policies at all."""
        ...

    @property
    def digest(self) -> bytes:
        """Return the SHA-256 of the newest policy that was in force (of nothing if none was)."""
        ...

    @property
    def epoch(self) -> int:
        """Return the epoch of that policy; 0 if there is none."""
        ...

    @property
    def document(self) -> bytes:
        """Return the signed policy, to hand to an authority that is behind, or nothing."""
        ...

    def require_in_force(self) -> None:
        """Check that a policy is in force now, so that something may be issued.

        Raises:
            PolicyNotInForceError: ``policy_absent``, ``policy_expired``: none is.
        """
        ...

    async def offer(self, document: bytes) -> bool:
        """Take a signed policy from the authority, and say whether it is in force now."""
        ...


class NoPolicy:
    """An agent without a signed policy."""

    follows = False
    digest = NO_POLICY_DIGEST
    epoch = 0
    document = b""

    def require_in_force(self) -> None:
        """Require nothing: none is configured."""

    async def offer(self, document: bytes) -> bool:
        """Take nothing: there are no keys to verify it with."""
        del document
        return False


def require_for_certificates(policy: PolicyPeer, address: str) -> None:
    """Check that a policy is in force; an authority of the same policy issues only then.

    Raises:
        AuthorityAnswerError: none is, and the authority at this address gave certificates.
    """
    try:
        policy.require_in_force()
    except PolicyNotInForceError as error:
        raise AuthorityAnswerError(
            f"the authority at {address} gave certificates, and here {error.message}",
            advice="another authority may hand over the policy; this one follows none",
        ) from error
