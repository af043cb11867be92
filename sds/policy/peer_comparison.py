"""Compares the policies that two parties have in force.

Owns the comparison that both sides of an exchange make. Invariants: it is symmetric (one side is
ahead exactly if the other is behind), and only equal content counts as equal.
"""

from __future__ import annotations

import enum
import hashlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sds.policy.trust import Epoch

NO_POLICY_DIGEST: Final = hashlib.sha256(b"").digest()
"""The digest of a party that has no policy in force; its epoch is 0."""


class Standing(enum.Enum):
    """The result of comparing our policy with a peer's."""

    EQUAL = "equal"
    AHEAD = "ahead"
    BEHIND = "behind"
    CONFLICT = "conflict"


def standing(own: Epoch, peer: Epoch) -> Standing:
    """Compare the policy ``own`` with the policy ``peer`` of the other side."""
    if own.number > peer.number:
        return Standing.AHEAD
    if own.number < peer.number:
        return Standing.BEHIND
    return Standing.EQUAL if own.digest == peer.digest else Standing.CONFLICT
