from __future__ import annotations

import contextlib
import subprocess
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from sds import errors
from sds.attestation import csr
from sds.attestation.csr import (
    ATTESTATION_ATTRIBUTE,
    make_attested_csr,
    parse_attested_csr,
    statements,
)
from sds.attestation.evidence import Evidence, EvidenceKind
from sds.identity import Identity, KeyType, SpiffeId
from sds.pki import der, generate_private_key, make_csr
from tests.support import need
from tests.support.certificates import ca_wish, self_signed
from tests.support.der import oid, tlv
from tests.support.refusals import refused

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography.hazmat import asn1

IDENTITY = Identity(
    spiffe_id=SpiffeId.parse("spiffe://example.org/web"), dns_names=("a.test", "b.test")
)
CERTIFICATES = tuple(self_signed(ca_wish(name)).der for name in ("leaf", "middle"))
EVIDENCE = Evidence(kind=EvidenceKind.SEV_SNP, report=bytes(range(256)), certificates=CERTIFICATES)
KEY = generate_private_key(KeyType.EC_P256)
CSR = make_attested_csr(KEY, IDENTITY, EVIDENCE)


@pytest.mark.parametrize(
    "key_type", [KeyType.EC_P256, KeyType.EC_P384, KeyType.RSA_2048, KeyType.ED25519]
)
@pytest.mark.parametrize("kind", list(statements()))
def test_there_and_back(key_type: KeyType, kind: EvidenceKind) -> None:
    key = generate_private_key(key_type)
    for certificates in (CERTIFICATES, ()):
        evidence = Evidence(kind=kind, report=b"report", certificates=certificates)
        parsed = parse_attested_csr(make_attested_csr(key, IDENTITY, evidence))
        assert parsed.evidence == evidence
        assert parsed.public_key == key.public_key()
        assert (parsed.spiffe_id, parsed.dns_names) == (IDENTITY.spiffe_id, IDENTITY.dns_names)


def test_statement_types_are_fixed_and_uuid_based() -> None:
    assert {
        EvidenceKind.SEV_SNP: f"2.25.{0xFDAF082383B6435185430DFE0FCAA9B4}",
        EvidenceKind.TDX: f"2.25.{0x69C427F2211C4DC8AB7356F6869D1312}",
    } == statements()
    with refused("csr_invalid"):
        make_attested_csr(
            KEY, IDENTITY, Evidence(kind=EvidenceKind.KUBERNETES_TOKEN, report=b"token")
        )


def test_openssl_parses_it_and_verifies_its_signature(tmp_path: Path) -> None:
    (tmp_path / "csr").write_bytes(CSR)
    done = subprocess.run(
        [
            need.tool("openssl"),
            "req",
            "-inform",
            "DER",
            "-in",
            tmp_path / "csr",
            "-noout",
            "-text",
            "-verify",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "verify OK" in done.stderr + done.stdout
    assert ATTESTATION_ATTRIBUTE in done.stdout
    assert "URI:spiffe://example.org/web" in done.stdout


def test_a_plain_csr_is_refused() -> None:
    with refused("csr_invalid", match="0 attestation attributes"):
        parse_attested_csr(make_csr(KEY, IDENTITY))


def test_sans_that_cannot_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for names in (
        [],
        [x509.DNSName("a.test")],
        [x509.UniformResourceIdentifier("spiffe://a/b")] * 2,
        [x509.UniformResourceIdentifier("spiffe://a/b"), x509.RFC822Name("a@b.test")],
    ):
        builder = x509.CertificateSigningRequestBuilder(x509.Name([]))
        if names:
            sans = x509.SubjectAlternativeName(list(names))
            builder = builder.add_extension(sans, critical=True)
        plain = builder.sign(KEY, hashes.SHA256()).public_bytes(Encoding.DER)
        monkeypatch.setattr(csr, "make_csr", lambda *_, plain=plain: plain)
        with refused("csr_invalid", match="SANs"):
            parse_attested_csr(make_attested_csr(KEY, IDENTITY, EVIDENCE))


def test_sans_that_the_parser_fails_on_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name with an attribute that is a BIT STRING makes it raise TypeError."""
    attribute = tlv(0x30, oid("2.5.4.3") + tlv(0x03, b"\0a"))
    sans = tlv(0x30, tlv(0xA4, tlv(0x30, tlv(0x31, attribute))))
    odd = x509.UnrecognizedExtension(x509.SubjectAlternativeName.oid, sans)
    builder = x509.CertificateSigningRequestBuilder(x509.Name([]))
    plain = builder.add_extension(odd, critical=True).sign(KEY, hashes.SHA256())
    monkeypatch.setattr(csr, "make_csr", lambda *_: plain.public_bytes(Encoding.DER))
    with refused("csr_invalid", match="SANs"):
        parse_attested_csr(make_attested_csr(KEY, IDENTITY, EVIDENCE))


def test_names_beyond_a_bound_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody may send a quarter of a MiB, which has room for 80,000 names of three bytes."""
    names = Identity(
        spiffe_id=IDENTITY.spiffe_id,
        dns_names=tuple(f"{number}.{'a' * 60}.test" for number in range(300)),
    )
    many = make_attested_csr(KEY, names, EVIDENCE)
    monkeypatch.setattr(csr, "_names", lambda _: pytest.fail("read"))
    with refused("csr_invalid", match="ask for fewer names"):
        parse_attested_csr(many)


@pytest.mark.parametrize("where", ["attributes", "statements", "certificate"])
def test_parts_beyond_a_bound_are_not_read(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of a MiB has room for 28,000 attributes, each of which was parsed by itself."""
    info, algorithm, _ = der.elements(make_csr(KEY, IDENTITY))
    *fields, attributes = der.elements(info)
    many = [tlv(0x30, oid("1.2") + tlv(0x31, b""))] * 20_000
    statement = tlv(0x30, oid(next(iter(statements().values()))) + tlv(0x04, b"report"))
    given = many if where == "statements" else [statement]
    certificates = [tlv(0x30, tlv(0x30, b"".join(many)))] if where == "certificate" else []
    bundle = tlv(0x30, b"".join([tlv(0x30, b"".join(given)), *certificates]))
    attribute = tlv(0x30, oid(ATTESTATION_ATTRIBUTE) + tlv(0x31, bundle))
    every = [*der.elements(attributes, 0xA0), attribute]
    every += many if where == "attributes" else []
    info = der.sequence(*fields, tlv(0xA0, b"".join(sorted(every))))
    signed = der.sequence(info, algorithm, der.from_whole_bytes(csr._sign(KEY, info)))
    read = 0
    tag_of = der._tag

    def count(element: asn1.TLV) -> int:
        nonlocal read
        read += 1
        return tag_of(element)

    monkeypatch.setattr(der, "_tag", count)
    with refused("csr_invalid", match="more than 64 elements"):
        parse_attested_csr(signed)
    assert 0 < read < 100


@settings(max_examples=300)
@given(st.integers(0, len(CSR) - 1), st.integers(1, 255))
def test_a_changed_byte_is_refused_with_our_error(position: int, flip: int) -> None:
    changed = bytearray(CSR)
    changed[position] ^= flip
    with contextlib.suppress(errors.SdsError):
        parse_attested_csr(bytes(changed))
        # Accepted only where it still means the same (unused bits of the signature).
        one, other = (x509.load_der_x509_csr(der) for der in (CSR, bytes(changed)))
        assert one.tbs_certrequest_bytes == other.tbs_certrequest_bytes
        assert one.signature == other.signature


@given(st.binary(max_size=300))
def test_garbage_lets_only_our_errors_out(data: bytes) -> None:
    with pytest.raises(errors.SdsError):
        parse_attested_csr(data)


def test_every_truncation_is_refused() -> None:
    for length in range(0, len(CSR), 7):
        with pytest.raises(errors.SdsError):
            parse_attested_csr(CSR[:length])
