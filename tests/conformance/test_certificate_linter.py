"""Our certificates, read by a linter of others: every one of pkilint's checks of RFC 5280."""

from __future__ import annotations

import gc
import warnings
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from pkilint.bin import lint_pkix_cert

from sds import pki
from sds.ca.issuer import Signer, issue, make_signer, self_sign
from sds.identity import KeyType
from sds.policy.nodes import Permit
from tests.support.authority import TRUST_DOMAIN
from tests.support.certificates import NOW, Wish, self_signed
from tests.unit.test_ca_issuer import BACKDATE, SIGNING, WISH

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

AUTHORITY_KEYS = (KeyType.EC_P256, KeyType.EC_P384, KeyType.ED25519)
LEAF_KEYS = (*AUTHORITY_KEYS, KeyType.RSA_2048)


def chains(key_type: KeyType) -> Iterator[tuple[str, bytes]]:
    top = self_sign(
        key=pki.generate_private_key(key_type),
        trust_domain=TRUST_DOMAIN,
        lifetime=timedelta(days=30),
        path_length=1,
        now=NOW,
        backdate=BACKDATE,
    )
    yield "root", top.root
    key = pki.generate_private_key(key_type)
    below = sign(top, key, Permit(lifetime=timedelta(days=1), path_length=0))
    yield "intermediate", below
    signer = make_signer(key=key, chain=(below,), root=top.root, trust_domain=TRUST_DOMAIN)
    for leaf_type in LEAF_KEYS:
        leaf_key = pki.generate_private_key(leaf_type)
        yield f"leaf {leaf_type}", sign(signer, leaf_key, Permit(lifetime=timedelta(minutes=5)))


def sign(signer: Signer, key: pki.PrivateKey, grant: Permit) -> bytes:
    return pki.certificate_der(
        issue(
            signer,
            wanted=WISH if grant.path_length is None else SIGNING,
            permit=grant,
            public_key=key.public_key(),
            now=NOW,
            backdate=BACKDATE,
        )
    )


# pkilint asks the library `validators`, which knows a list of URI schemes that "spiffe" is not on:
# every X.509-SVID has this one finding, whoever issued it, and ours must have no other.
SCHEME = 'pkix.invalid_uri_syntax (ERROR): Invalid URI syntax: "spiffe://example.org'


def lint(path: Path, der: bytes, capsys: pytest.CaptureFixture[str]) -> list[str]:
    path.write_bytes(der)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the program leaves the file open
        lint_pkix_cert.main(["lint", "-s", "WARNING", str(path)])
        gc.collect()
    lines = (line.strip() for line in capsys.readouterr().out.splitlines())
    return [line for line in lines if line.startswith("pkix.")]


@pytest.mark.parametrize("key_type", AUTHORITY_KEYS)
def test_no_finding(key_type: KeyType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for what, der in chains(key_type):
        findings = lint(tmp_path / "certificate.der", der, capsys)
        wanted = f'{SCHEME}/ns/a/sa/web"' if what.startswith("leaf") else f'{SCHEME}"'
        assert findings == [wanted], what


def test_the_linter_finds_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = lint(tmp_path / "certificate.der", self_signed(Wish(usage=None)).der, capsys)
    assert [line for line in found if not line.startswith(SCHEME)]
