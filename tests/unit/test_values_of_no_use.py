"""Values that are well formed and with which a part could do nothing are refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sds.agent.config import AgentConfig
from sds.ca.config import AuthorityConfig
from sds.ca.oversights import oversights
from sds.errors import ConfigurationError
from sds.settings import yamlfile

if TYPE_CHECKING:
    from pydantic import BaseModel

AGENT = "trust_domain: a\nrun_dir: /run/x\nauthority: {addresses: ['a:1']}\n"
KUBERNETES = "kubernetes: {service_accounts: [s/agent, s/b], authorities: [s/ca, s/b]}\n"


@pytest.mark.parametrize(
    ("model", "text", "said"),
    [
        (AgentConfig, "limits: {message: 64}\n", "limits.message: expected 4096 or more, found"),
        (AgentConfig, "budgets: {memory: 64}\n", "budgets.memory: expected 262144 or more"),
        (AgentConfig, "budgets: {owner: {memory: 8}}\n", "budgets.owner.memory: expected 262144"),
        (AgentConfig, "budgets: {strangers: {memory: 8KiB}}\n", "budgets.strangers.memory: expec"),
        (
            AgentConfig,
            "federation: {serve: {listen: 'unix:/b.sock', refresh_hint: 500ms}}\n",
            "federation.serve.refresh_hint: a bundle's document says it in whole seconds",
        ),
        (
            AuthorityConfig,
            "limits: {message: 4}\n",
            "limits.message: expected 65536 or more, found the number 4",
        ),
        (
            AuthorityConfig,
            "limits: {unproven_bytes: 1MiB}\n",
            "limits.unproven_bytes: it is less than message",
        ),
        (
            AuthorityConfig,
            "kubernetes: {service_accounts: [s/a], issuer: ''}\n",
            "kubernetes.issuer: expected visible ASCII characters",
        ),
    ],
)
def test_it_is_refused_by_its_field(model: type[BaseModel], text: str, said: str) -> None:
    text = (AGENT if model is AgentConfig else "trust_domain: a\n") + text
    with pytest.raises(ConfigurationError, match=f"^x: {said}"):
        yamlfile.validate(yamlfile.parse(text, what="x"), model, what="x")


def test_an_account_of_agents_and_of_an_authority_is_noticed() -> None:
    text = "trust_domain: a\n" + KUBERNETES
    config = yamlfile.validate(yamlfile.parse(text, what="x"), AuthorityConfig, what="x")
    (found,) = oversights(config)
    assert found.startswith("kubernetes: s/b is under service_accounts and under authorities")
