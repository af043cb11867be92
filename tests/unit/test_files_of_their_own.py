"""No configuration makes a process overwrite a file that it reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sds.agent.config import AgentConfig
from sds.ca.config import AuthorityConfig
from sds.errors import ConfigurationError
from sds.settings import yamlfile

if TYPE_CHECKING:
    from pydantic import BaseModel

AGENT = "trust_domain: a\nrun_dir: /run/x\nauthority: {addresses: ['a:1']}\n"
OPERATOR = "signer: {kind: operator, csr_file: /p/ca.csr, chain_file: %s, roots_file: %s}\n"


def read(model: type[BaseModel], text: str) -> None:
    yamlfile.validate(yamlfile.parse(text, what="x"), model, what="x")


@pytest.mark.parametrize(
    ("model", "text", "field", "other"),
    [
        (
            AgentConfig,
            AGENT + "policy: {file: /p/p.json, keys: [/k]}\npolicy_copy: /p/p.json\n",
            "policy_copy",
            "policy.file",
        ),
        (
            AgentConfig,
            AGENT + "policy: {file: /p, keys: [/k]}\npolicy_copy: /r/../r/r.pem\n"
            "federation: {bundles: [{trust_domain: b, file: /r/r.pem}]}\n",
            "policy_copy",
            r"federation.bundles\[0\].file",
        ),
        (
            AuthorityConfig,
            OPERATOR % ("/p/ca.csr", "/p/roots.pem"),
            "signer.csr_file",
            "signer.chain_file",
        ),
        (
            AuthorityConfig,
            OPERATOR % ("/p/chain.pem", "/p/ca.csr"),
            "signer.csr_file",
            "signer.roots_file",
        ),
        (
            AuthorityConfig,
            "tls: {certificate_out: /p/r.pem}\nverification: {trusted_roots: [/p/r.pem]}\n",
            "tls.certificate_out",
            r"verification.trusted_roots\[0\]",
        ),
        (
            AuthorityConfig,
            "tls: {certificate_out: /p/ca.csr}\n" + OPERATOR % ("/p/c", "/p/r"),
            "signer.csr_file",
            "tls.certificate_out",
        ),
    ],
)
def test_a_file_that_is_written_has_one_field(
    model: type[BaseModel], text: str, field: str, other: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"^x: {field}: .* is the file of {other} too"):
        read(model, ("" if model is AgentConfig else "trust_domain: a\n") + text)


def test_files_that_are_only_read_may_be_the_same() -> None:
    read(AuthorityConfig, "trust_domain: a\n" + OPERATOR % ("/p/chain.pem", "/p/chain.pem"))
