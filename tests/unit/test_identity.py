from datetime import timedelta

import pytest

from sds.errors import IdentityError
from sds.identity import Identity, SpiffeId, TrustDomain, parse_dns_name, parse_trust_domain


def test_parses_and_prints_a_spiffe_id() -> None:
    parsed = SpiffeId.parse("spiffe://example.org/ns/a/sa/b")
    assert parsed == SpiffeId(TrustDomain("example.org"), "/ns/a/sa/b")
    assert str(parsed) == "spiffe://example.org/ns/a/sa/b"
    assert str(SpiffeId.parse("spiffe://example.org")) == "spiffe://example.org"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "example.org",
        "https://example.org/a",
        "SPIFFE://example.org/a",
        "spiffe://",
        "spiffe:///a",
        "spiffe://Example.org/a",
        "spiffe://example.org:80/a",
        "spiffe://user@example.org/a",
        "spiffe://example.org/",
        "spiffe://example.org/a/",
        "spiffe://example.org//a",
        "spiffe://example.org/./a",
        "spiffe://example.org/..",
        "spiffe://example.org/a?b",
        "spiffe://example.org/a#b",
        "spiffe://example.org/a%20b",
        "spiffe://example.org/a\n",
        "spiffe://example.org/ä",
        "spiffe://" + "a" * 256 + "/b",
        "spiffe://example.org/" + "a" * 2048,
    ],
)
def test_refuses_what_the_specification_refuses(text: str) -> None:
    with pytest.raises(IdentityError):
        SpiffeId.parse(text)


def test_accepts_dots_inside_a_segment() -> None:
    assert SpiffeId.parse("spiffe://example.org/...").path == "/..."
    assert SpiffeId.parse("spiffe://example.org/.a/b..").path == "/.a/b.."


@pytest.mark.parametrize("name", ["a", "a.b", "a-b.c", "1.2", "x" * 63])
def test_dns_name(name: str) -> None:
    assert parse_dns_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "a.", "-a", "a-", "A", "*.a", "a..b", "a_b", "x" * 64, "a\n", "ä"]
)
def test_dns_name_refused(name: str) -> None:
    with pytest.raises(IdentityError):
        parse_dns_name(name)


def test_trust_domain_refused() -> None:
    with pytest.raises(IdentityError, match="trust domain"):
        parse_trust_domain("spiffe://a")


def test_identity_sorts_and_deduplicates_dns_names() -> None:
    spiffe_id = SpiffeId.parse("spiffe://example.org/a")
    identity = Identity(spiffe_id=spiffe_id, dns_names=("b", "a", "b"))
    assert identity.dns_names == ("a", "b")
    assert identity == Identity(spiffe_id=spiffe_id, dns_names=("a", "b"))


def test_identity_refuses_a_lifetime_that_is_not_positive() -> None:
    with pytest.raises(IdentityError, match="lifetime"):
        Identity(spiffe_id=SpiffeId.parse("spiffe://a/b"), lifetime=timedelta(0))
