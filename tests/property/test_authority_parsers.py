"""Whatever bytes come: parsers and verifications let only our errors out."""

from __future__ import annotations

import contextlib

import pytest
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st

from sds import errors, pki
from sds._proto.sds.ca.v1 import ca_pb2
from sds.authority.session import verify_challenge
from sds.exchange import wire
from sds.identity import Identity, KeyType, SpiffeId
from tests.support.authority import Machine, verifier_of
from tests.support.certificates import NOW, Wish, ca_wish, self_signed

# The library says today what it will refuse tomorrow.
pytestmark = pytest.mark.filterwarnings("ignore:Parsed a serial number")

KEY = pki.generate_private_key(KeyType.EC_P256)
IDENTITY = Identity(spiffe_id=SpiffeId.parse("spiffe://example.org/web"))
ROOT = self_signed(ca_wish("root"))
LEAF = ROOT.issue(Wish(names=(x509.UniformResourceIdentifier(str(IDENTITY.spiffe_id)),)), KEY).der
CSR = pki.make_csr(KEY, IDENTITY)
VERIFIER = verifier_of(Machine("cc" * 48))


def verify(leaf: bytes, root: bytes) -> pki.VerifiedChain:
    return pki.verify_svid_chain(
        [leaf], roots=[root], identity=IDENTITY, public_key=KEY.public_key(), now=NOW
    )


@settings(max_examples=400)
@given(st.integers(0, len(LEAF) - 1), st.integers(1, 255))
def test_a_leaf_with_a_changed_byte_is_refused(position: int, flip: int) -> None:
    changed = bytearray(LEAF)
    changed[position] ^= flip
    with contextlib.suppress(errors.CertificateError, errors.IdentityError):
        verify(bytes(changed), ROOT.der)
        # Accepted only where it still means the same: the count of unused bits of the signature,
        # where those bits are zero.
        one, other = (x509.load_der_x509_certificate(der) for der in (LEAF, bytes(changed)))
        assert one.tbs_certificate_bytes == other.tbs_certificate_bytes
        assert one.signature == other.signature


@settings(max_examples=400)
@given(st.integers(0, len(ROOT.der) - 1), st.integers(1, 255))
def test_a_root_with_a_changed_byte_lets_only_our_errors_out(position: int, flip: int) -> None:
    changed = bytearray(ROOT.der)
    changed[position] ^= flip
    with contextlib.suppress(errors.CertificateError, errors.IdentityError):
        verify(LEAF, bytes(changed))


@settings(max_examples=400)
@given(st.integers(0, len(CSR) - 1), st.integers(1, 255))
def test_a_csr_with_a_changed_byte_is_refused(position: int, flip: int) -> None:
    changed = bytearray(CSR)
    changed[position] ^= flip
    with contextlib.suppress(errors.CertificateError, errors.KeyTypeError):
        pki.csr_public_key(bytes(changed))
        one, other = (x509.load_der_x509_csr(der) for der in (CSR, bytes(changed)))
        assert one.tbs_certrequest_bytes == other.tbs_certrequest_bytes
        assert one.signature == other.signature


@given(st.binary(max_size=400))
def test_garbage(data: bytes) -> None:
    for parse in (pki.load_certificate, pki.csr_public_key, pki.certificates_from_pem):
        with contextlib.suppress(errors.SdsError):
            parse(data)
    with contextlib.suppress(errors.SdsError):
        wire.parse_request(data)
    with contextlib.suppress(errors.SdsError):
        wire.parse_response(data)


sometimes = st.one_of(st.just(b""), st.just(b"n" * 32), st.binary(max_size=64))


@given(
    nonce=sometimes,
    tls=sometimes,
    policy=sometimes,
    chain=st.lists(st.sampled_from([ROOT.der, LEAF, b"", b"\x30\x00"]), max_size=3),
    roots=st.lists(st.sampled_from([ROOT.der, LEAF, b"garbage"]), max_size=3),
    kind=st.sampled_from(["sev-snp", "tdx", "", "other"]),
    report=st.binary(max_size=200),
    epoch=st.integers(0, 2**64 - 1),
)
def test_no_challenge_without_evidence_is_trusted(  # noqa: PLR0917  hypothesis passes them by name
    nonce: bytes,
    tls: bytes,
    policy: bytes,
    chain: list[bytes],
    roots: list[bytes],
    kind: str,
    report: bytes,
    epoch: int,
) -> None:
    challenge = ca_pb2.Challenge(
        nonce=nonce,
        tls_spki_sha256=tls,
        policy_digest=policy,
        policy_epoch=epoch,
        issuing_chain=chain,
        roots=roots,
        evidence=ca_pb2.Evidence(kind=kind, report=report),
    )
    with contextlib.suppress(errors.SdsError):
        verify_challenge(challenge, nonce=b"m" * 32, tls_key=b"n" * 32, verifier=VERIFIER, now=NOW)
        raise AssertionError("trusted")
