"""Patterns: what matches, what does not, and what is not a pattern."""

from __future__ import annotations

import re

import pytest

from sds.errors import IdentityError
from sds.identity import SpiffeId
from sds.rules.glob import GlobIndex
from sds.rules.pattern import (
    dns_parts,
    format_dns_pattern,
    format_spiffe_pattern,
    parse_dns_pattern,
    parse_spiffe_pattern,
    spiffe_parts,
    spiffe_regex,
)

MATCHES = [
    ("spiffe://a.org/ns/x/sa/web", "spiffe://a.org/ns/x/sa/web", True),
    ("spiffe://a.org/ns/*/sa/web", "spiffe://a.org/ns/x/sa/web", True),
    ("spiffe://a.org/ns/*/sa/web", "spiffe://a.org/ns/x/y/sa/web", False),
    ("spiffe://a.org/ns/x/sa/web*", "spiffe://a.org/ns/x/sa/web", True),
    ("spiffe://a.org/ns/x/sa/web*", "spiffe://a.org/ns/x/sa/web-2", True),
    ("spiffe://a.org/ns/x/sa/web*", "spiffe://a.org/ns/x/sa/we", False),
    ("spiffe://a.org/ns/x/**", "spiffe://a.org/ns/x/sa/web", True),
    ("spiffe://a.org/ns/x/**", "spiffe://a.org/ns/x", False),
    ("spiffe://a.org/ns/x/**", "spiffe://a.org/ns/xy/z", False),
    ("spiffe://a.org/**", "spiffe://a.org/x", True),
    ("spiffe://a.org/**", "spiffe://a.org", False),
    ("spiffe://a.org/**", "spiffe://a.org.evil/x", False),
    ("spiffe://a.org/*", "spiffe://a.org/x/y", False),
    ("spiffe://a.org", "spiffe://a.org", True),
    ("spiffe://a.org/x.y", "spiffe://a.org/xzy", False),
    ("spiffe://a.org/x.*", "spiffe://a.org/xzy", False),
    ("spiffe://a.org/*/x*/**", "spiffe://a.org/q/xx/w/e", True),
]


@pytest.mark.parametrize(("pattern", "name", "expected"), MATCHES)
def test_matching_index_and_regular_expression_agree(
    pattern: str, name: str, *, expected: bool
) -> None:
    glob = parse_spiffe_pattern(pattern)
    parts = spiffe_parts(SpiffeId.parse(name))
    index: GlobIndex[str] = GlobIndex()
    index.add(glob, "found")
    assert glob.matches(parts) is expected
    assert index.find(parts) == (["found"] if expected else [])
    assert bool(re.fullmatch(spiffe_regex(glob), name)) is expected
    assert format_spiffe_pattern(glob) == pattern


@pytest.mark.parametrize(
    "text",
    [
        "",
        "*",
        "a.org/*",
        "spiffe://*/x",
        "spiffe://a*/x",
        "spiffe://a.org/*x",
        "spiffe://a.org/x*y",
        "spiffe://a.org/**/x",
        "spiffe://a.org/***",
        "spiffe://a.org/x**",
        "spiffe://a.org//*",
        "spiffe://a.org/../*",
        "spiffe://A.org/*",
        "spiffe://a.org/*/",
        "spiffe://a.org/x\n*",
        "SPIFFE://a.org/*",
        "spiffe://a.org/" + "x" * 3000 + "*",
    ],
)
def test_no_pattern(text: str) -> None:
    with pytest.raises(IdentityError):
        parse_spiffe_pattern(text)


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("db.example.org", "db.example.org", True),
        ("*.example.org", "db.example.org", True),
        ("*.example.org", "x.db.example.org", False),
        ("**.example.org", "x.db.example.org", True),
        ("**.example.org", "example.org", False),
        ("web-*.shop.svc", "web-1.shop.svc", True),
        ("web-*.shop.svc", "db.shop.svc", False),
        ("*", "db", True),
        ("*", "db.org", False),
    ],
)
def test_dns_patterns(pattern: str, name: str, *, expected: bool) -> None:
    glob = parse_dns_pattern(pattern)
    index: GlobIndex[int] = GlobIndex()
    index.add(glob, 1)
    assert glob.matches(dns_parts(name)) is expected
    assert index.find(dns_parts(name)) == ([1] if expected else [])
    assert format_dns_pattern(glob) == pattern


@pytest.mark.parametrize("text", ["", "**", "a.**", "a.*b", "*.A.org", "*..org", "a_b.*", "*."])
def test_no_dns_pattern(text: str) -> None:
    with pytest.raises(IdentityError):
        parse_dns_pattern(text)
