"""A whole agent whose rules name pods by ``cri:pod-digest``, on a real containerd."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from sds.workload.cri.canonical import canonical
from tests.support import need
from tests.support.containerd import Containerd, RuntimePod, containerd
from tests.support.cri_node import CriNode
from tests.support.front_door import until
from tests.support.node import Node, short_folder
from tests.support.process import output, sds
from tests.support.xds_client import Sotw, channel, fetch, secrets

if TYPE_CHECKING:
    from pathlib import Path

    from sds.workload.cri.settings import PodContents

pytestmark = [pytest.mark.e2e, pytest.mark.root]


async def relaying(runtime: Containerd, folder: Path, pod: RuntimePod, **changes: Any) -> str:
    """A container whose process connects to the agent, and passes on what comes at ``relay``."""
    mounts = [
        {"container_path": "/sds", "host_path": str(folder / "run" / "node"), "readonly": True},
        {"container_path": "/relay", "host_path": str(folder / "relay")},
    ]
    args = ["--relay", "/sds/sds.sock", "/relay/sock"]
    door = folder / "relay" / "sock"
    door.unlink(missing_ok=True)
    made = await runtime.container(pod, mounts=mounts, args=args, **changes)
    await until(lambda: listens(door))
    return made


def listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


async def listed(runtime: Containerd, folder: Path) -> PodContents:
    """What a reference pod consists of, with its lines."""
    pod = await runtime.pod()
    await relaying(runtime, folder, pod)
    seen = CriNode(runtime, folder)
    unmeasured = tuple(f'host "{folder / name}"' for name in ("relay", "run/node"))
    contents = await seen.contents(pod, unmeasured=unmeasured, name="web")
    lines = {}
    async with seen.attestor() as attestor:
        await attestor._look(not_before=0)
        around = attestor._seen.around(pod.sandbox, attestor._seen.pods[pod.sandbox])
        for identifier, each in attestor._seen.pods[pod.sandbox].containers.items():
            spec = (await attestor._runtime.container(identifier)).spec
            found = canonical(each.name, each.image, spec, around, container_id=identifier)
            lines[found.digest] = found.lines
    await runtime.remove_pod(pod)
    return contents.model_copy(update={"lines": lines})


async def refused(connection: grpc.aio.Channel) -> str:
    """Why the caller gets nothing."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await fetch(connection, "default")
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    return caught.value.details() or ""


async def test_a_pods_identity_ends_with_the_first_container_that_is_not_listed() -> None:
    need.root()
    with short_folder() as folder:
        for name in ("run/node", "relay"):
            (folder / name).mkdir(parents=True)
        async with containerd(folder) as runtime:
            contents = await listed(runtime, folder)
            (folder / "seen.json").unlink()
            node = Node(folder)
            settings = {
                "attestors": ["cri"],
                "hold": "3s",
                "cri": {
                    "socket": runtime.socket,
                    "runtime_directories": list(runtime.directories),
                    "pods": [contents.model_dump(mode="json")],
                },
            }
            rule = {
                "name": "web",
                "match": {"cri:pod-digest": contents.digest},
                "spiffe_id": "spiffe://{trust_domain}/web",
            }
            relay = f"unix:{folder}/relay/sock"
            whoami = sds("whoami", "--socket", folder / "relay" / "sock")
            async with node.authority():
                async with node.agent(node=settings, workloads=[rule]):
                    pod = await runtime.pod()
                    await relaying(runtime, folder, pod)
                    code, said, _ = await output(whoami)
                    assert code == 0
                    assert "spiffe://example.org/web  (rule web)" in said
                    assert "# as listed for pod web" in said
                    assert '  arg "--relay"' in said
                    async with channel(relay) as connection:
                        stream = Sotw(connection)
                        await stream.ask("default")
                        assert "default" in secrets(await stream.next())
                        await runtime.container(pod, "sidecar", args=["--read-the-key"])
                        status, why = await stream.status()
                        assert status is grpc.StatusCode.PERMISSION_DENIED, why
                        assert "no workload rule matches" in await refused(connection)
                async with node.agent(node=settings, workloads=[rule]):
                    async with channel(relay) as connection:
                        await refused(connection)
                    # Another pod of the same manifest has it; one that differs learns in what.
                    await runtime.remove_pod(pod)
                    other = await runtime.pod("web-2")
                    main = await relaying(runtime, folder, other)
                    async with channel(relay) as connection:
                        stream = Sotw(connection)
                        await stream.ask("default")
                        assert "default" in secrets(await stream.next())
                        stream.cancel()
                    await runtime.remove(main)
                    differs = await runtime.pod("web-3")
                    envs = [{"key": "MODE", "value": "debug"}]
                    await relaying(runtime, folder, differs, envs=envs)
                    code, said, _ = await output(whoami)
                    assert code == 1
                    assert "- env …" in said
                    assert "MODE=production" not in said  # it may be another pod's
                    assert '+ env "MODE=debug"' in said
