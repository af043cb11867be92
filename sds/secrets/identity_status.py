"""What people see of one identity's rotation.

Owns the words. Invariant: public facts only.
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
        identity: which.
        condition: ``valid`` (a certificate is served), ``waiting`` (none yet, or it expired),
            ``refused`` (none, and retrying alone will not help).
        serial: of the certificate that is served.
        not_after: its end.
        renew_at: when the next renewal is due.
        rotations: certificates that were taken into service.
        attempts: attempts that failed since the last success.
        reason: of the last failure.
        message: of the last failure.
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


def reason_of(error: SdsError) -> str:
    """The reason that the authority gave, or our own."""
    return error.wire_reason if isinstance(error, AuthorityRefusedError) else error.reason
