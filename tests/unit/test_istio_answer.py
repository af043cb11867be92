from __future__ import annotations

import datetime as dt
import random

import grpc
import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import UniformResourceIdentifier

from sds.authority import istio_answer
from sds.authority.istio_token import bearer_problem
from sds.errors import AuthorityAnswerError
from sds.identity import Identity, SpiffeId
from sds.pki import certificate_pem, path
from tests.support.istio_ca import ACCOUNT, Issuer, _leaf

ROOT, OTHER = Issuer.make("root"), Issuer.make("other")
BETWEEN = Issuer.make("between", ROOT)
LEAF = _leaf(
    BETWEEN,
    ec.generate_private_key(ec.SECP256R1()).public_key(),
    [UniformResourceIdentifier(ACCOUNT)],
    dt.timedelta(hours=1),
)
LOWER = Issuer.make("lower", BETWEEN)
OTHER_BETWEEN = Issuer.make("other between", OTHER)
DEEP = _leaf(
    LOWER,
    ec.generate_private_key(ec.SECP256R1()).public_key(),
    [UniformResourceIdentifier(ACCOUNT)],
    dt.timedelta(hours=1),
)
NOW = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)


def der(issuer: Issuer) -> bytes:
    return issuer.certificate.public_bytes(Encoding.DER)


@pytest.mark.parametrize(
    ("elements", "length", "roots"),
    [
        ((LEAF, BETWEEN.pem, ROOT.pem), 2, {der(ROOT)}),
        ((LEAF + BETWEEN.pem, ROOT.pem), 2, {der(ROOT)}),
        ((LEAF + BETWEEN.pem + ROOT.pem,), 2, {der(ROOT)}),
        ((LEAF, BETWEEN.pem, ROOT.pem + OTHER.pem), 2, {der(ROOT), der(OTHER)}),
        ((LEAF, BETWEEN.pem + ROOT.pem), 2, {der(ROOT)}),
        ((LEAF, BETWEEN.pem, ROOT.pem, ROOT.pem), 2, {der(ROOT)}),
        ((LEAF, BETWEEN.pem), 1, {der(BETWEEN)}),
    ],
    ids=["apart", "leaf-joined", "one-block", "two-roots", "last-joined", "repeated", "anchor"],
)
def test_every_layout_of_a_chain_is_read(
    elements: tuple[str, ...], length: int, roots: set[bytes]
) -> None:
    answer = istio_answer.parse(elements)
    assert len(answer.chain.chain) == length
    assert set(answer.roots) == roots
    assert not roots & set(answer.chain.chain)
    assert answer.spiffe_ids == (ACCOUNT,)


@pytest.mark.parametrize(
    "elements",
    [
        (LEAF, LOWER.pem, BETWEEN.pem, ROOT.pem),
        (LEAF, BETWEEN.pem, LOWER.pem, ROOT.pem),
        (LEAF, LOWER.pem + LOWER.pem, BETWEEN.pem + LOWER.pem, ROOT.pem),
        (LEAF + BETWEEN.pem + OTHER_BETWEEN.pem + LOWER.pem + ROOT.pem,),
        (LEAF + LEAF + ROOT.pem + BETWEEN.pem + LOWER.pem,),
        (LEAF, OTHER_BETWEEN.pem, BETWEEN.pem, LOWER.pem, OTHER.pem + ROOT.pem),
    ],
    ids=["in-order", "swapped", "repeated", "extraneous", "leaf-twice", "another-root"],
)
def test_intermediates_may_come_in_any_order_repeated_or_without_need(
    elements: tuple[str, ...],
) -> None:
    elements = tuple(element.replace(LEAF, DEEP) for element in elements)
    answer = istio_answer.parse(elements)
    assert answer.chain.chain[1:] == (der(LOWER), der(BETWEEN))
    assert der(ROOT) in answer.roots


def test_the_cost_of_a_path_does_not_grow_with_the_number_of_roots(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Istio gives all its roots one name. Only the key identifier tells which one may be the issuer.
    verified = 0
    verifies = path._verifies

    def counted(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
        nonlocal verified
        verified += 1
        return verifies(certificate, issuer)

    monkeypatch.setattr(path, "_verifies", counted)
    counts = []
    for number in (1, 8, 60):
        roots = [Issuer.make("cluster.local") for _ in range(number)]
        between = Issuer.make("cluster.local", roots[-1])
        key = ec.generate_private_key(ec.SECP256R1()).public_key()
        leaf = _leaf(between, key, [UniformResourceIdentifier(ACCOUNT)], dt.timedelta(hours=1))
        everything = "".join(root.pem for root in roots)
        verified = 0
        answer = istio_answer.parse((leaf, between.pem, everything))
        assert len(answer.roots) == number
        assert answer.chain.chain[1:] == (der(between),)
        counts.append(verified)
    assert counts == [2, 2, 2]


@pytest.mark.parametrize("apart", [True, False])
def test_a_thousand_roots_are_refused_before_one_is_read(
    monkeypatch: pytest.MonkeyPatch, *, apart: bool
) -> None:
    read: list[int] = []
    monkeypatch.setattr(istio_answer, "_certificates", lambda number, _: read.append(number))
    many = [ROOT.pem] * 1000
    elements = (LEAF, BETWEEN.pem, *(many if apart else ["".join(many)]))
    with pytest.raises(AuthorityAnswerError, match="1002 certificates; at most 97") as refused:
        istio_answer.parse(elements)
    assert "caCertificates" in refused.value.advice
    assert not read


@pytest.mark.slow
def test_mutants_of_an_answer_let_only_our_errors_out() -> None:
    draw = random.Random(7)
    pems = (LEAF, BETWEEN.pem, ROOT.pem)
    ders = [x509.load_pem_x509_certificate(pem.encode()).public_bytes(Encoding.DER) for pem in pems]
    refused = 0
    for _ in range(4000):
        number = draw.randrange(3)
        changed = bytearray(ders[number])
        for _ in range(draw.randrange(1, 4)):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
        elements = list(pems)
        elements[number] = certificate_pem([bytes(changed)]).decode()
        try:
            istio_answer.parse(tuple(elements))
        except AuthorityAnswerError:
            refused += 1
    assert refused > 500


@pytest.mark.parametrize(
    ("elements", "text"),
    [
        ((), "without a chain"),
        (("x" * 2_000_000,), "huge"),
        (("no PEM at all", ROOT.pem), "element 0"),
        ((LEAF, "\u00e9"), "element 1"),
        ((LEAF,), "without a root"),
        ((LEAF + BETWEEN.pem,), "without a root"),
        ((LEAF, LEAF), "a root that cannot be used: the root is not a certificate authority"),
        ((ROOT.pem, BETWEEN.pem, LEAF), "a root that cannot be used"),
    ],
)
def test_a_chain_that_cannot_be_read_is_refused(elements: tuple[str, ...], text: str) -> None:
    with pytest.raises(AuthorityAnswerError, match=text):
        istio_answer.parse(elements)


def test_a_certificate_for_somebody_else_is_refused() -> None:
    answer = istio_answer.parse((LEAF, BETWEEN.pem, ROOT.pem))
    istio_answer.check_identity(
        answer, Identity(spiffe_id=SpiffeId.parse(ACCOUNT)), impersonating=False
    )
    other = Identity(spiffe_id=SpiffeId.parse("spiffe://cluster.local/ns/ns1/sa/other"))
    with pytest.raises(AuthorityAnswerError, match="set spiffe_id to that account"):
        istio_answer.check_identity(answer, other, impersonating=False)


@pytest.mark.parametrize(
    ("code", "details", "reason", "advice"),
    [
        (
            "UNAVAILABLE",
            "connection refused",
            "authority_unavailable",
            "check that istiod is running",
        ),
        ("UNAVAILABLE", "Ssl handshake failed", "authority_unavailable", "server_name"),
        ("DEADLINE_EXCEEDED", "", "authority_unavailable", ""),
        ("INTERNAL", "CA is not ready", "authority_unavailable", ""),
        ("RESOURCE_EXHAUSTED", "", "authority_refused_for_now", ""),
        ("INVALID_ARGUMENT", "requested TTL 9 is", "authority_refused", "shorter lifetime"),
        ("INVALID_ARGUMENT", "x509: ECDSA", "authority_refused", ""),
        ("UNIMPLEMENTED", "unknown service", "authority_refused", "15012"),
        ("PERMISSION_DENIED", "no", "authority_refused", ""),
    ],
)
def test_statuses_become_errors(code: str, details: str, reason: str, advice: str) -> None:
    error = istio_answer.refusal(
        grpc.StatusCode[code], details, where="here", token_problem=None, impersonating=False
    )
    assert error.reason == reason
    assert advice in error.advice
    assert f"here said {code}: {details}" in error.message


CLAIMS = {
    "aud": ["istio-ca"],
    "sub": "system:serviceaccount:a:b",
    "exp": NOW.timestamp() + 60,
    "nbf": NOW.timestamp() - 60,
}


@pytest.mark.parametrize(
    ("over", "text", "retriable"),
    [
        ({}, "looks right", True),
        ({"exp": NOW.timestamp()}, "expired at 2030-01-01T00:00:00Z", True),
        ({"nbf": NOW.timestamp() + 1}, "not valid before", True),
        ({"aud": ["api", "x"]}, "audience 'api', 'x', not 'istio-ca'", False),
        ({"aud": "istio-ca"}, "not a list", False),
        ({"sub": "alice"}, "not a service account", False),
        ({"sub": "system:serviceaccount:a"}, "not a service account", False),
        ({"exp": 1e40}, "looks right", True),
        (None, "does not contain a JWT", False),
    ],
)
def test_a_refused_token_is_explained(
    over: dict[str, object] | None, text: str, *, retriable: bool
) -> None:
    token = "garbage" if over is None else jwt.encode(CLAIMS | over, "k" * 32, algorithm="HS256")
    error = istio_answer.refusal(
        grpc.StatusCode.UNAUTHENTICATED,
        "request authenticate failure",
        where="here",
        token_problem=bearer_problem(token, audience="istio-ca", now=NOW),
        impersonating=False,
    )
    assert text in error.advice
    assert error.retriable is retriable
    assert token not in str(error)


def test_a_refused_impersonation_names_the_account_list() -> None:
    error = istio_answer.refusal(
        grpc.StatusCode.UNAUTHENTICATED,
        "request impersonation authentication failure",
        where="here",
        token_problem=None,
        impersonating=True,
    )
    assert error.retriable
    assert "CA_TRUSTED_NODE_ACCOUNTS" in error.advice
