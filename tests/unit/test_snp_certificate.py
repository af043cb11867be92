from __future__ import annotations

import pytest

from sds.attestation.snp import sources
from sds.attestation.snp.certificate import PSS_ALGORITHMS, Certificate
from sds.errors import EvidenceError
from sds.identity import KeyType
from sds.pki import generate_private_key, spki_der
from tests.support.der import integer, octets, oid, sequence, tlv


def test_a_certificate_above_16_kib_is_refused_before_it_is_read() -> None:
    """AMD's have less than 2 KiB; the bound of other certificates is another one."""
    encoded = b"\x30\x82\x40\x00" + bytes(16_384)
    with pytest.raises(EvidenceError, match="longer than 16384 bytes") as refused:
        Certificate.parse(encoded)
    assert refused.value.reason == "certificate_malformed"


@pytest.mark.parametrize("where", ["name", "extensions"])
def test_a_certificate_of_very_many_parts_is_refused_before_each_is_read(where: str) -> None:
    """Anybody may send seventeen of 16 KiB each, and each part would be parsed by itself."""
    names = [tlv(0x31, sequence(oid("2.5.4.3"), tlv(0x0C, b"a")))]
    names += [tlv(0x31, sequence(oid("1.2"), tlv(0x0C, b"")))] * (1000 if where == "name" else 1)
    count = 1000 if where == "extensions" else 1
    extensions = [sequence(oid(f"1.2.{i}"), octets(b"")) for i in range(count)]
    moment = tlv(0x17, b"260101000000Z")
    content = sequence(
        tlv(0xA0, integer(2)),
        integer(0),
        PSS_ALGORITHMS[0],
        sequence(),
        sequence(moment, moment),
        sequence(*names),
        spki_der(generate_private_key(KeyType.EC_P384).public_key()),
        tlv(0xA3, sequence(*extensions)),
    )
    encoded = sequence(content, PSS_ALGORITHMS[0], tlv(0x03, b"\0"))
    with pytest.raises(EvidenceError, match="more than 64 elements") as refused:
        Certificate.parse(encoded)
    assert refused.value.reason == "certificate_malformed"


def test_of_very_many_issuers_of_one_name_few_are_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The host's metadata service has room for 155, which took 24,000 signatures to compare."""
    compared = 0

    class OfOneName:
        subject = issuer = b"the same"

        def __init__(self, der: bytes) -> None:
            self.der = der

        @classmethod
        def parse(cls, der: bytes) -> OfOneName:
            return cls(der)

        def signed_by(self, issuer: OfOneName) -> bool:
            nonlocal compared
            compared += 1
            return issuer.der == found[-1]

    monkeypatch.setattr(sources, "Certificate", OfOneName)
    found = [bytes([number]) for number in range(16)]
    assert sources.hold_together(b"leaf", sources.issuers_of(b"leaf", found))
    found = [bytes([number]) for number in range(155)]
    sources.hold_together(b"leaf", sources.issuers_of(b"leaf", found))
    assert compared < 1000
