from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from sds.authority.channel import AttestedTls, VerifiedTls
from sds.ca.config import AuthorityConfig, OperatorSection, SelfSignedSection, UpstreamSection
from sds.ca.oversights import oversights
from sds.errors import ConfigurationError
from sds.identity import KeyType
from sds.pki import certificate_pem
from sds.settings import yamlfile
from tests.support.certificates import ca_wish, self_signed

if TYPE_CHECKING:
    from pathlib import Path

WHOLE = f"""
trust_domain: example.org
listen: 127.0.0.1:0
backdate: 1m
identities:
  - measurement: {"ab" * 48}
    spiffe_ids: ["spiffe://example.org/ns/*/sa/*"]
    dns_names: ["**.svc.cluster.local"]
    max_lifetime: 24h
    key_types: [ec-p256]
  - measurement: {"cd" * 48}
    signing: {{path_length: 1}}
    max_lifetime: 7d
"""


def load(text: str) -> AuthorityConfig:
    return yamlfile.validate(yamlfile.parse(text, what="ca.yaml"), AuthorityConfig, what="ca.yaml")


def test_a_whole_file() -> None:
    config = load(WHOLE)
    one, two = config.rules().nodes
    assert config.max_lifetime == timedelta(days=1)
    assert (one.measurements, one.authority) == (["ab" * 48], None)
    assert one.grants[0].key_types == [KeyType.EC_P256]
    assert two.authority is not None
    assert (two.authority.path_length, two.authority.max_lifetime) == (1, timedelta(days=7))
    assert isinstance(config.signer, SelfSignedSection)
    assert config.limits.limits().message_bytes == 4 * 2**20


def test_the_least_file() -> None:
    config = load("trust_domain: example.org")
    assert config.rules().nodes == []
    assert config.max_lifetime == timedelta(hours=1)


async def test_signers(tmp_path: Path) -> None:
    pem = certificate_pem([self_signed(ca_wish("root")).der])
    (tmp_path / "root.pem").write_bytes(pem)
    upstream = load(
        "trust_domain: example.org\n"
        "signer:\n  kind: upstream\n  authority:\n    addresses: ['ca:1']\n"
        f"    tls: {{root: {tmp_path}/root.pem, server_name: ca.test}}\n"
    ).signer
    assert isinstance(upstream, UpstreamSection)
    settings = upstream.authority.settings()
    assert isinstance(settings.tls, VerifiedTls)
    assert settings.tls.server_name == "ca.test"
    assert await settings.tls.root_pem() == pem
    operator = load(
        "trust_domain: example.org\n"
        "signer: {kind: operator, csr_file: a, chain_file: b, roots_file: c, key_type: ed25519}\n"
    ).signer
    assert isinstance(operator, OperatorSection)
    assert operator.key_type is KeyType.ED25519
    attested = load(
        "trust_domain: example.org\n"
        "signer: {kind: upstream, authority: {addresses: ['ca:1']}, verification: {}}\n"
    ).signer
    assert isinstance(attested, UpstreamSection)
    assert attested.authority.settings().tls == AttestedTls()


ACCOUNT = "service_accounts: [a/b]"
RULE = f"measurement: {'ab' * 48}, spiffe_ids: ['spiffe://example.org/a']"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "ca.yaml"),
        ("trust_domain: Example.org", "trust_domain"),
        ("trust_domain: example.org\nidentitys: []", "identities"),
        ("trust_domain: example.org\nidentities: [{measurement: xyz}]", "measurement"),
        (f"trust_domain: example.org\nidentities: [{{measurement: {'ab' * 48}}}]", "nothing"),
        (f"trust_domain: example.org\nidentities: [{{{RULE}, key_types: []}}]", "key_types"),
        (f"trust_domain: example.org\nidentities: [{{{RULE}, max_lifetime: 0}}]", "max_lifetime"),
        (f"trust_domain: example.net\nidentities: [{{{RULE}}}]", "identities[0]"),
        (f"trust_domain: example.org\nidentities: [{{{RULE}, dns_names: ['a..b']}}]", "dns_names"),
        (
            f"trust_domain: example.org\nidentities: [{{{RULE}, max_lifetime: 10d}}]",
            "of 30d is less than 4 times",
        ),
        *(
            (
                f"trust_domain: example.org\nkubernetes: {{{ACCOUNT}, spiffe_id: '{template}'}}",
                f"kubernetes.spiffe_id: '{template}' {said}",
            )
            for template, said in (
                ("spiffe://example.net/{namespace}", "is not in the trust domain example.org"),
                ("spiffe://{namespace}/a", "is not in the trust domain example.org"),
                ("spiffe://{trust_domain}", "has no path"),
            )
        ),
        ("trust_domain: example.org\nsigner: {kind: self-signed, key_type: rsa-2048}", "key_type"),
        ("trust_domain: example.org\nsigner: {kind: other}", "signer"),
        ("trust_domain: example.org\ntls: {certificate: a}", "together"),
        (
            "trust_domain: example.org\ntls: {certificate: a, key: b, certificate_out: c}",
            "self-signed",
        ),
        ("trust_domain: example.org\nlimits: {streams: 0}", "streams"),
        ("trust_domain: example.org\nbackdate: 2d", "at most one day"),
        (
            "trust_domain: example.org\nsigner: {kind: upstream, authority: {addresses: ['a:1']}}",
            "verification",
        ),
        (
            f"trust_domain: example.org\nidentities: [{{{RULE}}}]\npolicy: {{file: a, keys: [b]}}",
            "not both",
        ),
    ],
)
def test_what_cannot_be_used_is_named(text: str, words: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        load(text)
    assert words in str(raised.value)


@pytest.mark.parametrize("address", ["ca", "ca:0", f"{'x' * 64}.test:1", "c a:1", "1.2.3:1"])
def test_an_address_that_is_none_is_said_when_it_is_used(address: str) -> None:
    signer: Any = load(
        "trust_domain: example.org\n"
        f"signer: {{kind: upstream, authority: {{addresses: ['{address}']}}, verification: {{}}}}"
    ).signer
    with pytest.raises(ConfigurationError, match=r"host:port|cannot be looked up"):
        signer.authority.settings()


ACCEPTED = "trust_domain: example.org\nverification: {reference_values: {measurements: [%s]}}\n"
ABOVE = """trust_domain: example.org
policy: {file: policy.json, keys: [alice.pub]}
signer: {kind: upstream, authority: {addresses: ["ca:1"]}, verification: {}}
"""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("trust_domain: example.org\n", "everybody is refused"),
        (f"{ACCEPTED % ('ab' * 48)}identities: [{{{RULE}}}]", ""),
        (f"{ACCEPTED % ('cd' * 48)}identities: [{{{RULE}}}]", "identities[0] grants names to a"),
        (f"{ACCEPTED % ('cd' * 48)}identities: [{{{RULE.replace('ab' * 48, 'ab' * 32)}}}]", ""),
        (
            f"{ACCEPTED % ('00' * 48)}identities: [{{{RULE.replace('ab', '00')}}}]",
            "the zeros of an",
        ),
        (
            (
                "trust_domain: example.org\n"
                "verification: {reference_values: {snp: {minimum_tcb: {genoa: {snp: 20}}}}}\n"
                f"identities: [{{{RULE}}}]"
            ),
            "verification.reference_values.snp names no minimum_tcb of milan, turin",
        ),
        (
            (
                "trust_domain: example.org\n"
                "verification: {reference_values: {snp: {products: [genoa], minimum_tcb: "
                "{genoa: {snp: 20}}}}}\n"
                f"identities: [{{{RULE}}}]"
            ),
            "",
        ),
        (
            ABOVE.replace(
                "{}", "{reference_values: {snp: {minimum_tcb: {milan: {}, genoa: {snp: 20}}}}}"
            ),
            "signer.verification.reference_values.snp names no minimum_tcb of turin",
        ),
        (ABOVE, ""),
        (
            ABOVE.replace("{}", f"{{reference_values: {{measurements: [{'00' * 48}]}}}}"),
            "signer.verification.reference_values.measurements has the zeros",
        ),
        (
            ABOVE.replace(
                "policy: {file: policy.json, keys: [alice.pub]}", f"identities: [{{{RULE}}}]"
            ),
            "can pose as the authority above",
        ),
    ],
)
def test_what_is_probably_not_meant_is_said(text: str, said: str) -> None:
    found = tuple(oversights(load(text)))
    assert len(found) == bool(said)
    assert all(said in line for line in found)


def test_a_signed_policy_may_grant_more_than_tokens_get() -> None:
    """A root that settles for as long as tokens live would sign before all others know it."""
    config = load(
        "trust_domain: example.org\n"
        "policy: {file: policy.json, keys: [alice.pub]}\n"
        "kubernetes: {service_accounts: [ns/agent], max_lifetime: 1h}\n"
    )
    assert config.max_lifetime == timedelta(days=1)
