"""What is said where no agent can be called, before gRPC says it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from click.testing import CliRunner

from sds._proto.sds.agent.v1 import agent_pb2
from sds.agent.admin import SERVICE
from sds.cli import main
from sds.commands.agent_socket import dialled
from sds.files import socket_target
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
        ("~/admin.sock", "nothing here replaces ~"),
        ("unix:/run/x/admin.sock", "a path begins without unix:"),
    ],
)
@pytest.mark.parametrize("command", ["get", "status", "whoami"])
def test_every_command_says_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, name: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with refused("socket", match=said):
        dialled(name)
    result = CliRunner().invoke(main, [command, "--socket", name])
    assert result.exit_code in {1, 2}
    which = ("RUN_DIR/node/sds.sock", "the shell did not replace ~")
    assert any(words in result.stderr for words in which)
    assert "UNAVAILABLE" not in result.stderr


def test_a_socket_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s")
        assert dialled("s") == f"unix:{tmp_path / 's'}"
        monkeypatch.setattr(os, "access", lambda *_: False)  # root may open everything
        with refused("socket", match="may not be opened by this user"):
            dialled("s")


async def test_a_large_state_is_shown(tmp_path: Path) -> None:
    """gRPC takes 4 MiB unless it is told otherwise."""
    path = tmp_path / "admin.sock"
    state = agent_pb2.Status(ready=True, notices=["n" * 1_000] * 5_000)

    async def get_status(_request: object, _context: object) -> agent_pb2.Status:
        return state

    method: Any = grpc.unary_unary_rpc_method_handler(
        get_status, response_serializer=agent_pb2.Status.SerializeToString
    )
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE, {"GetStatus": method}),)
    )
    server.add_insecure_port(socket_target(path))
    await server.start()
    try:
        command = ["status", "--socket", str(path), "--output", "json"]
        result = await asyncio.to_thread(CliRunner().invoke, main, command)
    finally:
        await server.stop(None)
    assert result.exit_code == 0, result.output
    assert len(json.loads(result.output)["notices"]) == 5_000


async def test_a_path_may_have_any_character(tmp_path: Path) -> None:
    path = tmp_path / "my agent #1 50%41 ä?"
    server = grpc.aio.server()
    server.add_insecure_port(socket_target(path))
    await server.start()
    try:
        assert path.is_socket()
        async with grpc.aio.insecure_channel(dialled(path)) as channel:
            await asyncio.wait_for(channel.channel_ready(), 30)
    finally:
        await server.stop(None)
