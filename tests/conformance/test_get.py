"""``sds get`` against a running server."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import grpc
import pytest
import yaml

from tests.support.process import output, sds
from tests.support.serving import OTHER, TD, WEB, root, serving, svid

if TYPE_CHECKING:
    from pathlib import Path

ID = str(WEB.spiffe_id)


async def test_everything_in_words_without_the_key(tmp_path: Path) -> None:
    async with serving(tmp_path) as at:
        status, said, errors = await output(sds("get", "--socket", at.socket))
        assert status == 0, errors
        assert ID in said
        assert f"spiffe://{TD}" in said
        assert "in 59 min" in said
        assert "[redacted]" in said
        assert "PRIVATE" not in said


async def test_json_and_yaml_say_the_same(tmp_path: Path) -> None:
    async with serving(tmp_path) as at:
        at.store.put_bundle(OTHER, [root("other").der])
        names = ("default", "ROOTCA", "ALL")
        status, said, errors = await output(
            sds("get", *names, "--socket", at.socket, "--output", "json")
        )
        assert status == 0, errors
        secrets = json.loads(said)["secrets"]
        assert [secret["name"] for secret in secrets] == list(names)
        certificate, bundle, everyone = secrets
        assert certificate["uris"] == [ID]
        assert certificate["private_key"] == "[redacted]"
        assert certificate["certificates"][0].startswith("-----BEGIN CERTIFICATE-----")
        assert len(bundle["certificates"]) == 1
        assert everyone["trust_domains"] == {TD: 1, OTHER: 1}
        status, said, _ = await output(
            sds("get", *names, "--socket", at.socket, "--output", "yaml")
        )
        assert status == 0
        assert {entry["serial"] for entry in yaml.safe_load(said)["secrets"][:1]} == {
            certificate["serial"]
        }


async def test_the_key_is_shown_on_demand_and_is_the_right_one(tmp_path: Path) -> None:
    async with serving(tmp_path) as at:
        status, said, _ = await output(
            sds("get", "default", "--socket", at.socket, "--show-private-key")
        )
        stored = at.store.svid(WEB)
        assert stored is not None
        assert status == 0
        assert stored.svid.private_key.reveal().decode() in said + "\n"


async def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    async with serving(tmp_path, empty=True) as at:
        status, _, errors = await output(sds("get", "--socket", at.socket))
        assert status == 1
        assert "no secrets" in errors
        at.store.put_svid(svid())
        status, said, errors = await output(sds("get", "default", "nope", "--socket", at.socket))
        assert status == 1
        assert ID in said
        assert "nothing under nope" in errors
    status, _, errors = await output(sds("get", "--socket", tmp_path / "none.sock"))
    assert status == 1
    assert "none.sock" in errors


@pytest.mark.parametrize(
    ("command", "wanted"),
    [
        ("status", "the agent's admin socket"),
        ("get", "a workload's socket or the node-wide one"),
        ("whoami", "a workload's socket or the node-wide one"),
    ],
)
async def test_another_socket_of_the_agent_is_said_to_be_one(
    tmp_path: Path, command: str, wanted: str
) -> None:
    server = grpc.aio.server()
    path = tmp_path / "other.sock"
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    try:
        status, _, errors = await output(sds(command, "--socket", path))
    finally:
        await server.stop(None)
    assert status == 1
    assert f"{path} answers, and does not know this command: it is not {wanted}" in errors
    assert "RUN_DIR/admin.sock" in errors
    assert "check that the agent runs" not in errors
