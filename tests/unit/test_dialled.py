"""What is said where no agent can be called, before gRPC says it."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from sds.cli import main
from sds.commands.dialled import dialled
from tests.support.refusals import refused

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("none.sock", "there is no socket at .*none.sock: No such file or directory"),
        ("file/x.sock", "there is no socket at .*: Not a directory"),
        ("file", "file is a file, not a socket"),
        ("folder", "folder is a directory, not a socket"),
        ("x" * 108, "more than 107 bytes"),
    ],
)
@pytest.mark.parametrize("command", ["get", "status", "whoami"])
def test_every_command_says_what_is_there(
    tmp_path: Path, command: str, name: str, said: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with refused("socket", match=said):
        dialled(tmp_path / name)
    result = CliRunner().invoke(main, [command, "--socket", str(tmp_path / name)])
    assert result.exit_code == 1
    assert "RUN_DIR/admin.sock" in result.stderr
    assert "UNAVAILABLE" not in result.stderr


def test_a_socket_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s")
        assert dialled("s") == str(tmp_path / "s")
        monkeypatch.setattr(os, "access", lambda *_: False)  # root may open everything
        with refused("socket", match="may not be opened by this user"):
            dialled("s")
