"""URLs that are configured: what passes, and each kind of typo."""

from __future__ import annotations

import pytest

from sds.attestation.settings import AttestationSection, VerificationSection
from sds.errors import ConfigurationError
from sds.federation.endpoint import BundleServer
from sds.settings.https_url import check_http_url, check_https_url
from sds.settings.value_errors import shown
from sds.settings.yamlfile import validate

USABLE = [
    "https://bundle.example.org",
    "https://bundle.example.org:8443/bundle.json?x=1",
    "https://Bundle_1.example.org./",
    "https://10.0.0.1/b",
    "https://[2001:db8::1]:1/b",
    "https://example.org:65535",
]
TYPOS = [
    "",
    "http://example.org",
    "https://",
    "https:///path",
    "https://example.org:99999/b",
    "https://example.org:0/b",
    "https://example.org:-1/b",
    "https://example.org:https/b",
    "https://example..org/b",
    "https://-x.example.org/b",
    "https://" + "a" * 64 + ".example.org/b",
    "https://" + "a." * 130 + "org/b",
    "https://exa mple.org/b",
    "https://ex\u00e4mple.org/b",
    "https://exa%6dple.org/b",
    "https://user@example.org/b",
    "https://user:secret@example.org/b",
    "https://10.0.0.999/b",
    "https://10.0.0/b",
    "https://[2001:db8::1/b",
    "https://[x]/b",
    "https://[::1]x/b",
    "https://example.org/b#f",
    "https://example.org/" + "x" * 3000,
    "https://example.org/\ud800",
    "https://example.org/\n",
]


@pytest.mark.parametrize(
    "text", [*(one for one in TYPOS if one != "http://example.org"), "https://example.org/b?x=1"]
)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_servers_of_signed_answers_have_the_same_rules(text: str, scheme: str) -> None:
    changed = text.replace("https", scheme, 1)
    with pytest.raises(ValueError, match="expected a URL that can be fetched, but"):
        check_http_url(changed)
    fetch = {"products": ["genoa"], "kds": changed}
    for model, data, field in (
        (VerificationSection, {"collateral": "/c", "fetch": fetch}, "fetch.kds"),
        (AttestationSection, {"kind": "auto", "certificate_server": changed}, "certificate_server"),
        (AttestationSection, {"kind": "auto", "metadata_server": changed}, "metadata_server"),
    ):
        with pytest.raises(ConfigurationError, match=f"x: {field}: expected a URL") as caught:
            validate(data, model, what="x")
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize("text", [*USABLE, "http://pccs.example.org:8081"])
def test_the_servers_of_signed_answers_may_speak_http(text: str) -> None:
    without = text.partition("?")[0]
    assert check_http_url(without) == without


@pytest.mark.parametrize("text", USABLE)
def test_what_can_be_fetched(text: str) -> None:
    assert check_https_url(text) == text
    assert BundleServer(url=text).url == text


@pytest.mark.parametrize("text", TYPOS)
def test_a_typo_is_refused_where_it_is_read(text: str) -> None:
    with pytest.raises(ValueError, match="is not a usable URL") as caught:
        check_https_url(text)
    str(caught.value).encode()  # what is said can be written to a log
    with pytest.raises(ConfigurationError):
        BundleServer(url=text)


def test_a_password_is_in_no_message() -> None:
    with pytest.raises(ValueError, match="has a user name or password") as caught:
        check_https_url("https://user:271828@example.org/b")
    assert "271828" not in str(caught.value)
    assert "example.org/b" in str(caught.value)
    assert "271828" not in shown("https://user:271828@example.org/b")
