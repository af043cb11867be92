"""The models of both configuration files can be used: an import that only type checkers see
leaves a model undefined, and every start fails."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sds.agent.config import AgentConfig
from sds.ca.config import AuthorityConfig

if TYPE_CHECKING:
    from pydantic import BaseModel


@pytest.mark.parametrize("model", [AgentConfig, AuthorityConfig])
def test_a_model_is_defined_to_its_last_field(model: type[BaseModel]) -> None:
    assert model.model_rebuild() is None, "it was not fully defined"
    assert "trust_domain" in model.model_fields
