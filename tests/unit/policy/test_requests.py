"""Patterns of requests: what matches, what never does, and what is not a pattern."""

from __future__ import annotations

import pytest

from sds.errors import IdentityError
from sds.policy.requests import (
    Request,
    RequestPattern,
    format_path_pattern,
    host_matches,
    parse_host_pattern,
    parse_method,
    parse_path_pattern,
    path_matches,
)


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("/orders", "/orders", True),
        ("/orders", "/orders/", False),
        ("/orders", "/Orders", False),
        ("/orders/", "/orders/", True),
        ("/orders/", "/orders", False),
        ("/", "/", True),
        ("/", "/x", False),
        ("/orders/*", "/orders/1", True),
        ("/orders/*", "/orders/", False),
        ("/orders/*", "/orders", False),
        ("/orders/*", "/orders/1/", False),
        ("/orders/*", "/orders/1/items", False),
        ("/orders/*/items", "/orders/1/items", True),
        ("/orders/*/items", "/orders/1/2/items", False),
        ("/orders/*/items", "/orders//items", False),
        ("/orders/v*", "/orders/v", True),
        ("/orders/v*", "/orders/v2", True),
        ("/orders/v*", "/orders/w2", False),
        ("/orders/v*/*", "/orders/v2/x", True),
        ("/orders/**", "/orders/", True),
        ("/orders/**", "/orders/1/2", True),
        ("/orders/**", "/orders", False),
        ("/orders/**", "/ordersx/1", False),
        ("/*/x/**", "/a/x/b/c", True),
        ("/*/x/**", "/a/y/b/c", False),
        ("/**", "/", True),
        ("/**", "/a/b", True),
        ("/a.b", "/axb", False),
        ("/a.b/*", "/axb/c", False),
        # What servers read in different ways is matched by no star.
        ("/public/**", "/public/..;/admin", False),
        ("/public/**", "/public/;/admin", False),
        ("/public/**", "/public/x;y=1", False),
        ("/public/**", "/public/../admin", False),
        ("/public/**", "/public/..", False),
        ("/public/**", "/public/.", False),
        ("/public/**", "/public/%2e%2e/admin", False),
        ("/public/**", "/public/%2E/admin", False),
        ("/public/**", "/public/..%2fadmin", False),
        ("/public/**", "/public/..%5Cadmin", False),
        ("/public/**", "/public\\..\\admin", False),
        ("/public/**", "/public/%252e%252e/admin", False),
        ("/public/**", "/public/%00", False),
        ("/public/**", "/public/a%0d%0ab", False),
        ("/public/**", "/public/%3b", False),
        ("/public/**", "/public/%c0%ae%c0%ae/admin", False),
        ("/public/**", "/public/a b", False),
        ("/public/**", "/public/\xe9", False),
        ("/public/**", "/public/%", False),
        ("/public/**", "/public/%2", False),
        ("/public/**", "/public/%zz", False),
        ("/public/*", "/public/..", False),
        ("/public/*", "/public/...", True),
        ("/public/*", "/public/.well-known", True),
        ("/public/**", "/public/caf%C3%A9", True),
        ("/public/**", "/public/a%20b+c,d=e@f:g~h'(i)!*$&", True),
    ],
)
def test_paths(pattern: str, path: str, *, expected: bool) -> None:
    glob = parse_path_pattern(pattern)
    assert path_matches(glob, path) is expected
    assert format_path_pattern(glob) == pattern


@pytest.mark.parametrize(
    "text",
    [
        "",
        "orders",
        "*",
        "**",
        "/a//b",
        "/a/../b",
        "/a/..",
        "/./b",
        "/..*",
        "/.*",
        "/**/x",
        "/a**",
        "/*a",
        "/a*b",
        "/a;b",
        "/a?b",
        "/a#b",
        "/a%2fb",
        "/a%2e",
        "/a%25",
        "/a%",
        "/a\\b",
        "/a b",
        "/caf\xe9",
        "/a\n",
        "/" + "x" * 1100,
        "/*/" + "x" * 100,
        "/*" * 40,
    ],
)
def test_no_path_pattern(text: str) -> None:
    with pytest.raises(IdentityError) as caught:
        parse_path_pattern(text)
    assert caught.value.advice


def test_a_long_path_is_taken_where_envoy_takes_it() -> None:
    assert path_matches(parse_path_pattern("/" + "x" * 900 + "/**"), "/" + "x" * 900 + "/1")


@pytest.mark.parametrize(
    ("pattern", "host", "expected"),
    [
        ("shop.example.org", "shop.example.org", True),
        ("shop.example.org", "SHOP.Example.org", True),
        ("shop.example.org", "shop.example.org:8443", True),
        ("shop.example.org", "shop.example.org.", True),
        ("shop.example.org", "shop.example.org.:443", True),
        ("shop.example.org", "shop.example.org..", False),
        ("shop.example.org", "shop.example.org:", False),
        ("shop.example.org", "shop.example.org:80@evil.org", False),
        ("shop.example.org", "shop.example.org.evil.org", False),
        ("shop.example.org", "xshop.example.org", False),
        ("shop.example.org", "shopxexample.org", False),
        ("shop.example.org", "", False),
        ("*.example.org", "a.example.org", True),
        ("*.example.org", "a.b.example.org", False),
        ("**.example.org", "a.b.example.org", True),
        ("**.example.org", "example.org", False),
        ("web-*.shop.svc", "web-1.shop.svc", True),
    ],
)
def test_hosts(pattern: str, host: str, *, expected: bool) -> None:
    assert host_matches(parse_host_pattern(pattern), host) is expected


@pytest.mark.parametrize("text", ["", "a" * 60 + "." + "b" * 60, "*." + "c" * 62 + ".example.org"])
def test_no_host_pattern(text: str) -> None:
    with pytest.raises(IdentityError):
        parse_host_pattern(text)


@pytest.mark.parametrize("text", ["", "get", "G T", "GET\n", "X" * 40])
def test_no_method(text: str) -> None:
    with pytest.raises(IdentityError):
        parse_method(text)


def test_each_part_must_match() -> None:
    pattern = RequestPattern(
        methods=("GET",),
        paths=(parse_path_pattern("/a"),),
        hosts=(parse_host_pattern("h.org"),),
        ports=(1,),
    )
    request = Request(method="GET", path="/a", host="h.org", port=1)
    assert pattern.matches(request)
    assert not pattern.matches(Request(method="PUT", path="/a", host="h.org", port=1))
    assert not pattern.matches(Request(method="GET", path="/b", host="h.org", port=1))
    assert not pattern.matches(Request(method="GET", path="/a", host="g.org", port=1))
    assert not pattern.matches(Request(method="GET", path="/a", host="h.org", port=2))
    assert not pattern.matches(Request(method="GET", path="/a", host="h.org"))
    assert str(pattern) == "GET /a on h.org port 1"
    assert str(RequestPattern()) == "everything"
