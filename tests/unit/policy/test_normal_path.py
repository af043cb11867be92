"""Normal forms of paths, as real Envoys gave them (see also tests/e2e/test_authorization.py)."""

from __future__ import annotations

import pytest

from sds.errors import IdentityError
from sds.policy.normal_path import normalized_path

MEASURED = {
    "/a": "/a",
    "//a": "/a",
    "/a//b": "/a/b",
    "/a/../b": "/b",
    "/a/./b": "/a/b",
    "/a/..": "/",
    "/a/.": "/a/",
    "/..": "/",
    "/../..": "/",
    "/a/%2e%2e/b": "/b",
    "/a/.%2E/b": "/b",
    "/a/%2e": "/a/",
    "/%61": "/a",
    "/%41%5f%7e%2d%2D%30": "/A_~--0",
    "/a\\b": "/a/b",
    "/a\\..\\b": "/b",
    "/a;x/b": "/a;x/b",
    "/a/%20": "/a/%20",
    "/a%3bb": "/a%3bb",
    "/a%25b": "/a%25b",
    "/a%zz": "/a%zz",
    "/a%": "/a%",
    "/a%4": "/a%4",
    "/a?x=/../..": "/a",
    "/a'\"<>`{}|^b": "/a'%22%3C%3E%60%7B%7D%7C%5Eb",
    "/a%22%3c": "/a%22%3c",
    "/caf%c3%a9": "/caf%c3%a9",
    "/A": "/A",
    "/a//": "/a/",
    "//": "//",
    "/a///..//b": "/a/b",
    "/a/b/../../../c": "/c",
    "/a%0a": "/a%0a",
    "/a%2e%2e/b": "/a../b",
    "/...": "/...",
    "/.a/..b/b..": "/.a/..b/b..",
    "/a/b%2e": "/a/b.",
    "/%2e%2e/x": "/x",
    "/!$&'()*+,=:@-._~": "/!$&'()*+,=:@-._~",
    "/a//../b": "/a/b",
    "//..//a": "/a",
    "/a?x=%2F%00": "/a",
    # As Envoy 1.39 and 1.40 have it.
    "/a/..;/b": "/b",
    "/a/.;x/b": "/a/b",
    "/a/%2e%2e;/b": "/a/..;/b",
    "/a/..;": "/",
    "/a/.;": "/a/",
    "/a/...;/b": "/a/...;/b",
    "/..;/b": "/b",
    "/a/..%3b/b": "/a/..%3b/b",
    "/a/;x/../b": "/a/b",
    "/a/..;a/../b": "/b",
    "/a/..;\\b": "/",
    "/a/..;?x": "/",
}


@pytest.mark.parametrize(("path", "expected"), MEASURED.items())
def test_normal_forms(path: str, expected: str) -> None:
    assert normalized_path(path) == expected


@pytest.mark.parametrize(
    "path", ["", "*", "a", "/a%2fb", "/a%5Cb", "/a#f", "/%00", "/caf\xe9", "/a b", "/a?x=#"]
)
def test_what_envoy_refuses_has_none(path: str) -> None:
    with pytest.raises(IdentityError):
        normalized_path(path)
