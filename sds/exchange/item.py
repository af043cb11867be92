"""The items that an exchange asks for, and the chains that it returns.

Invariant: both ends of the wire share these types, and making one needs the code of neither end.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sds.identity import Identity


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateItem:
    """A request for one certificate.

    Attributes:
        identity: the SPIFFE ID, DNS names and lifetime that are requested.
        csr: PKCS#10 in DER, signed by the new key.
        signing: whether the certificate is for a subordinate authority (SPIFFE ID without a path).
    """

    identity: Identity
    csr: bytes = field(repr=False)
    signing: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedChain:
    """The chain that the authority returned for one item: DER, leaf first, without the root."""

    chain: tuple[bytes, ...] = field(repr=False)
