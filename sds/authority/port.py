"""The port to a certificate authority, as rotation uses it and every client implements it.

Owns the types of one exchange. Invariants: an answer has one outcome for each item, in the order
of the request; nothing in it was verified against the request yet (rotation does that).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sds.errors import AuthorityError
    from sds.exchange.item import CertificateItem, IssuedChain


@dataclass(frozen=True, slots=True, kw_only=True)
class Issuance:
    """The authority's answer to one request.

    Attributes:
        outcomes: for each item, in order, a chain or the error that says why there is none.
        roots: the trust bundle that the authority vouches for, in DER.
    """

    outcomes: tuple[IssuedChain | AuthorityError, ...]
    roots: tuple[bytes, ...] = field(repr=False)


class Authority(Protocol):
    """Asks for certificates."""

    async def issue(self, items: Sequence[CertificateItem]) -> Issuance:
        """Ask for a certificate for each item, in one exchange.

        Raises:
            AuthorityError: the exchange as a whole failed; ``retriable`` says whether a retry can
                help.
            EvidenceError: our evidence cannot be collected, or the authority's is invalid.
        """
        ...
