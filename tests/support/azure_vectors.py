"""Real evidence of Azure's confidential VMs, as our evidence carries it."""

from __future__ import annotations

import base64
import struct
from typing import TYPE_CHECKING, Any

from sds.attestation.tpm.quote import SignedQuote
from sds.attestation.tpm.wire import Algorithm, sized

if TYPE_CHECKING:
    from collections.abc import Mapping


def decoded(text: str) -> bytes:
    """Base64url without padding."""
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def quote_of(said: Mapping[str, Any]) -> SignedQuote:
    """A quote as ``az-cvm-vtpm`` writes it: message and bare RSASSA signature in hex."""
    head = struct.pack(">HH", Algorithm.RSASSA, Algorithm.SHA256)
    return SignedQuote(
        attest=bytes.fromhex(said["message"]),
        signature=head + sized(bytes.fromhex(said["signature"])),
        values=b"".join(map(bytes.fromhex, said["pcrs"])),
    )
