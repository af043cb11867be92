"""Settings that pages, cures and errors name by a dotted path exist with that spelling."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING, Any, get_args

import pytest
from pydantic import BaseModel

from sds.admission.settings import AdmissionConfig
from sds.agent.config import AgentConfig
from sds.attestation.reference_values import ReferenceValues
from sds.ca.config import AuthorityConfig
from tests.support import need
from tests.support.source import modules

if TYPE_CHECKING:
    from collections.abc import Iterator

DEEPEST = 6
DOTTED = re.compile(r"(?<![\w/.:-])[a-z_]+(?:\.[a-z_]+)+(?![\w/.(-])")
FILES = re.compile(r"\.(?:crl|crt|io|json|jwks|key|md|org|pem|pub|py|service|sock|test|txt|yaml)$")
OF_ENVOY = {"node.cluster", "node.id", "node.metadata", "node.user_agent_name"}
"""Fields of xDS, which begin as a section of ours does."""
PAGES = sorted(
    page.relative_to(need.ROOT)
    for page in [*(need.ROOT / "docs").rglob("*.md"), need.ROOT / "CHANGELOG.md"]
    if "reference" not in page.parts
)


def models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models in the type of a field."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from models(part)


def paths(model: type[BaseModel], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of each field of a file, section by section."""
    for name, field in model.model_fields.items():
        path = (*above, name)
        yield path
        if len(path) < DEEPEST:
            for section in models(field.annotation):
                yield from paths(section, path)


WHOLE = {
    *paths(AgentConfig),
    *paths(AuthorityConfig),
    *paths(AdmissionConfig),
    *paths(ReferenceValues, ("verification", "reference_values")),
}
TOPS = {path[0] for path in WHOLE}
KNOWN = {".".join(path[at:]) for path in WHOLE for at in range(len(path))} | OF_ENVOY


def unknown(text: str) -> set[str]:
    """The dotted names in a text that begin as a setting and are none."""
    named = {name for name in DOTTED.findall(text) if not FILES.search(name)}
    return {name for name in named if name.split(".")[0] in TOPS} - KNOWN


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_a_page_names_only_settings_that_exist(page: Any) -> None:
    assert unknown((need.ROOT / page).read_text()) == set()


def test_errors_and_cures_name_only_settings_that_exist() -> None:
    found: dict[str, set[str]] = {}
    for name, tree in modules().items():
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            match node:
                case ast.Constant(value=str(text)) if id(node) not in docstrings:
                    if wrong := unknown(text):
                        found[f"{name}:{node.lineno}"] = wrong
                case _:
                    pass
    assert found == {}


def test_a_misspelt_setting_would_be_found() -> None:
    assert unknown("raise node.conections_per_owner") == {"node.conections_per_owner"}
    assert unknown("see `verification.fetch` and docs/policy.md") == set()
