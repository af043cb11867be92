"""The types that settings are made of."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from sds.errors import ConfigurationError
from sds.identity import KeyType, SpiffeId
from sds.settings import yamlfile
from sds.settings.field_types import (
    DnsNameField,
    Duration,
    PathField,
    Settings,
    Size,
    SpiffeIdField,
    TrustDomainField,
)


class Example(Settings):
    trust_domain: TrustDomainField | None = None
    spiffe_id: SpiffeIdField | None = None
    dns_names: tuple[DnsNameField, ...] = ()
    lifetime: Duration = timedelta(hours=1)
    limit: Size = 1024
    folder: PathField = Path("run")
    key_type: KeyType = KeyType.EC_P256


def parse(text: str) -> Example:
    return yamlfile.validate(yamlfile.parse(text, what="x.yaml"), Example, what="x.yaml")


def test_values_are_the_domains_own_types() -> None:
    example = parse(
        "trust_domain: example.org\nspiffe_id: spiffe://example.org/web\n"
        "dns_names: [web.example.org]\nlifetime: 1h30m\nlimit: 64KiB\nfolder: /run/sds\n"
        "key_type: rsa-2048\n"
    )
    assert example.spiffe_id == SpiffeId.parse("spiffe://example.org/web")
    assert example.dns_names == ("web.example.org",)
    assert example.lifetime == timedelta(minutes=90)
    assert (example.limit, example.folder) == (65536, Path("/run/sds"))
    assert example.key_type == KeyType.RSA_2048


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("trust_domain: 5", "x.yaml: trust_domain: expected text, found the number 5"),
        ("trust_domain: A", "trust domain 'A' is not valid"),
        ("lifetime:", "lifetime: expected a duration such as 10s, 5m, 1h30m or 250ms, or a"),
        ("lifetime: 0", "lifetime: expected a duration above 0"),
        ("lifetime: 1.5", "or a whole number of seconds, found the number 1.5"),
        ("lifetime: true", "or a whole number of seconds, found true"),
        ("lifetime: 1 hour", "expected a duration such as 10s, 5m, 1h30m or 250ms"),
        ("limit: 5kb", "limit: expected a size above 0 such as"),
        ("limit: true", "limit: expected a number, found true"),
        ("limit: 0", "limit: expected more than 0, found the number 0"),
        ("dns_names: {}", "dns_names: expected a list, found a mapping"),
        ("dns_names: [a.b, '*.c']", "dns_names[1]: DNS name '*.c' is not valid"),
        ("key_type: dsa", "key_type: expected 'ec-p256', 'ec-p384', 'rsa-2048'"),
        ("spiffe_id: a/b", "does not start with"),
        ("folder: ''", "folder: expected a path, found the text ''"),
        ("folder: ~/sds", "folder: expected the whole path, because nothing here replaces ~ or"),
        ("folder: ~alice/sds", "nothing here replaces ~ or $NAME, found the text '~alice/sds'"),
        ("folder: $XDG_RUNTIME_DIR/sds", "nothing here replaces ~ or $NAME"),
        ("folder: /run/sds-${USER}", "nothing here replaces ~ or $NAME"),
        ("folder: /run/sds-$USER", "nothing here replaces ~ or $NAME"),
        ("folder: /run/$(NODE_NAME)", "nothing here replaces ~ or $NAME"),
        ("folder: file:///run/sds", "folder: expected a path, not a URL"),
        ("folder: unix:/run/sds", "folder: expected a path, not a URL"),
        ("folder: |\n  /run/sds\n", "a path of printable characters in one line"),
        ("folder: '/run/sds '", "a path without a space at its beginning or end"),
        ('folder: "/run/a\\0b"', "a path of printable characters in one line"),
        ("spifeid: 1", "spifeid: unknown field, did you mean spiffe_id?"),
    ],
)
def test_values_that_are_refused_with_place_found_and_expected(text: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["./~sds", "/run/a b", "/run/Outer$Inner", "run/~", "/run/ä:/b"])
def test_unusual_paths_mean_what_they_say(path: str) -> None:
    assert parse(f"folder: '{path}'").folder == Path(path)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10s", 10), ("1h30m", 5400), ("2d", 172800), ("1500ms", 1.5), ("1m1m", 120), ("10", 10)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse(f"lifetime: {text}").lifetime == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["0s", "999999999999d", "-1s", "1.5h", "s", "10", "\u0661s"])
def test_durations_that_are_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        parse(f"lifetime: '{text}'")


def test_a_long_value_is_cut() -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse("limit: " + "9" * 5000 + "x")
    assert len(str(caught.value)) < 300
