from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from sds.errors import BundleError, CertificateError
from sds.federation import document
from sds.pki import certificate_der, certificate_pem
from tests.support.certificates import ca_wish, self_signed
from tests.support.istio_ca import Issuer, _leaf
from tests.support.refusals import refused

ROOTS = tuple(sorted(certificate_der(Issuer.make(name).certificate) for name in "abc"))


def entry(root: bytes = ROOTS[0], **over: Any) -> dict[str, Any]:
    value = {"kty": "EC", "use": "x509-svid", "x5c": [base64.b64encode(root).decode()]} | over
    return {name: part for name, part in value.items() if part is not None}


def bundle(*entries: object, **over: Any) -> bytes:
    return json.dumps({"keys": list(entries)} | over).encode()


def test_what_is_written_is_read_again() -> None:
    written = document.render(reversed(ROOTS), refresh_hint=timedelta(minutes=2))
    read = document.parse(written, where="here")
    assert read.roots == ROOTS
    assert read.refresh_hint == timedelta(minutes=2)
    assert written == document.render(ROOTS, refresh_hint=timedelta(minutes=2))


@pytest.mark.parametrize("kind", ["ec-p256", "ec-p384", "rsa", "ed25519"])
def test_every_kind_of_root_key_has_its_jwk(kind: str) -> None:
    key: Any = {
        "ec-p256": lambda: ec.generate_private_key(ec.SECP256R1()),
        "ec-p384": lambda: ec.generate_private_key(ec.SECP384R1()),
        "rsa": lambda: rsa.generate_private_key(65537, 2048),
        "ed25519": ed25519.Ed25519PrivateKey.generate,
    }[kind]()
    # A certificate over this key; what signed it does not matter here.
    pem = _leaf(Issuer.make("x"), key.public_key(), [x509.DNSName("a")], timedelta(hours=1))
    der = certificate_der(x509.load_pem_x509_certificate(pem.encode()))
    (jwk,) = json.loads(document.render([der]))["keys"]
    assert jwk["use"] == "x509-svid"
    assert jwk["kty"] == {"e": "EC", "r": "RSA"}.get(kind[0] if kind != "ed25519" else "o", "OKP")
    assert base64.b64decode(jwk["x5c"][0]) == der
    assert not {"d", "p", "q"} & set(jwk)


def test_entries_of_other_uses_are_ignored() -> None:
    content = bundle(entry(use="jwt-svid"), entry(use=None), "text", entry(ROOTS[1]))
    assert document.parse(content, where="here").roots == (ROOTS[1],)


def test_entries_of_key_types_of_the_future_are_ignored() -> None:
    future = entry(kty="AKP", alg="ML-DSA-65", x5c=["AAAA"])
    assert document.parse(bundle(future, entry(ROOTS[1])), where="here").roots == (ROOTS[1],)


@pytest.mark.parametrize("nothing", [None, []])
def test_an_entry_without_a_certificate_is_ignored(nothing: object) -> None:
    content = bundle(entry(x5c=nothing), entry(ROOTS[1]))
    assert document.parse(content, where="here").roots == (ROOTS[1],)


def test_only_the_first_certificate_of_an_entry_counts() -> None:
    chain = [base64.b64encode(root).decode() for root in (ROOTS[1], ROOTS[2])]
    for more in (chain[1], "!", 7, None):
        content = bundle(entry(x5c=[chain[0], more]))
        assert document.parse(content, where="here").roots == (ROOTS[1],)


@pytest.mark.parametrize(("seen", "sequence"), [(None, 1), (None, None), (5, 5), (5, 6), (5, None)])
def test_a_sequence_that_does_not_go_back_is_taken(seen: int | None, sequence: int | None) -> None:
    found = document.parse(bundle(entry(), spiffe_sequence=sequence), where="here")
    document.require_no_older(found, seen=seen, where="here")


def test_a_sequence_that_goes_back_is_refused() -> None:
    found = document.parse(bundle(entry(), spiffe_sequence=4), where="https://a.test/b")
    with refused("bundle_older", match="https://a.test/b"):
        document.require_no_older(found, seen=5, where="https://a.test/b")


def test_a_file_may_have_pem_and_no_keys_is_an_empty_bundle() -> None:
    assert document.parse_file(certificate_pem(ROOTS), where="here").roots == ROOTS
    assert document.parse_file(bundle(entry()), where="here").roots == ROOTS[:1]
    assert document.parse_file(bundle(), where="here").roots == ()
    assert document.parse(bundle(), where="here").roots == ()


A = certificate_der(Issuer.make("a").certificate)


def changed(old: bytes, new: bytes) -> bytes:
    """A root in which these bytes are others: a repeated extension, an unknown version, a name."""
    assert old in A
    return A.replace(old, new)


def off_curve() -> bytes:
    """A root whose public key is not a point of its curve."""
    key = Issuer.make("a").certificate
    point = key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    return certificate_der(key).replace(point, point[:-1] + bytes([point[-1] ^ 1]))


def _intermediate() -> bytes:
    root = self_signed(ca_wish("root"))
    return root.issue(ca_wish("intermediate")).der


INTERMEDIATE = _intermediate()
LEAF = _leaf(
    Issuer.make("x"),
    ec.generate_private_key(ec.SECP256R1()).public_key(),
    [x509.DNSName("a")],
    timedelta(hours=1),
)
LEAF_DER = certificate_der(x509.load_pem_x509_certificate(LEAF.encode()))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "no list 'keys'"),
        (b'{"keys": {}}', "no list 'keys'"),
        (bundle(entry(x5c={})), r"keys\[0\]: 'x5c' is not a list"),
        (bundle(entry(x5c=[None])), r"keys\[0\]: 'x5c' is not a list"),
        (bundle(entry(), entry(x5c=["a", "b"])), r"keys\[1\]"),
        (bundle(entry(x5c=["!"])), "no usable certificate"),
        (bundle(entry(x5c=["AAAA"])), "no usable certificate"),
        (bundle(entry(LEAF_DER)), "not a certificate authority"),
        (bundle(entry(changed(b"\x55\x1d\x0e", b"\x55\x1d\x0f"))), "no usable certificate"),
        (
            bundle(entry(changed(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x04"))),
            "no usable cert",
        ),
        (bundle(entry(changed(b"\x0c\x01a", b"\x0c\x01\xff"))), "no usable certificate"),
        (bundle(entry(off_curve())), "cannot be read"),
        (bundle(entry(INTERMEDIATE)), "not self-signed"),
        (b'{"keys": [], "spiffe_refresh_hint": ' + b"9" * 5000 + b"}", "not JSON"),
        (b'{"keys": ' + b"[" * 60_000 + b"]" * 60_000 + b"}", "not JSON"),
        (bundle(spiffe_sequence="1"), "spiffe_sequence"),
        (bundle(entry(), spiffe_sequence=2**63), "spiffe_sequence"),
        (bundle(entry(), spiffe_refresh_hint=10**400), "spiffe_refresh_hint"),
        (bundle(spiffe_refresh_hint=-1), "spiffe_refresh_hint"),
        (bundle(spiffe_refresh_hint=True), "spiffe_refresh_hint"),
        (b" " * (document.MAX_DOCUMENT_BYTES + 1), "larger"),
    ],
)
def test_a_bad_document_is_refused(content: bytes, text: str) -> None:
    with refused("bundle_malformed", match=text):
        document.parse(content, where="here")


@pytest.mark.parametrize(
    "content",
    [
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----",
        b"-----BEGIN CERTIFICATE-----\nAAAA",
        certificate_pem([INTERMEDIATE]),
        certificate_pem([A, off_curve()]),
        certificate_pem([changed(b"\x55\x1d\x0e", b"\x55\x1d\x0f")]),
    ],
)
def test_a_bad_pem_file_is_refused(content: bytes) -> None:
    with pytest.raises(CertificateError, match=r"other\.pem"):
        document.parse_file(content, where="other.pem")


def test_an_endpoint_s_answer_that_is_cut_off_is_never_a_bundle_with_fewer_roots() -> None:
    """Without a length, an answer that was cut off looks like a whole one (RFC 9112, 8)."""
    for whole in (certificate_pem(ROOTS), bundle(*map(entry, ROOTS))):
        for length in range(len(whole)):
            with refused("bundle_malformed"):
                document.parse(whole[:length], where="https://a.test/b")


def test_a_bundle_that_is_too_large_for_every_envoy_is_refused() -> None:
    wish = ca_wish("large")
    value = b"\x04\x82" + (15_000).to_bytes(2) + bytes(15_000)
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), value)
    large = dataclasses.replace(wish, more=((unknown, False),))
    roots = [self_signed(large).der for _ in range(18)]
    fitting = bundle(*map(entry, roots[:16]))
    assert document.parse(fitting, where="here").roots == tuple(sorted(roots[:16]))
    with pytest.raises(BundleError, match="more than 262144 bytes"):
        document.parse(bundle(*map(entry, roots)), where="here")


@pytest.mark.slow
@pytest.mark.no_cover
@settings(max_examples=1500, deadline=None)
@given(st.integers(0, len(A) - 1), st.integers(1, 255), st.sampled_from(["pem", "json"]))
def test_a_root_with_a_changed_byte_lets_only_our_errors_out(
    position: int, flip: int, form: str
) -> None:
    der = bytearray(A)
    der[position] ^= flip
    content = certificate_pem([bytes(der)]) if form == "pem" else bundle(entry(bytes(der)))
    with contextlib.suppress(BundleError, CertificateError):
        for root in document.parse_file(content, where="here").roots:
            certificate = x509.load_der_x509_certificate(root)
            assert certificate.public_key()
            assert list(certificate.extensions)
