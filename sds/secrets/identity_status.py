"""The state of one identity's rotation, as people see it.

Owns the words for it. Invariant: it contains public facts only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sds.errors import AuthorityRefusedError

if TYPE_CHECKING:
    from datetime import datetime

    from sds.errors import SdsError
    from sds.identity import Identity

Condition = Literal["valid", "waiting", "refused"]


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityStatus:
    """What ``sds status`` shows of one identity.

    Attributes:
        identity: the identity in question.
        condition: ``valid`` (a certificate is served), ``waiting`` (none yet, or it expired),
            ``refused`` (none, and retrying alone will not help).
        serial: the serial number of the certificate that is served.
        not_after: the end of that certificate's validity.
        renew_at: when the next renewal is due.
        rotations: how many certificates were taken into service.
        attempts: how many attempts failed since the last success, or since something changed that
            may cure the failure.
        reason: the reason of the last failure; empty after a success.
        message: the text of the last failure.
        wanted: whether somebody may have it now; False at rest, and before its first caller.
    """

    identity: Identity
    condition: Condition
    serial: int | None = None
    not_after: datetime | None = None
    renew_at: datetime | None = None
    rotations: int = 0
    attempts: int = 0
    reason: str = ""
    message: str = ""
    wanted: bool = True


def reason_of(error: SdsError) -> str:
    """Return the reason that the authority gave; without one, our own."""
    return error.wire_reason if isinstance(error, AuthorityRefusedError) else error.reason
