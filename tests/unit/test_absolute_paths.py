"""Paths that are compared as text, because other programs write them too, have one form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from sds.admission.settings import AdmissionConfig
from sds.agent.config import AgentConfig
from sds.cli import main
from sds.errors import ConfigurationError
from sds.settings.yamlfile import validate

if TYPE_CHECKING:
    from pydantic import BaseModel

AGENT = {"trust_domain": "a", "run_dir": "/run/x", "authority": {"addresses": ["a:1"]}}
ADMISSION = {"trust_domain": "a", "policy": {"file": "/p", "keys": ["/k"]}}
OTHERS = ["", "/", "var/lib/kubelet", "/var/lib/kubelet/", "//var/lib", "/var//lib", "/var/../lib"]
OTHERS += ["/var/./lib", "~/x", "/run/$NAME", "unix:/run/x", "/run/x ", "/run/\n"]


def agent(**cri: Any) -> dict[str, Any]:
    return {**AGENT, "node": {"attestors": ["cri"], "cri": cri}}


@pytest.mark.parametrize("text", OTHERS)
@pytest.mark.parametrize("field", ["socket", "kubelet_directory", "runtime_directories"])
def test_a_path_of_the_runtime_has_one_form(field: str, text: str) -> None:
    """Nothing else would match it: the content of every pod would be another."""
    value = [text] if field == "runtime_directories" else text
    with pytest.raises(ConfigurationError, match=rf"node\.cri\.{field}"):
        validate(agent(**{field: value}), AgentConfig, what="x")
    with pytest.raises(ConfigurationError, match=rf"runtime\.{field}"):
        validate({**ADMISSION, "runtime": {field: value}}, AdmissionConfig, what="x")


@pytest.mark.parametrize("text", OTHERS)
@pytest.mark.parametrize(
    ("model", "data", "field"),
    [
        (AdmissionConfig, ADMISSION, "wrapper"),
        (AdmissionConfig, ADMISSION, "policy_copy"),
    ],
)
def test_so_have_those_that_the_wrapper_contains(
    model: type[BaseModel], data: dict[str, Any], field: str, text: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"x: {field}: expected"):
        validate({**data, field: text}, model, what="x")


@pytest.mark.parametrize("text", OTHERS)
def test_so_has_the_folder_of_csi(text: str) -> None:
    node = {"attestors": ["cri"], "csi": {"kubelet_dir": text}}
    with pytest.raises(ConfigurationError, match=r"node\.csi\.kubelet_dir: expected"):
        validate({**AGENT, "node": node}, AgentConfig, what="x")


@pytest.mark.parametrize("text", ["", "run/containerd", "/run/containerd/"])
def test_so_has_the_option_of_the_command(text: str) -> None:
    words = ["policy", "pod", "x.yaml", "--uid", "1", "--runtime-directory", text]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2
    assert "expected a" in result.output


def test_the_usual_places_are_taken() -> None:
    found = validate(agent(socket="/run/k3s/c.sock"), AgentConfig, what="x")
    assert found.node is not None
    assert found.node.cri.kubelet_directory == "/var/lib/kubelet"
