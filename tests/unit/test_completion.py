from __future__ import annotations

import os
import subprocess

import pytest
from click.testing import CliRunner

from sds.cli import COMMANDS, main
from tests.support import need


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_for_each_shell(shell: str) -> None:
    result = CliRunner().invoke(main, ["completion", shell])
    assert result.exit_code == 0
    assert "_SDS_COMPLETE" in result.output


def test_another_shell_is_a_usage_error() -> None:
    assert CliRunner().invoke(main, ["completion", "csh"]).exit_code == 2


def test_bash_completes_commands() -> None:
    """As the script asks: the words so far go in by the environment, the candidates come out."""
    command = need.ROOT / ".venv" / "bin" / "sds"
    if not command.is_file():
        need.missing(f"{command} (make setup)")
    asked = os.environ | {
        "_SDS_COMPLETE": "bash_complete",
        "COMP_WORDS": "sds comp",
        "COMP_CWORD": "1",
    }
    ran = subprocess.run([command], env=asked, capture_output=True, text=True, check=False)
    assert ran.stdout.split() == ["plain,completion"]
    assert "completion" in COMMANDS
