from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID

from sds import errors, pki
from sds.attestation.pem import der_certificates
from sds.identity import MAX_DNS_NAMES, Identity, KeyType, SpiffeId
from sds.pki.path import sorted_path
from tests.support.certificates import NO_CA, NOW, Signer, Wish, ca_wish, key_usage, self_signed
from tests.support.refusals import refused

if TYPE_CHECKING:
    from collections.abc import Callable

IDENTITY = Identity(spiffe_id=SpiffeId.parse("spiffe://example.org/web"), dns_names=("web.test",))
URI = x509.UniformResourceIdentifier("spiffe://example.org/web")
LEAF = Wish(names=(URI, x509.DNSName("web.test")))
KEY = pki.generate_private_key(KeyType.EC_P256)
ROOT = self_signed(ca_wish("root"))


def verify(
    leaf: Wish = LEAF,
    *,
    root: Signer = ROOT,
    between: tuple[Wish, ...] = (),
    roots: tuple[bytes, ...] | None = None,
    **changes: object,
) -> pki.VerifiedChain:
    signer = root
    chain: list[bytes] = []
    for wish in between:
        signer = signer.issue(wish)
        chain.insert(0, signer.der)
    chain.insert(0, signer.issue(leaf, KEY).der)
    arguments = {
        "roots": (root.der,) if roots is None else roots,
        "identity": IDENTITY,
        "public_key": KEY.public_key(),
        "now": NOW,
    } | changes
    return pki.verify_svid_chain(chain, **arguments)  # type: ignore[arg-type]  # a table of cases


def test_a_good_chain_gives_the_facts_of_its_leaf() -> None:
    verified = verify(between=(ca_wish("middle", path_length=0),))
    leaf = x509.load_der_x509_certificate(verified.chain[0])
    assert len(verified.chain) == 2
    assert (verified.serial, verified.not_after) == (leaf.serial_number, NOW + timedelta(hours=1))
    assert verified.key_id == pki.spki_sha256(KEY.public_key()).hex()
    assert verified.root == hashlib.sha256(ROOT.der).hexdigest()


def test_a_root_at_the_end_of_the_chain_is_dropped() -> None:
    leaf = ROOT.issue(LEAF, KEY)
    verified = pki.verify_svid_chain(
        [leaf.der, ROOT.der],
        roots=[ROOT.der],
        identity=IDENTITY,
        public_key=KEY.public_key(),
        now=NOW,
    )
    assert verified.chain == (leaf.der,)


def test_a_root_that_was_renewed_over_its_key_counts_until_its_own_end() -> None:
    """Both certificates of the root are in the bundle for a while, in any order."""
    wish = replace(ca_wish("renewed"), not_after=NOW + timedelta(days=10))
    renewed = self_signed(wish)
    former = self_signed(replace(wish, not_after=NOW + timedelta(minutes=1)), renewed.key)
    over = self_signed(replace(wish, not_after=NOW - timedelta(minutes=1)), renewed.key)
    middle = renewed.issue(ca_wish("middle"))
    leaf = middle.issue(replace(LEAF, not_after=NOW + timedelta(minutes=50)), KEY)
    for other in (former, over):
        for roots in ([renewed.der, other.der], [other.der, renewed.der]):
            for last in ([], [other.der], [renewed.der]):
                verified = pki.verify_svid_chain(
                    [leaf.der, middle.der, *last],
                    roots=roots,
                    identity=IDENTITY,
                    public_key=KEY.public_key(),
                    now=NOW,
                )
                assert verified.root == hashlib.sha256(renewed.der).hexdigest()
                assert verified.valid_until == NOW + timedelta(minutes=50)
                assert verified.chain == (leaf.der, middle.der)
            found = pki.verify_authority_chain(
                [middle.der], roots=roots, public_key=middle.key.public_key(), now=NOW
            )
            assert found == renewed.der
    with refused("certificate_expired"):
        pki.verify_authority_chain(
            [middle.der], roots=[over.der], public_key=middle.key.public_key(), now=NOW
        )


def test_a_root_without_key_usage_is_as_good_as_any() -> None:
    verify(root=self_signed(replace(ca_wish("root"), usage=None)))


OTHER_ROOT = self_signed(ca_wish("root"))
MIDDLE = ca_wish("middle")


@pytest.mark.parametrize(
    ("reason", "case"),
    [
        ("certificate_untrusted", {"roots": ()}),
        ("certificate_untrusted", {"roots": (OTHER_ROOT.der,)}),
        ("certificate_malformed", {"roots": (b"\x30\x00",)}),
        ("certificate_expired", {"now": NOW + timedelta(hours=1, seconds=1)}),
        ("certificate_not_yet_valid", {"now": NOW - timedelta(hours=1, seconds=1)}),
        (
            "certificate_expired",
            {"between": (replace(MIDDLE, not_after=NOW - timedelta(seconds=1)),)},
        ),
        (
            "certificate_expired",
            {"root": self_signed(replace(ca_wish("r"), not_after=NOW - timedelta(seconds=1)))},
        ),
        (
            "certificate_constraint",
            {"between": (replace(MIDDLE, constraints=NO_CA),)},
        ),
        ("certificate_constraint", {"between": (replace(MIDDLE, constraints=None),)}),
        (
            "certificate_constraint",
            {"between": (replace(MIDDLE, usage=key_usage("digital_signature")),)},
        ),
        ("certificate_constraint", {"between": (replace(MIDDLE, names=(URI,)),)}),
        ("certificate_constraint", {"between": (replace(MIDDLE, usage=None),)}),
        (
            "certificate_constraint",
            {"root": self_signed(replace(ca_wish("r"), usage=key_usage("digital_signature")))},
        ),
        (
            "certificate_path_length",
            {"between": (ca_wish("one", path_length=0), ca_wish("two"))},
        ),
        ("certificate_path_length", {"between": tuple(ca_wish(f"{i}") for i in range(9))}),
        (
            "certificate_constraint",
            {"leaf": replace(LEAF, constraints=x509.BasicConstraints(ca=True, path_length=None))},
        ),
        ("certificate_constraint", {"leaf": replace(LEAF, usage=None)}),
        (
            "certificate_constraint",
            {"leaf": replace(LEAF, usage=key_usage("digital_signature", "key_cert_sign"))},
        ),
        (
            "certificate_constraint",
            {"leaf": replace(LEAF, extended=(ExtendedKeyUsageOID.SERVER_AUTH,))},
        ),
        (
            "certificate_constraint",
            {
                "leaf": replace(
                    LEAF,
                    more=(
                        (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"\5\0"), True),
                    ),
                )
            },
        ),
        (
            "certificate_key_mismatch",
            {"public_key": pki.generate_private_key(KeyType.EC_P256).public_key()},
        ),
        ("certificate_name_mismatch", {"leaf": replace(LEAF, names=())}),
        ("certificate_name_mismatch", {"leaf": replace(LEAF, names=(URI,))}),
        ("certificate_name_mismatch", {"leaf": replace(LEAF, names=(URI, *LEAF.names))}),
        (
            "certificate_name_mismatch",
            {"leaf": replace(LEAF, names=(*LEAF.names, x509.RFC822Name("a@b.test")))},
        ),
        (
            "certificate_name_mismatch",
            {"leaf": replace(LEAF, names=(*LEAF.names, x509.DNSName("more.test")))},
        ),
    ],
)
def test_each_check_refuses_with_its_own_error(reason: str, case: dict[str, object]) -> None:
    with pytest.raises(errors.CertificateError) as raised:
        verify(**case)  # type: ignore[arg-type]  # a table of cases
    assert raised.value.reason == reason


def constrained(**trees: list[x509.GeneralName] | None) -> Wish:
    both = {"permitted_subtrees": None, "excluded_subtrees": None} | trees
    return replace(MIDDLE, more=((x509.NameConstraints(**both), True),))


@pytest.mark.parametrize(
    "trees",
    [
        {"permitted_subtrees": [x509.UniformResourceIdentifier("example.org")]},
        {"permitted_subtrees": [x509.UniformResourceIdentifier(".org"), x509.DNSName("test")]},
        {"excluded_subtrees": [x509.UniformResourceIdentifier(".example.org")]},
        {"excluded_subtrees": [x509.DNSName("b.test"), x509.RFC822Name("x.test")]},
        # With a leading dot: names below alone, as OpenSSL reads it.
        {"permitted_subtrees": [x509.DNSName(".test")]},
        {"excluded_subtrees": [x509.DNSName(".web.test")]},
    ],
)
def test_names_within_name_constraints(trees: dict[str, list[x509.GeneralName]]) -> None:
    verify(between=(constrained(**trees),))


@pytest.mark.parametrize(
    "trees",
    [
        {"permitted_subtrees": [x509.UniformResourceIdentifier("example.com")]},
        {"excluded_subtrees": [x509.UniformResourceIdentifier(".org")]},
        {"permitted_subtrees": [x509.DNSName("example.test")]},
        {"permitted_subtrees": [x509.DNSName(".web.test")]},
        {"excluded_subtrees": [x509.DNSName(".test")]},
        {"excluded_subtrees": [x509.DNSName("web.test")]},
        {"excluded_subtrees": [x509.DNSName("WEB.Test")]},
        {"excluded_subtrees": [x509.UniformResourceIdentifier("Example.ORG")]},
        {"permitted_subtrees": [x509.DirectoryName(x509.Name([]))]},
    ],
)
def test_names_outside_name_constraints(trees: dict[str, list[x509.GeneralName]]) -> None:
    with refused("certificate_constraint"):
        verify(between=(constrained(**trees),))


@pytest.mark.parametrize("uri", ["spiffe://example.org/web", "spiffe://", "spiffe://UPPER/"])
def test_an_issuer_with_another_spiffe_id_than_a_trust_domains(uri: str) -> None:
    issuer = replace(MIDDLE, names=(x509.UniformResourceIdentifier(uri),))
    with pytest.raises(errors.CertificateError, match="trust domain"):
        verify(between=(issuer,))


def test_a_certificate_with_a_key_of_another_kind_is_an_error_of_the_certificate() -> None:
    """Whoever asks several authorities goes on to the next one."""
    odd = ROOT.sign(LEAF, ec.generate_private_key(ec.SECP521R1()).public_key())
    with pytest.raises(errors.CertificateError, match="secp521r1"):
        pki.supported_key(pki.load_certificate(odd))


def test_empty_root_alone_and_reordered_chains_are_refused() -> None:
    middle = ROOT.issue(MIDDLE)
    leaf = middle.issue(LEAF, KEY)
    wrong = ROOT.issue(ca_wish("wrong"))
    for chain, reason in (
        ([], "certificate_path_length"),
        ([ROOT.der], "certificate_path_length"),
        ([middle.der, leaf.der], "certificate_untrusted"),
        ([leaf.der, wrong.der], "certificate_untrusted"),
        ([leaf.der[:-1], middle.der], "certificate_malformed"),
    ):
        with refused(reason):
            pki.verify_svid_chain(
                chain,
                roots=[ROOT.der],
                identity=IDENTITY,
                public_key=KEY.public_key(),
                now=NOW,
            )


def test_what_is_remembered_of_issuers_excuses_nothing() -> None:
    middle = ROOT.issue(MIDDLE)
    leaf = middle.issue(LEAF, KEY).der

    def again(
        first: bytes, *, above: bytes = middle.der, root: Signer = ROOT, days: int = 0
    ) -> None:
        pki.verify_svid_chain(
            [first, above],
            roots=[root.der],
            identity=IDENTITY,
            public_key=KEY.public_key(),
            now=NOW + timedelta(days=days),
        )

    again(leaf)  # now everything about this root and this intermediate is known
    broken = leaf[:-1] + bytes([leaf[-1] ^ 1])
    forged = middle.der[:-1] + bytes([middle.der[-1] ^ 1])
    for _ in range(2):
        with refused("certificate_untrusted"):
            again(broken)
        with refused("certificate_untrusted"):
            again(leaf, above=forged)
        with refused("certificate_untrusted"):
            again(leaf, root=OTHER_ROOT)
        with refused("certificate_expired"):
            again(leaf, days=36500)
    again(leaf)


@pytest.mark.parametrize("key_type", [t for t in KeyType if t is not KeyType.RSA_4096])
def test_keys_csrs_and_chains_of_every_kind(key_type: KeyType) -> None:
    key = pki.generate_private_key(key_type)
    assert pki.key_type_of(key) is pki.key_type_of(key.public_key()) is key_type
    loaded = load_pem_private_key(pki.private_key_pem(key), None)
    assert loaded.public_key() == key.public_key()
    assert pki.csr_public_key(pki.make_csr(key, IDENTITY)) == key.public_key()
    assert b"BEGIN PRIVATE KEY" in pki.private_key_pem(key)
    root = self_signed(ca_wish("root"), key)
    assert verify(root=root).not_after == LEAF.not_after


def test_key_kinds_that_we_do_not_know() -> None:
    for key in (
        ec.generate_private_key(ec.SECP521R1()),
        rsa.generate_private_key(65537, 1024),
        dsa.generate_private_key(1024),
    ):
        with pytest.raises(errors.KeyTypeError):
            pki.key_type_of(key)


def test_rsa_keys_with_a_small_public_exponent_are_refused_everywhere() -> None:
    key = rsa.generate_private_key(3, 2048)
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    csr = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    accepts: tuple[Callable[[], object], ...] = (
        lambda: pki.key_type_of(key),
        lambda: pki.key_type_of(key.public_key()),
        lambda: pki.csr_public_key(csr),
        lambda: pki.load_private_key(pem),
    )
    for accept in accepts:
        with pytest.raises(errors.KeyTypeError, match="public exponent 0x3"):
            accept()


def test_a_csr_that_does_not_hold() -> None:
    csr = bytearray(pki.make_csr(KEY, IDENTITY))
    csr[-1] ^= 1
    for bad in (bytes(csr), b"", b"\x30\x00", bytes(csr[:-1])):
        with refused("csr_invalid"):
            pki.csr_public_key(bad)


def test_pem_and_back() -> None:
    ders = (ROOT.der, ROOT.issue(LEAF, KEY).der)
    assert pki.certificates_from_pem(pki.certificate_pem(ders)) == ders
    for bad in (b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
        with refused("certificate_malformed"):
            pki.certificates_from_pem(bad)


def _with_names(count: int) -> bytes:
    """A certificate whose issuer's name says nothing and whose SAN has very many short names."""
    names = b"\x82\x01a" * count
    value = b"\x30\x82" + len(names).to_bytes(2, "big") + names
    san = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.17"), value)
    return self_signed(replace(ca_wish("many"), more=((san, False),))).der


def test_a_certificate_that_would_become_very_many_objects_is_not_parsed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    large = _with_names(12_000)
    monkeypatch.setattr(x509, "load_der_x509_certificate", lambda _: pytest.fail("parsed"))
    for read in (pki.load_certificate, pki.read_root):
        with refused("certificate_malformed", match="more than 32768"):
            read(large)
    with refused("certificate_malformed", match="more than 32768"):
        pki.load_issuer(large, "issuer")
    with refused("evidence_malformed", match="more than 32768"):  # before its chain is known
        der_certificates(large, what="the PCK chain")


def test_the_largest_certificate_of_an_authority_is_small_enough() -> None:
    """It has as many DNS names as an authority certifies, each as long as a name may be."""
    label = ".".join("x" * length for length in (58, 63, 63, 60))
    names = [x509.DNSName(f"{number:05}{label}") for number in range(MAX_DNS_NAMES)]
    leaf = self_signed(replace(ca_wish("large"), names=(URI, *names)))
    assert {len(name.value) for name in names} == {252}
    assert len(leaf.der) > 24 * 1024
    assert pki.load_certificate(leaf.der, "leaf") == leaf.certificate


def test_only_small_issuers_and_roots_are_remembered() -> None:
    small, large = _with_names(1_000), _with_names(2_000)
    assert len(small) < 4_096 < len(large) < 32_768
    for read in (pki.load_issuer, pki.read_root):
        assert read(small, "issuer") is read(small, "issuer")
        assert read(large, "issuer") is not read(large, "issuer")


@pytest.mark.parametrize("former_first", [True, False])
def test_an_intermediate_that_was_renewed_takes_the_place_of_the_former_one(
    *, former_first: bool
) -> None:
    root = self_signed(ca_wish("root"))
    renewed = root.issue(ca_wish("between"))
    over = replace(ca_wish("between"), not_after=NOW - timedelta(minutes=1))
    former = root.issue(over, renewed.key)
    leaf = renewed.issue(Wish()).certificate
    between = [former.certificate, renewed.certificate]
    found = sorted_path(leaf, between if former_first else between[::-1], [root.certificate])
    assert found == (leaf, renewed.certificate)
