"""The port to a certificate authority, as rotation uses it and every client implements it.

Owns the types of one exchange. Invariant: an answer carries one outcome per item, in the order
of the request; nothing in it has been verified against what was asked (rotation does that).
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
        outcomes: per item, in order, a chain or the error that says why there is none.
        roots: DER roots of the trust bundle that the authority vouches for.
    """

    outcomes: tuple[IssuedChain | AuthorityError, ...]
    roots: tuple[bytes, ...] = field(repr=False)


class Authority(Protocol):
    """Asks for certificates."""

    async def issue(self, items: Sequence[CertificateItem]) -> Issuance:
        """Ask for a certificate for each item, in one exchange.

        Raises:
            AuthorityError: the exchange as a whole failed; ``retriable`` says whether to go on.
            EvidenceError: our evidence cannot be collected, or the authority's is invalid.
        """
        ...
