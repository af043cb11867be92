"""Trust anchors are read whole before anybody stores them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from sds.pki import complete_anchors, is_self_signed, read_root, roots
from tests.support.certificates import NOW, Wish, ca_wish, key_usage, self_signed
from tests.support.odd_roots import REFUSED_BY_ENVOY, REFUSED_BY_GO, TAKEN_BY_ALL
from tests.support.refusals import refused

if TYPE_CHECKING:
    from tests.support.certificates import Signer

ROOT = self_signed(ca_wish("root"))
MIDDLE = ROOT.issue(ca_wish("middle"))
LOW = MIDDLE.issue(ca_wish("low"))
OTHER = self_signed(ca_wish("other"))


def test_a_root_is_read_and_an_intermediate_is_told_apart() -> None:
    assert is_self_signed(read_root(ROOT.der))
    assert not is_self_signed(read_root(MIDDLE.der))


def test_anchors_are_complete_where_they_chain_to_a_root() -> None:
    assert complete_anchors((ROOT.der, OTHER.der)) == (ROOT.der, OTHER.der)
    assert complete_anchors((LOW.der, MIDDLE.der, ROOT.der)) == (LOW.der, MIDDLE.der, ROOT.der)
    assert complete_anchors((LOW.der, ROOT.der)) == (ROOT.der,)
    assert complete_anchors((MIDDLE.der, OTHER.der)) == (OTHER.der,)
    assert complete_anchors((MIDDLE.der,)) == ()
    assert complete_anchors(()) == ()


def test_a_chain_of_anchors_costs_one_signature_for_each_pair(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Roots that one authority names all have its name: without a bound, 64 take 40,000."""
    first = last = self_signed(ca_wish("same"))
    chain = [first.der]
    for _ in range(11):
        last = last.issue(ca_wish("same"))
        chain.append(last.der)
    verified: list[int] = []
    issued = roots._issued

    def counted(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
        verified.append(1)
        return issued(certificate, issuer)

    monkeypatch.setattr(roots, "_issued", counted)
    assert complete_anchors(tuple(reversed(chain)), "one of twelve") == tuple(reversed(chain))
    assert len(verified) <= 12 * 11 // 2


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        (ec.generate_private_key(ec.SECP256K1()), "certificate_constraint"),
        (ec.generate_private_key(ec.BrainpoolP256R1()), "certificate_constraint"),
        (ec.generate_private_key(ec.SECP521R1()), None),
        (rsa.generate_private_key(65537, 2048), None),
    ],
)
def test_keys_that_not_every_client_knows_are_refused(
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, reason: str | None
) -> None:
    der = ROOT.sign(ca_wish("x"), key.public_key())
    if reason is None:
        read_root(der)
    else:
        with refused(reason):
            read_root(der)


def test_what_may_not_sign_is_refused() -> None:
    with refused("certificate_constraint", match="not a certificate authority"):
        read_root(ROOT.issue(Wish(not_before=NOW)).der)
    wish = ca_wish("x")
    with refused("certificate_constraint", match="key usage"):
        read_root(
            self_signed(
                Wish(
                    subject=wish.subject,
                    constraints=wish.constraints,
                    usage=key_usage("digital_signature"),
                    extended=(),
                )
            ).der
        )


def _swapped(signer: Signer, old: bytes, new: bytes) -> bytes:
    assert old in signer.der
    return signer.der.replace(old, new)


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_what_cannot_be_read_is_refused() -> None:
    point = ROOT.key.public_key().public_numbers()  # type: ignore[union-attr]  # an elliptic key
    y = point.y.to_bytes(32, "big")  # type: ignore[union-attr]
    serial = x509.load_der_x509_certificate(ROOT.der).serial_number
    encoded = serial.to_bytes((serial.bit_length() + 8) // 8, "big")
    for der in (
        b"",
        b"x",
        ROOT.der[:-1],
        _swapped(ROOT, y, (point.y ^ 1).to_bytes(32, "big")),  # type: ignore[union-attr]
        _swapped(ROOT, encoded, b"\xff" + encoded[1:]),
    ):
        with refused("certificate_malformed"):
            read_root(der)


@pytest.mark.parametrize("kind", [*REFUSED_BY_GO, *REFUSED_BY_ENVOY])
def test_what_other_clients_cannot_read_is_refused(kind: str) -> None:
    der = (REFUSED_BY_GO | REFUSED_BY_ENVOY)[kind]()
    assert is_self_signed(x509.load_der_x509_certificate(der))
    with refused("certificate_malformed", match="not every client"):
        read_root(der)


@pytest.mark.parametrize("kind", TAKEN_BY_ALL)
def test_what_all_clients_read_is_taken(kind: str) -> None:
    assert is_self_signed(read_root(TAKEN_BY_ALL[kind]()))
