"""What one exchange asks for and gets, item by item.

Invariant: both ends of the wire share these types; neither end's code is needed to make one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
