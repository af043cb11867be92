"""Every grpcurl line of docs/protocol.md, as it stands there, with a real grpcurl."""

from __future__ import annotations

import asyncio
import json
import os
import re
from typing import TYPE_CHECKING, Any

import pytest
from envoy.config.core.v3 import base_pb2

from tests.support import grpcurl, need
from tests.support.process import output
from tests.support.serving import WEB, admin_socket, serving, svid
from tests.support.xds_client import Sotw, channel

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.e2e

LINES = [
    line
    for block in re.findall(
        r"```sh\n(.*?)```", (need.ROOT / "docs" / "protocol.md").read_text(), re.DOTALL
    )
    for line in block.splitlines()
]


async def run(line: str, socket: Path, admin: Path) -> str:
    environment = {
        **os.environ,
        "PATH": f"{grpcurl.binary().parent}:{os.environ['PATH']}",
        "SOCKET": str(socket),
        "ADMIN": str(admin),
    }
    status, said, errors = await output(["bash", "-c", line], env=environment)
    assert status == 0, f"{line}\n{errors}"
    return said


def objects(text: str) -> list[dict[str, Any]]:
    """The JSON objects that grpcurl prints one after the other."""
    decoder, at, found = json.JSONDecoder(), 0, []
    while at < len(text.rstrip()):
        value, end = decoder.raw_decode(text, at)
        found.append(value)
        at = end + len(text[end:]) - len(text[end:].lstrip())
    return found


async def test_every_line_of_the_documentation(tmp_path: Path) -> None:
    grpcurl.binary()
    assert len(LINES) >= 12
    async with (
        serving(tmp_path) as at,
        admin_socket(at, tmp_path / "admin.sock") as admin,
        channel(at.target) as connection,
    ):
        envoy = Sotw(connection)
        await envoy.ask("default", node=base_pb2.Node(id="front-1", cluster="front"))
        await envoy.ack(await envoy.next(), "default")
        said = {}
        for line in LINES:
            said[line] = await run(line, at.socket, admin)

        def of(*words: str) -> str:
            (line,) = [line for line in LINES if all(word in line for word in words)]
            return said[line]

        assert "envoy.service.secret.v3.SecretDiscoveryService" in of(" list").split()
        assert "rpc DeltaSecrets" in of(" describe ")
        assert json.loads(of("Health/Check")) == {"status": "SERVING"}
        (bundle,) = json.loads(of("FetchSecrets", '["ROOTCA"]'))["resources"]
        assert bundle["name"] == "ROOTCA"
        assert bundle["validation_context"]["trusted_ca"]["inline_bytes"]
        (answer,) = objects(of("StreamSecrets", '"ROOTCA"]'))
        assert [one["name"] for one in answer["resources"]] == ["ROOTCA", "default"]
        names = [one["name"] for one in json.loads(of("FetchSecrets", "'{}'"))["resources"]]
        assert names == ["spiffe://example.org", str(WEB.spiffe_id)]
        (answer,) = objects(of("DeltaSecrets", "nothing"))
        assert answer["removed_resources"] == ["nothing"]
        assert [one["name"] for one in answer["resources"]] == ["default"]
        assert objects(of("StreamAggregatedResources"))[0]["resources"][0]["name"] == "ROOTCA"

        everyone = of("FetchClientStatus", '-unix "$ADMIN"')
        (config,) = json.loads(everyone)["config"]
        assert config["node"]["id"] == "front-1"
        (entry,) = config["generic_xds_configs"]
        assert entry["config_status"] == "SYNCED"
        assert entry["xds_config"]["tls_certificate"]["private_key"] == {
            "inline_string": "[redacted]"
        }
        (config,) = json.loads(of("node_matchers"))["config"]
        assert "xds_config" not in config["generic_xds_configs"][0]
        assert json.loads(of("FetchClientStatus", '"$SOCKET"'))["config"]


async def test_a_push_is_seen_while_one_watches(tmp_path: Path) -> None:
    (line,) = [line for line in LINES if "sleep 2" in line]
    async with serving(tmp_path) as at:
        watching = asyncio.create_task(run(line, at.socket, tmp_path))
        while not at.service.sessions():
            await asyncio.sleep(0.01)
        at.store.put_svid(svid())
        answers = objects(await watching)
        versions = [answer["version_info"] for answer in answers]
        assert len(versions) == len(set(versions)) >= 1
        stored = at.store.svid(WEB)
        assert stored is not None
        assert versions[-1] == stored.version
