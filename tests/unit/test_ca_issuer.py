from __future__ import annotations

import subprocess
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from sds import pki
from sds.ca.issuer import Signer, authority_request, issue, make_signer, self_sign
from sds.identity import Identity, KeyType, SpiffeId
from sds.policy.nodes import Permit, RequestedCertificate
from tests.support import need
from tests.support.authority import TRUST_DOMAIN
from tests.support.certificates import NOW
from tests.support.refusals import refused

if TYPE_CHECKING:
    from pathlib import Path

WISH = RequestedCertificate(
    spiffe_id=SpiffeId.parse("spiffe://example.org/ns/a/sa/web"),
    dns_names=("web.a.test", "web.test"),
    lifetime=timedelta(minutes=5),
    key_type=KeyType.EC_P256,
)
SIGNING = replace(WISH, spiffe_id=SpiffeId(TRUST_DOMAIN), dns_names=(), signing=True)
GRANT = Permit(lifetime=timedelta(minutes=5))
KEY = pki.generate_private_key(KeyType.EC_P256)
BACKDATE = timedelta(seconds=30)


def root(key_type: KeyType = KeyType.EC_P256, **changes: Any) -> Signer:
    arguments: dict[str, Any] = {
        "key": pki.generate_private_key(key_type),
        "trust_domain": TRUST_DOMAIN,
        "lifetime": timedelta(days=1),
        "path_length": 1,
        "now": NOW,
        "backdate": BACKDATE,
    }
    return self_sign(**arguments | changes)


def leaf(signer: Signer, key: pki.PrivateKey = KEY, permit: Permit = GRANT) -> x509.Certificate:
    return issue(
        signer, wanted=WISH, permit=permit, public_key=key.public_key(), now=NOW, backdate=BACKDATE
    )


def below(signer: Signer, lifetime: timedelta = timedelta(hours=2)) -> Signer:
    key = pki.generate_private_key(KeyType.EC_P256)
    certificate = issue(
        signer,
        wanted=SIGNING,
        permit=Permit(lifetime=lifetime, path_length=5),
        public_key=key.public_key(),
        now=NOW,
        backdate=BACKDATE,
    )
    return make_signer(
        key=key,
        chain=(pki.certificate_der(certificate), *signer.presented),
        root=signer.root,
        trust_domain=TRUST_DOMAIN,
    )


def test_a_leaf_is_an_x509_svid_to_the_letter() -> None:
    certificate = leaf(root())
    found = {extension.oid: extension for extension in certificate.extensions}
    names = found[x509.SubjectAlternativeName.oid]
    usage = found[x509.KeyUsage.oid]
    assert certificate.subject == x509.Name([])
    assert names.critical
    assert list(names.value) == [
        x509.UniformResourceIdentifier("spiffe://example.org/ns/a/sa/web"),
        x509.DNSName("web.a.test"),
        x509.DNSName("web.test"),
    ]
    assert found[x509.BasicConstraints.oid].critical
    assert found[x509.BasicConstraints.oid].value == x509.BasicConstraints(
        ca=False, path_length=None
    )
    assert usage.critical
    assert isinstance(usage.value, x509.KeyUsage)
    assert usage.value.digital_signature
    assert not (usage.value.key_cert_sign)
    assert not (usage.value.crl_sign)
    assert not (usage.value.key_encipherment)
    assert set(found[x509.ExtendedKeyUsage.oid].value) == {
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CLIENT_AUTH,
    }
    assert len(found) == 6
    assert certificate.not_valid_before_utc == NOW - BACKDATE
    assert certificate.not_valid_after_utc == NOW + timedelta(minutes=5)


def test_serials_are_random_and_of_one_length() -> None:
    signer = root()
    serials = {leaf(signer).serial_number for _ in range(50)}
    assert len(serials) == 50
    assert {serial.bit_length() for serial in serials} == {159}
    # No bit below the highest stands still.
    assert all(0 < sum(serial >> bit & 1 for serial in serials) < 50 for bit in range(158))


def test_lifetimes_are_clamped_to_every_certificate_above() -> None:
    top = root(lifetime=timedelta(hours=1))
    middle = below(top)
    assert middle.not_after == NOW + timedelta(hours=1)
    certificate = leaf(middle, permit=Permit(lifetime=timedelta(days=9)))
    assert certificate.not_valid_after_utc == NOW + timedelta(hours=1)
    assert certificate.not_valid_before_utc >= middle.certificate.not_valid_before_utc
    with refused("authority_not_ready"):
        issue(
            top,
            wanted=WISH,
            permit=GRANT,
            public_key=KEY.public_key(),
            now=NOW + timedelta(hours=1),
            backdate=BACKDATE,
        )


def test_backdating_stops_at_the_issuer() -> None:
    signer = root(backdate=timedelta(0))
    assert leaf(signer).not_valid_before_utc == NOW


def test_path_lengths_count_down() -> None:
    top = root(path_length=2)
    middle = below(top)
    last = below(middle)
    assert (top.path_length, middle.path_length, last.path_length) == (2, 1, 0)
    with refused("signing_not_allowed"):
        below(last)
    assert below(root(path_length=None)).path_length == 5


@pytest.mark.parametrize("key_type", [KeyType.EC_P256, KeyType.EC_P384, KeyType.ED25519])
def test_chains_of_three_authorities_hold(key_type: KeyType) -> None:
    last = below(below(root(key_type, path_length=2)))
    verified = pki.verify_svid_chain(
        (pki.certificate_der(leaf(last)), *last.presented),
        roots=[last.root],
        identity=Identity(spiffe_id=WISH.spiffe_id, dns_names=WISH.dns_names),
        public_key=KEY.public_key(),
        now=NOW,
    )
    assert len(verified.chain) == 3
    assert (
        pki.verify_authority_chain(
            last.chain, roots=[last.root], public_key=last.key.public_key(), now=NOW
        )
        == last.root
    )


def test_a_leaf_is_no_authority() -> None:
    signer = root()
    with refused("certificate_constraint"):
        pki.verify_authority_chain(
            [pki.certificate_der(leaf(signer))],
            roots=[signer.root],
            public_key=KEY.public_key(),
            now=NOW,
        )


def test_an_rsa_leaf_may_encipher_keys() -> None:
    key = pki.generate_private_key(KeyType.RSA_2048)
    usage = leaf(root(), key).extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.key_encipherment


def test_a_key_never_shows() -> None:
    assert "PrivateKey" not in repr(root())


def _openssl(*arguments: str | Path) -> str:
    done = subprocess.run(
        [need.tool("openssl"), *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_openssl_verifies_the_chain(tmp_path: Path) -> None:
    last = below(below(root(path_length=2)))
    for name, certificates in (
        ("root", [last.root]),
        ("chain", list(last.presented)),
        ("leaf", [pki.certificate_der(leaf(last))]),
    ):
        (tmp_path / name).write_bytes(pki.certificate_pem(certificates))
    for purpose in ("sslclient", "sslserver"):
        _openssl(
            *("verify", "-x509_strict", "-purpose", purpose, "-attime", str(int(NOW.timestamp()))),
            *("-CAfile", tmp_path / "root", "-untrusted", tmp_path / "chain", tmp_path / "leaf"),
        )


def test_openssl_reads_the_request_for_an_operator(tmp_path: Path) -> None:
    request = authority_request(KEY, TRUST_DOMAIN)
    (tmp_path / "csr").write_bytes(request.public_bytes(Encoding.PEM))
    text = _openssl("req", "-in", tmp_path / "csr", "-noout", "-text", "-verify")
    assert "CA:TRUE" in text
    assert "URI:spiffe://example.org" in text
