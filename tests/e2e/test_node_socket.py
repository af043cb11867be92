"""The node-wide socket of a real agent: another user, two identities, whoami, a restart, drain."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import stat
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from cryptography import x509
from spiffe import WorkloadApiClient

from tests.support.front_door import until
from tests.support.process import PATIENCE_SECONDS, output, sds
from tests.support.xds_client import Sotw, channel, secrets

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.node import Node
    from tests.support.process import Process

pytestmark = pytest.mark.e2e

US = str(os.geteuid())
RULES = [
    {
        "name": "exact",
        "match": {"unix:uid": US},
        "spiffe_id": "spiffe://{trust_domain}/user/{uid}",
        "dns_names": ["node.test"],
    },
    {
        "name": "everybody",
        "match": {"unix:gid": "*"},
        "spiffe_id": "spiffe://{trust_domain}/group/{gid}",
        "key_type": "ec-p384",
    },
    {"name": "nobody", "match": {"unix:uid": "4242"}, "spiffe_id": "spiffe://example.org/nobody"},
]
ALL = {"attestors": ["socket", "unix"], "matching": "all", "hold": "500ms"}


@contextlib.asynccontextmanager
async def serving(node: Node, settings: dict[str, Any], rules: list[Any]) -> AsyncIterator[Process]:
    own = [{"name": "web", "spiffe_id": "spiffe://example.org/web"}]
    async with node.agent(node=settings, workloads=[*rules, *own]) as agent:
        yield agent


def path(node: Node) -> str:
    return str(node.run_dir / "node" / "sds.sock")


async def default(connection: grpc.aio.Channel) -> Sotw:
    """A stream that was given its default certificate."""
    stream = Sotw(connection)
    await stream.ask("default")
    assert "default" in secrets(await stream.next())
    return stream


def leaf(pem: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem)


async def test_two_identities_of_one_caller_by_every_api(node: Node) -> None:
    async with serving(node, ALL, RULES):
        ours = f"spiffe://example.org/user/{US}"
        group = f"spiffe://example.org/group/{os.getegid()}"
        async with channel(f"unix:{path(node)}") as connection:
            stream = Sotw(connection)
            await stream.ask("default", group, "ROOTCA")
            got: dict[str, Any] = {}
            while {"default", group, "ROOTCA"} - set(got):
                response = await stream.next()
                got |= secrets(response)
                await stream.ack(response, "default", group, "ROOTCA")
            stream.cancel()
        first = leaf(got["default"].tls_certificate.certificate_chain.inline_bytes)
        names = first.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.UniformResourceIdentifier) == [ours]
        assert names.get_values_for_type(x509.DNSName) == ["node.test"]
        second = leaf(got[group].tls_certificate.certificate_chain.inline_bytes)
        assert getattr(second.public_key(), "key_size", 0) == 384

        def svids() -> list[str]:
            with WorkloadApiClient(socket_path=f"unix://{path(node)}") as client:
                return [str(svid.spiffe_id) for svid in client.fetch_x509_svids()]

        assert await asyncio.to_thread(svids) == [ours, group]
        status, said, _ = await output(sds("whoami", "--socket", path(node), "--output", "json"))
        assert status == 0
        answer = json.loads(said)
        assert [each["rule"] for each in answer["identities"]] == ["exact", "everybody"]
        assert {"type": "socket:name", "value": "node"} in answer["selectors"]
        # Everybody may connect here, and nobody else to the admin socket.
        modes = {
            name: stat.S_IMODE((node.run_dir / name).stat().st_mode)
            for name in ("", "node", "node/sds.sock", "admin.sock")
        }
        assert modes == {
            "": 0o711,
            "node": 0o755,
            "node/sds.sock": 0o666,
            "admin.sock": 0o600,
        }


async def test_a_caller_that_nothing_matches_is_told_what_was_found(node: Node) -> None:
    async with serving(node, {"attestors": ["unix"], "hold": "300ms"}, RULES[2:]):
        async with channel(f"unix:{path(node)}") as connection:
            stream = Sotw(connection)
            await stream.ask("default")
            code, text = await stream.status()
        assert code is grpc.StatusCode.PERMISSION_DENIED
        assert f"unix:uid:{US}" in text
        assert "4242" not in text
        status, _, stderr = await output(sds("whoami", "--socket", path(node)))
        assert status == 1
        assert "no workload rule matches" in stderr


async def test_the_identity_is_gone_from_the_agent_a_while_after_its_caller(node: Node) -> None:
    async with serving(node, {**ALL, "linger": "1s"}, RULES):
        # A process of its own: its connection ends with it.
        status, _, _ = await output(sds("whoami", "--socket", path(node)))
        assert status == 0
        seen = []
        async with asyncio.timeout(PATIENCE_SECONDS):
            while len(identities := await wanted(node)) > 1:
                seen.append(identities)
        assert identities == ["spiffe://example.org/web"]
        assert all(len(each) == 3 for each in seen)


async def wanted(node: Node) -> list[str]:
    """The identities that rotation keeps."""
    _, said, _ = await output(sds("status", "--run-dir", node.run_dir, "--output", "json"))
    return [each["spiffe_id"] for each in json.loads(said)["identities"]]


async def test_a_restarted_agent_is_found_by_whoever_holds_the_directory(node: Node) -> None:
    for ending in ("kill", "terminate"):
        async with node.agent(node=ALL, workloads=RULES, ready=False) as agent:
            await agent.line("the sockets are open")
            async with channel(f"unix:{path(node)}") as connection:
                stream = await default(connection)
                if ending == "kill":
                    await agent.kill()
                else:
                    assert await agent.terminate() == 0
                code, _ = await stream.status()
                assert code is grpc.StatusCode.UNAVAILABLE
    await until(lambda: not (node.run_dir / "admin.sock").exists())


async def test_a_process_outside_pods_is_recognised_while_the_kubelet_is_down(node: Node) -> None:
    settings = {
        "attestors": ["kubernetes", "unix"],
        "hold": "1s",
        "kubernetes": {
            "services": False,
            "kubelet": {
                "url": "https://127.0.0.1:1",
                "token_file": str(node.folder / "none"),
                "insecure_skip_verify": True,
            },
        },
    }
    async with serving(node, settings, RULES), channel(f"unix:{path(node)}") as connection:
        # We are in no pod, and that is known without the kubelet.
        (await default(connection)).cancel()
