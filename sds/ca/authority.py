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
    from sds.identity import Identity


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateItem:
    """One certificate that is asked for.

    Attributes:
        identity: name, DNS names and lifetime that are wanted.
        csr: PKCS#10 in DER, signed by the new key.
        signing: ask for the certificate of an authority below that one (SPIFFE ID without path).
    """

    identity: Identity
    csr: bytes = field(repr=False)
    signing: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedChain:
    """What the authority returned for one item: DER, leaf first, intermediates, no root."""

    chain: tuple[bytes, ...] = field(repr=False)


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
            EvidenceError: our evidence cannot be collected, or the authority's does not hold.
        """
        ...
