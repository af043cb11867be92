"""YAML reads a field whose entries are commented out as null: that never means "as if left out"."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel

from sds.admission.settings import AdmissionConfig
from sds.agent.config import AgentConfig
from sds.attestation.azure.verifier import AzureValues
from sds.attestation.reference_values import ReferenceValues
from sds.attestation.tpm.verifier import TpmValues
from sds.ca.config import AuthorityConfig
from sds.errors import ConfigurationError
from sds.policy.cases import CaseFile
from sds.policy.document import PolicyDocument
from sds.settings import yamlfile
from sds.settings.field_types import Written
from sds.settings.model_fields import members

if TYPE_CHECKING:
    from collections.abc import Iterator

AGENT = "trust_domain: a\nrun_dir: /run/x\nauthority: {addresses: ['a:1']}\n"
AUTHORITY = "trust_domain: a\n"
FILES: tuple[type[BaseModel], ...] = (
    AgentConfig,
    AuthorityConfig,
    AdmissionConfig,
    PolicyDocument,
    CaseFile,
    ReferenceValues,
    TpmValues,
    AzureValues,
)


def models() -> list[type[BaseModel]]:
    """Return every model that a part of a file is read into."""
    found: dict[type[BaseModel], None] = {}

    def visit(kind: Any) -> None:
        for member in members(kind):
            for inner in getattr(member, "__args__", ()):
                visit(inner)
            if isinstance(member, type) and issubclass(member, BaseModel) and member not in found:
                found[member] = None
                for field in member.model_fields.values():
                    visit(field.annotation)

    for file in FILES:
        visit(file)
    return list(found)


def optional() -> Iterator[Any]:
    for model in models():
        for name, field in model.model_fields.items():
            if field.default is None:
                yield pytest.param(model, field.alias or name, id=f"{model.__name__}.{name}")


@pytest.mark.parametrize(("model", "name"), list(optional()))
def test_an_optional_field_without_a_value_is_refused(model: type[BaseModel], name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^x: {name}: expected a value, found nothing"):
        yamlfile.validate(yamlfile.parse(f"{name}:", what="x"), model, what="x")


def test_every_part_of_a_file_has_this_rule() -> None:
    assert [one.__name__ for one in models() if not issubclass(one, Written)] == []


@pytest.mark.parametrize(
    ("model", "file", "line", "where"),
    [
        (AgentConfig, AGENT, "policy:", "policy"),
        (AgentConfig, AGENT, "node:\n# attestors: [unix]", "node"),
        (AgentConfig, AGENT, "attestation: {exchange_key: }", "attestation.exchange_key"),
        (
            AgentConfig,
            AGENT,
            "federation: {bundles: [{trust_domain: b, endpoint: 'https://b/', root: }]}",
            r"federation.bundles\[0\].root",
        ),
        (AuthorityConfig, AUTHORITY, "kubernetes: ", "kubernetes"),
        (AuthorityConfig, AUTHORITY, "limits: {connections: ~}", "limits.connections"),
        (
            AuthorityConfig,
            AUTHORITY,
            "signer: {kind: upstream, verification: , authority: {addresses: ['a:1']}}",
            "signer.verification",
        ),
    ],
)
def test_the_error_names_the_field(
    model: type[BaseModel], file: str, line: str, where: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"x: {where}: expected a value, found nothing"):
        yamlfile.validate(yamlfile.parse(f"{file}{line}\n", what="x"), model, what="x")


def test_null_stays_where_it_says_more_than_a_missing_field() -> None:
    text = "trust_domain: a\npolicy: {file: /p, keys: [/k]}\ncontainerd_config: null\n"
    found = yamlfile.validate(yamlfile.parse(text, what="x"), AdmissionConfig, what="x")
    assert found.containerd_config is None


def test_code_may_say_that_there_is_none() -> None:
    made = AdmissionConfig.model_validate(
        {"trust_domain": "a", "policy": {"file": "/p", "keys": ["/k"]}, "metrics": None}
    )
    assert made.metrics is None
