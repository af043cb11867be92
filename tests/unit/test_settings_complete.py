import pytest
from pydantic import BaseModel

from sds.agent.config import AgentConfig
from sds.ca.config import AuthorityConfig


@pytest.mark.parametrize("model", [AgentConfig, AuthorityConfig])
def test_every_type_of_a_configuration_is_known_at_run_time(model: type[BaseModel]) -> None:
    """A type that is imported for type checkers only would fail at the first start."""
    assert model.__pydantic_complete__
