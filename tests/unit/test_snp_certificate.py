from __future__ import annotations

import pytest

from sds.attestation.snp.certificate import Certificate
from sds.errors import EvidenceError


def test_a_certificate_above_16_kib_is_refused_before_it_is_read() -> None:
    """AMD's have less than 2 KiB; the bound of other certificates is another one."""
    encoded = b"\x30\x82\x40\x00" + bytes(16_384)
    with pytest.raises(EvidenceError, match="longer than 16384 bytes") as refused:
        Certificate.parse(encoded)
    assert refused.value.reason == "certificate_malformed"
