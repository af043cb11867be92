from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from tests.support import need


def tool() -> Any:
    path = need.ROOT / "tools" / "licences.py"
    spec = importlib.util.spec_from_file_location("licences", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("licences", "text"),
    [
        ([{"expression": "MIT OR Apache-2.0"}], "MIT OR Apache-2.0"),
        ([{"license": {"id": "MIT"}}, {"license": {"id": "MIT"}}], "MIT"),
        (
            [{"license": {"name": "declared license of 'x'", "text": {"content": "3-Clause BSD"}}}],
            "3-Clause BSD",
        ),
        ([{"license": {"name": "declared license of 'x'", "text": {"content": "a\nb"}}}], ""),
        ([], ""),
    ],
)
def test_a_component_s_licence(licences: list[dict[str, Any]], text: str) -> None:
    assert tool().licence({"name": "x", "licenses": licences}) == text


def test_a_component_without_a_licence_fails() -> None:
    known = {"name": "b", "version": "1", "licenses": [{"expression": "MIT"}]}
    assert "| b | 1 | MIT |" in tool().table({"components": [known]})
    with pytest.raises(SystemExit, match="known of: a"):
        tool().table({"components": [known, {"name": "a"}]})
