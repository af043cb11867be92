"""``sds agent`` as a process: bad input of every kind, one by one, and what it leaves unharmed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from click.testing import CliRunner
from cryptography import x509
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from sds.agent.drain import DRAIN_SECONDS
from sds.agent.socket_guard import PERIOD_SECONDS
from sds.commands.agent import agent
from tests.support.node import Node, short_folder
from tests.support.process import PATIENCE_SECONDS, output, running, sds
from tests.support.xds_client import SDS, Sotw, channel, fetch, secrets

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from tests.support.process import Process


pytestmark = pytest.mark.e2e


@pytest.fixture
def whole_node() -> Iterator[Node]:
    """A node with an authority of its own."""
    with short_folder() as folder:
        yield Node(folder)


async def serial(node: Node, workload: str = "web") -> int:
    """Serial of the certificate that a fresh client gets."""
    async with channel(f"unix:{node.socket(workload)}") as connection:
        got = secrets(await fetch(connection, "default"))
    pem = got["default"].tls_certificate.certificate_chain.inline_bytes
    return x509.load_pem_x509_certificate(pem).serial_number


async def status(node: Node) -> Any:
    _, said, _ = await output(sds("status", "--run-dir", node.run_dir, "--output", "json"))
    return json.loads(said)


async def until_status(node: Node, holds: Any) -> Any:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not holds(seen := await status(node)):
            await asyncio.sleep(0.05)
    return seen


# --- configuration ---------------------------------------------------------------------------


async def test_a_bad_file_is_told_by_one_line_and_status_2(node: Node) -> None:
    path = node.folder / "agent.yaml"
    status, stdout, stderr = await output(sds("agent", "--config", path))
    assert (status, stdout) == (2, "")
    assert "agent.yaml cannot be read: No such file or directory" in stderr
    assert len(stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "agent.yaml has 0 YAML documents, not one (it is empty)"),
        ("- a", "agent.yaml has no mapping of fields at its top"),
        ("trust_domain: [a]", "trust_domain: expected text, found a list of 1"),
        ("trust_domian: a", "trust_domian: unknown field, did you mean trust_domain?"),
    ],
)
def test_a_bad_file_is_told_by_one_line(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "agent.yaml"
    path.write_text(content)
    result = CliRunner().invoke(agent, ["--config", str(path), "--check-config"])
    assert said in str(result.exception)
    assert len(str(result.exception).splitlines()) == 1


async def test_a_path_that_is_too_long_is_told_before_anything_starts(node: Node) -> None:
    settings = node.agent_settings(run_dir=str(node.folder / ("d" * 90)))
    status, _, stderr = await output(sds("agent", "--config", node.file("agent", settings)))
    assert status == 2
    assert "a Unix socket's has 107 at most" in stderr
    assert not (node.folder / ("d" * 90)).exists()


async def test_check_config_says_yes_and_starts_nothing(node: Node) -> None:
    attestation = {"kind": "simulated", "descriptor": 3}
    path = node.file("agent", node.agent_settings(attestation=attestation))
    status, stdout, _ = await output(sds("agent", "--check-config", "--config", path))
    assert status == 0
    assert "can be used" in stdout
    assert not node.run_dir.exists()


async def test_a_directory_that_cannot_be_written(node: Node) -> None:
    (node.folder / "file").touch()
    async with node.agent(ready=False, run_dir=str(node.folder / "file" / "run")) as agent:
        assert await agent.wait() == 1
    assert "cannot be looked at: Not a directory" in agent.stderr[-1]
    assert "set another run_dir" in agent.stderr[-1]


# --- sockets ---------------------------------------------------------------------------------


async def test_modes_and_a_second_agent(node: Node) -> None:
    async with node.agent():
        for path, mode in (
            (node.run_dir, 0o700),
            (node.socket("web").parent, 0o700),
            (node.socket("web"), 0o600),
            (node.admin, 0o600),
        ):
            assert path.stat().st_mode & 0o777 == mode, path
        before = await serial(node)
        async with node.agent(ready=False) as second:
            assert await second.wait() == 1
        assert "another agent (pid" in second.stderr[-1]
        assert await serial(node) == before


async def test_configured_modes(node: Node) -> None:
    modes = {"directory_mode": "0755", "socket_mode": "0666"}
    async with node.agent(sockets=modes):
        assert node.socket("web").stat().st_mode & 0o777 == 0o666
        assert node.socket("web").parent.stat().st_mode & 0o777 == 0o755
        assert node.admin.stat().st_mode & 0o777 == 0o600


async def test_a_killed_agents_sockets_are_replaced_and_a_strangers_are_reported(
    node: Node,
) -> None:
    async with node.agent() as agent:
        first = await serial(node)
        await agent.kill()
    assert node.socket("web").exists()
    async with node.agent() as agent:
        assert await serial(node) != first
        assert await agent.terminate() == 0
    assert not node.socket("web").exists()
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.bind(str(node.socket("web")))
        stranger.listen()
        async with node.agent(ready=False) as agent:
            await agent.line(f"another process listens on {node.socket('web')}")
            async with channel(f"unix:{node.socket('web')}") as connection:
                stream = Sotw(connection)
                await stream.ask("default")
                assert "default" in secrets(await stream.next())
            assert not (await status(node))["ready"]


async def test_a_workload_sees_nothing_of_another(node: Node) -> None:
    async with node.agent(), channel(f"unix:{node.socket('web')}") as connection:
        names = ("spiffe://example.org/web", "spiffe://example.org/api", "default")
        got = secrets(await fetch(connection, *names))
        assert set(got) == {"spiffe://example.org/web", "default"}
        call: Any = connection.unary_unary("/sds.agent.v1.Agent/GetStatus")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"")
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


# --- the authority ---------------------------------------------------------------------------


async def test_an_authority_that_is_not_there_is_told_and_found_once_it_is(
    whole_node: Node,
) -> None:
    node = whole_node
    async with node.agent(ready=False) as agent:
        said = await agent.line("no certificate for spiffe://example.org/web")
        assert f"127.0.0.1:{node.port}" in said.string
        seen = await until_status(node, lambda s: s["identities"][0]["reason"])
        assert not seen["ready"]
        assert seen["identities"][0]["reason"] == "authority_unavailable"
        async with node.authority():
            await agent.line(r"\bready=true")
            assert await serial(node)


async def test_an_authority_with_another_measurement_is_not_trusted(node: Node) -> None:
    values = {"reference_values": {"measurements": ["ab" * 48]}}
    changed = node.agent_settings()["verification"] | values
    async with node.agent(ready=False, verification=changed) as agent:
        await agent.line("no certificate for .*measurement")
        seen = await status(node)
        assert {one["condition"] for one in seen["identities"]} == {"refused"}


async def test_a_wrong_root_of_the_authoritys_tls(node: Node) -> None:
    wrong = {"root": str(node.ark), "server_name": "ca.example.org"}
    authority = node.agent_settings()["authority"] | {"tls": wrong}
    async with node.agent(ready=False, authority=authority) as agent:
        said = await agent.line("no certificate for")
        assert "authority" in said.string
        assert agent.returncode is None


async def test_an_identity_that_the_authority_refuses_leaves_the_other_unharmed(
    node: Node,
) -> None:
    refused = {"name": "bad", "spiffe_id": "spiffe://example.org/bad", "dns_names": ["a.com"]}
    workloads = [*node.agent_settings()["workloads"], refused]
    async with node.agent(ready=False, workloads=workloads) as agent:
        said = await agent.line("no certificate for spiffe://example.org/bad.*reason=dns_name_not")
        assert "a.com" in said.string
        async with channel(f"unix:{node.socket('web')}") as connection:
            assert await Sotw(connection).get("default")  # waits: the refusal may be told first
        seen = await status(node)
        conditions = {one["spiffe_id"]: one["condition"] for one in seen["identities"]}
        assert conditions["spiffe://example.org/bad"] == "refused"
        assert conditions["spiffe://example.org/web"] == "valid"


# --- clients ---------------------------------------------------------------------------------


async def test_bad_clients_leave_the_agent_and_the_other_workload_unharmed(node: Node) -> None:
    async with node.agent() as agent:
        web = f"unix:{node.socket('web')}"
        async with channel(web) as connection, channel(f"unix:{node.socket('api')}") as other:
            good = Sotw(other)
            first = await good.get("default")

            # a name that is not there
            asking = Sotw(connection)
            await asking.ask("spiffe://example.org/nobody")
            await asking.silent()
            seen = await status(node)
            assert seen["ready"]

            # garbage where a request should be
            garbage = Sotw(connection)
            await garbage.write(b"\xff" * 100)
            code, details = await garbage.status()
            assert code is grpc.StatusCode.INVALID_ARGUMENT
            assert details

            # 10 MB
            call: Any = connection.unary_unary(SDS + "FetchSecrets")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(b"\x0a" * 10 * 2**20, timeout=PATIENCE_SECONDS)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "at most 4194304" in (caught.value.details() or "")

            # one that never ACKs
            silent = Sotw(connection)
            await silent.ask("default", "ROOTCA")
            await silent.next()

            # bytes that are no HTTP/2
            reader, writer = await asyncio.open_unix_connection(str(node.socket("web")))
            writer.write(os.urandom(4096))
            async with asyncio.timeout(PATIENCE_SECONDS):
                await reader.read()
            writer.close()

            assert agent.returncode is None
            await good.silent()
            assert secrets(first)["default"]
            assert await serial(node) == await serial(node)
            silent.cancel()
            asking.cancel()
            good.cancel()


# --- the end ---------------------------------------------------------------------------------


async def test_sigterm_drains_and_streams_are_told(node: Node) -> None:
    async with node.agent() as agent, channel(f"unix:{node.socket('web')}") as connection:
        stream = Sotw(connection)
        await stream.get("default")
        agent.signal(signal.SIGTERM)
        code, details = await stream.status()
        assert code is grpc.StatusCode.UNAVAILABLE
        assert "stopping" in details
        assert await agent.wait() == 0
        assert not node.admin.exists()


async def test_a_socket_that_cannot_be_removed_keeps_no_other_from_its_end(node: Node) -> None:
    """Something else has the directory's name, or the file system became read-only."""
    async with node.agent() as agent, channel(f"unix:{node.socket('api')}") as connection:
        stream = Sotw(connection)
        await stream.get("default")
        folder = node.socket("web").parent
        shutil.rmtree(folder)
        folder.touch()
        agent.signal(signal.SIGTERM)
        code, _ = await stream.status()
        assert code is grpc.StatusCode.UNAVAILABLE
        assert await agent.wait() == 0
        assert "cannot be removed" in agent.text
        assert not node.admin.exists()
        assert not node.socket("api").exists()


async def test_a_second_signal_ends_at_once(node: Node) -> None:
    async with node.agent(ready=False) as agent:
        await agent.line("the sockets are open")
        agent.signal(signal.SIGSTOP)
        agent.signal(signal.SIGTERM)
        agent.signal(signal.SIGINT)
        agent.signal(signal.SIGCONT)
        assert await agent.wait() in {0, 1}
        assert "second signal" in agent.text


async def talked_to(path: Path, held: contextlib.AsyncExitStack) -> None:
    """Begin a call on this socket that its client never ends."""
    connection = await held.enter_async_context(channel(f"unix:{path}"))
    call = reflection_pb2_grpc.ServerReflectionStub(connection).ServerReflectionInfo()
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    await call.read()


@contextlib.asynccontextmanager
async def draining(node: Node) -> AsyncIterator[Process]:
    """An agent that drains, with a call on two sockets that the client never ends."""
    async with node.agent() as agent, contextlib.AsyncExitStack() as held:
        await talked_to(node.admin, held)
        await talked_to(node.socket("web"), held)
        agent.signal(signal.SIGTERM)
        await agent.line("draining")
        yield agent


async def test_a_second_signal_waits_for_nobody(node: Node) -> None:
    """Neither on the socket that is being closed, nor on those that follow."""
    async with draining(node) as agent:
        agent.signal(signal.SIGTERM)
        await agent.line("second signal")
        assert await agent.wait(seconds=DRAIN_SECONDS - 0.5) == 1
        assert not node.admin.exists()
        assert not node.socket("web").exists()


async def test_clients_of_several_sockets_cannot_add_up_their_times(node: Node) -> None:
    async with draining(node) as agent:
        assert await agent.wait(seconds=2 * DRAIN_SECONDS - 1) == 0


async def served_at(path: Path) -> str:
    """The SPIFFE ID that a fresh client of this socket gets."""
    async with channel(f"unix:{path}") as connection:
        pem = secrets(await fetch(connection, "default"))["default"].tls_certificate
    certificate = x509.load_pem_x509_certificate(pem.certificate_chain.inline_bytes)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    (uri,) = names.value.get_values_for_type(x509.UniformResourceIdentifier)
    return uri


async def test_an_agent_that_lost_its_directory_leaves_its_successors_sockets_alone(
    node: Node,
) -> None:
    """Somebody removes the run directory, with the lock in it, and starts another agent."""
    async with node.agent() as old:
        shutil.rmtree(node.run_dir)
        await old.line("removed or replaced the socket")
        workloads = list(reversed(node.agent_settings()["workloads"]))
        async with node.agent(workloads=workloads) as agent:
            await asyncio.sleep(2 * PERIOD_SECONDS)  # the old one has looked
            for name in node.workloads:
                assert (await served_at(node.socket(name))).endswith(f"/{name}")
            assert await old.terminate() == 0
            for name in node.workloads:
                assert (await served_at(node.socket(name))).endswith(f"/{name}")
            assert (await status(node))["ready"]
            assert "removed or replaced" not in agent.text


# --- sds status ------------------------------------------------------------------------------


async def test_status_as_a_table_and_without_an_agent(node: Node) -> None:
    async with node.agent():
        code, said, _ = await output(sds("status", "--socket", node.admin), env={"COLUMNS": "200"})
        assert "overwritten when freed: yes" in said
        memory = (await status(node))["memory"]
        assert memory["no_dumps"] == {"in_force": True, "why_not": ""}
        assert memory["wiped"] == {"in_force": True, "why_not": ""}
        assert memory["locked"]["in_force"] is not bool(memory["locked"]["why_not"])
        assert code == 0
        for part in ("ready", "spiffe://example.org/web", "valid", "SIMULATED", "ROTATIONS"):
            assert part in said
    code, _, errors = await output(sds("status", "--run-dir", node.run_dir))
    assert code == 1
    assert "there is no socket at" in errors
    code, _, errors = await output(sds("status"))
    assert code == 2


async def test_an_agent_without_a_policy_denies_every_request(node: Node) -> None:
    async with node.agent():
        socket = node.socket("web")
        code, said, _ = await output(sds("get", "--socket", socket, "authorization"))
        assert code == 0
        assert "nothing: all is denied" in said
        names = ("authorization-tcp", "authorization:spiffe://example.org/web")
        code, said, _ = await output(sds("get", "--socket", socket, "--output", "json", *names))
        assert code == 0
        assert [(one["kind"], one["allows"]) for one in json.loads(said)["secrets"]] == [
            ("tcp_authorization", []),
            ("http_authorization", []),
        ]
        code, _, errors = await output(
            sds("get", "--socket", socket, "authorization:spiffe://example.org/api")
        )
        assert code == 1
        assert "authorization:spiffe://example.org/api" in errors


async def test_status_watches(node: Node) -> None:
    command = sds("status", "--run-dir", node.run_dir, "--watch", "--output", "json")
    async with node.agent(), running(command) as watching:
        await watching.line('"ready": true')
        await watching.line('"ready": true', after=1)
        watching.signal(signal.SIGINT)
        assert await watching.wait() == 0


async def test_a_workloads_own_socket_tells_its_callers_who_they_are(node: Node) -> None:
    async with node.agent():
        command = sds("whoami", "--socket", str(node.socket("web")), "--output", "json")
        code, said, errors = await output(command)
        assert code == 0, errors
        found = json.loads(said)
        assert (found["name"], found["state"]) == ("web", "recognised")


async def test_a_socket_that_somebody_replaced_is_put_back_and_readiness_falls(node: Node) -> None:
    async with node.agent():
        before = await serial(node)
        path = node.socket("web")
        inode = path.stat().st_ino
        path.unlink()
        with socket.socket(socket.AF_UNIX) as theirs:
            theirs.bind(str(path))
            theirs.listen()
            async with asyncio.timeout(PATIENCE_SECONDS):
                while path.stat().st_ino != inode:
                    await asyncio.sleep(0.05)
        assert await serial(node) == before
        seen = await until_status(node, lambda said: not said["ready"])
        assert "somebody removed or replaced" in json.dumps(seen)


async def test_a_port_that_is_taken_names_its_field(node: Node) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        at = f"127.0.0.1:{taken.getsockname()[1]}"
        for block in ("metrics", "status_page", "health"):
            changes: dict[str, Any] = {block: {"listen": at}}
            async with node.agent(ready=False, **changes) as agent:
                assert await agent.wait() == 1
            assert f"{block}.listen: cannot listen on {at}: Address already in use" in agent.text
            assert "Traceback" not in agent.text
