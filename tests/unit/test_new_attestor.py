"""A new attestor of workloads is one module and one line of the registry: nothing else knows it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from sds.agent.config import AgentConfig
from sds.agent.node import make_node_socket
from sds.agent.node_settings import NodeSettings
from sds.agent.node_socket import NodeSocket
from sds.agent.socket_guard import SocketGuard
from sds.clock import SystemClock
from sds.secrets.store import SecretStore
from sds.transport.server import Server
from sds.unix_sockets import listening
from sds.workload import attestors
from sds.workload.connection_caller import entitlement_of
from sds.workload.cri.settings import PodContents
from tests.support import toy_attestor
from tests.support.front_door import WHO, Keeper, ask, rules

if TYPE_CHECKING:
    from pathlib import Path

TYPES = frozenset({"toy:parity", "toy:word"})


@pytest.fixture
def _line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one line."""
    registered = attestors.RegisteredAttestor(module="tests.support.toy_attestor", types=TYPES)
    monkeypatch.setitem(attestors.ATTESTORS, toy_attestor.NAME, registered)


@pytest.mark.usefixtures("_line")
async def test_a_toy_attestor_is_added_through_the_registry_alone(tmp_path: Path) -> None:
    settings = NodeSettings.model_validate(
        {"attestors": ["toy"], "others": {"toy": {"word": "hello"}}}
    )
    parity = "odd" if os.getpid() % 2 else "even"
    path = tmp_path / "sds.sock"

    async def am(_request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        entitlement = await entitlement_of(context)
        return str(entitlement.current.identities[0].spiffe_id).encode()

    async def server() -> Server:
        _, service, method = WHO.split("/")
        handler: Any = grpc.unary_unary_rpc_method_handler(am)
        return Server((grpc.method_handlers_generic_handler(service, {method: handler}),))

    node = NodeSocket(
        settings,
        rules({"toy:parity": "neither"}, {"toy:parity": parity, "toy:word": "hell*"}),
        listener=listening(path, 0o600),
        rotation=Keeper(),
        store=SecretStore(),
        server=server,
        clock=SystemClock(),
    )
    async with node.open(grace_seconds=lambda: 0.0):
        assert await ask(path) == "spiffe://example.org/r1"
        assert "the toy attestor is in use" in node.notices()


@pytest.mark.usefixtures("_line")
async def test_attestors_have_a_directory_that_outlives_the_agent_and_the_policys_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was seen in pods is remembered across a restart; the policy's pods may be named."""
    opened: list[attestors.NodeContext] = []

    class Kind(toy_attestor.ToyAttestorKind):
        def open(self, node: attestors.NodeContext) -> Any:
            opened.append(node)
            return super().open(node)

    monkeypatch.setattr(toy_attestor, "KIND", Kind())
    config = AgentConfig.model_validate(
        {
            "trust_domain": "example.org",
            "run_dir": str(tmp_path / "run"),
            "authority": {"addresses": ["127.0.0.1:1"]},
            "node": {"attestors": ["toy"], "others": {"toy": {"word": "hello"}}},
        }
    )
    assert config.node is not None
    unused: Any = None
    digest = f"sha256:{1:064x}"
    listed = (PodContents(sandbox=digest, containers=(digest,)),)
    node = make_node_socket(
        config,
        config.node,
        service=unused,
        api=unused,
        rotation=unused,
        store=unused,
        clock=SystemClock(),
        budgets=unused,
        guard=SocketGuard(clock=SystemClock()),
        listed=lambda: listed,
    )
    with node._listener:
        async with node._opened():
            (context,) = opened
    assert context.directory == tmp_path / "run"
    assert context.listed() is listed


def test_without_the_line_it_is_unknown() -> None:
    with pytest.raises(
        ValueError, match="there is no 'toy'; there are socket, unix, kubernetes, cri"
    ):
        NodeSettings.model_validate({"attestors": ["toy"]})
    with pytest.raises(ValueError, match="unknown selector 'toy:parity'"):
        rules({"toy:parity": "odd"})
