"""``sds admission`` on a real containerd with a real runc: what starts, and who gets in."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from sds.workload.cri.canonical import executed, expected_exec
from sds.workload.cri.runtime import Runtime
from tests.support import need
from tests.support.admission import BARE, RUNTIMES, AdmissionNode, why_refused
from tests.support.containerd import Containerd, containerd
from tests.support.cri_node import CriNode
from tests.support.node import short_folder
from tests.support.process import output, sds

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sds.workload.cri.settings import PodContents

pytestmark = [pytest.mark.e2e, pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]
PROBE = ("/pause", "--exit")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def runtime() -> AsyncIterator[Containerd]:
    need.root()
    with short_folder() as folder:
        runtimes = RUNTIMES.format(wrapper=folder / "attested-runc") + BARE
        async with containerd(folder, runtimes=runtimes) as runtime:
            yield runtime


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def listed(runtime: Containerd) -> PodContents:
    """The list of a pod that ran under the bare runtime, as its author makes it."""
    folder = runtime.folder / "reference"
    folder.mkdir()
    node = CriNode(runtime, folder)
    pod = await runtime.pod(handler="bare")
    main = await runtime.container(pod)
    contents = await node.contents(pod)
    async with Runtime(runtime.socket) as client:
        spec = (await client.container(main)).spec
    execs = (expected_exec("main", executed("main", spec["process"]), PROBE).digest,)
    await runtime.remove_pod(pod)
    return contents.model_copy(update={"execs": execs, "name": "web"})


@pytest_asyncio.fixture(loop_scope="module")
async def node(runtime: Containerd) -> AsyncIterator[AdmissionNode]:
    yield AdmissionNode(runtime.folder, runtime)
    await runtime.close()
    for name in ("run/memory.json", "policy.json"):
        (runtime.folder / name).unlink(missing_ok=True)


async def entered(node: AdmissionNode, container: str, *, stdin: int) -> subprocess.Popen[bytes]:
    """``ctr task exec``: as root in the guest, with a standard input of its own."""
    words = [need.tool("ctr"), "-a", node.runtime.socket, "-n", "k8s.io", "tasks", "exec"]
    return await asyncio.to_thread(
        subprocess.Popen,
        [*words, "--exec-id", os.urandom(4).hex(), container, *PROBE],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


async def test_what_is_listed_starts_and_nothing_else(
    node: AdmissionNode, listed: PodContents
) -> None:
    runtime = node.runtime
    async with node.service(listed) as service:
        pod = await runtime.pod()
        main = await runtime.container(pod)
        # Every handler, whatever its name.
        await runtime.container(await runtime.pod(handler="other"))

        # The probe that the rule lists enters it; another one, a hook or kubectl exec does not.
        assert await runtime.exec(main, *PROBE) == 0
        for command in (("/pause",), (*PROBE, "x"), ("/bin/sh",)):
            said = await why_refused(runtime.exec(main, *command))
            assert "admission_not_listed: no rule lists the process sha256:" in said
        # A person: the same command with an open standard input.
        person = await entered(node, main, stdin=subprocess.PIPE)
        told, _ = await asyncio.to_thread(person.communicate)
        assert b"its standard input is open" in told
        assert person.returncode

        # kubectl debug: one more container in a pod that is listed, of the same image.
        said = await why_refused(runtime.container(pod, "debugger", args=["--look"]))
        assert "no rule lists the container debugger sha256:" in said
        assert "beside what runs in the pod already" in said
        assert "no rule lists the container debugger" in service.text
        assert "admission_not_listed" in service.text


async def test_what_differs_in_anything_does_not_start(
    node: AdmissionNode, listed: PodContents
) -> None:
    runtime = node.runtime
    async with node.service(listed):
        said = await why_refused(runtime.pod(namespaces={"pid": 2}))
        assert "no rule lists the sandbox sha256:" in said
        changes: dict[str, dict[str, Any]] = {
            "no rule lists the container args": {"args": ["--write-the-key-out"]},
            "no rule lists the container envs": {"envs": [{"key": "LD_PRELOAD", "value": "/x.so"}]},
            'with host "/etc': {"mounts": [{"container_path": "/x", "host_path": "/etc"}]},
            "no rule lists the container pid": {
                "security": {"namespace_options": {"network": 2, "pid": 2}}
            },
            "its standard input is open": {"stdin": True},
            "it has a terminal": {"tty": True},
        }
        pod = await runtime.pod()
        for why, change in changes.items():
            said = await why_refused(runtime.container(pod, why.split()[-1], **change))
            assert why in said
            assert "refused by sds admission: admission_" in said

        async def powerful() -> None:
            pod = await runtime.pod(privileged=True)  # containerd 2.1 gives the sandbox more, too
            await runtime.container(pod, security={"privileged": True})

        assert "no rule lists the" in await why_refused(powerful())
        await runtime.container(pod)


async def test_containers_of_two_listed_pods_do_not_mix(
    node: AdmissionNode, listed: PodContents
) -> None:
    """And a sandbox that is admitted stays so across a restart of the service."""
    runtime = node.runtime
    other = await reference(runtime, args=["--other"])
    assert other.sandbox == listed.sandbox
    async with node.service(listed, other):
        pod = await runtime.pod()
        main = await runtime.container(pod)
        said = await why_refused(runtime.container(pod, "second", args=["--other"]))
        assert "no rule lists the container second" in said
    async with node.running():
        await runtime.remove(main)
        said = await why_refused(runtime.container(pod, args=["--other"], attempt=1))
        assert "beside what runs in the pod already" in said
        await runtime.container(pod, attempt=2)
        # Another pod may consist of the other container.
        await runtime.container(await runtime.pod(), args=["--other"])


async def test_no_policy_no_pod_but_the_agents_own(
    node: AdmissionNode, listed: PodContents
) -> None:
    """Absent, expired, and rolled back while nobody ran; the agent runs all the while, or not."""
    runtime = node.runtime
    agent = await reference(runtime, "agent", args=["--agent"])
    copy = runtime.folder / "copy.json"
    always = {"always": [json.loads(agent.model_dump_json())], "policy_copy": str(copy)}
    node.publish(node.signed(listed, epoch=7, hours=-1))
    async with node.running(**always) as service:
        pod = await runtime.pod()  # the agent's sandbox is like the others
        said = await why_refused(runtime.container(pod))
        assert "no policy is in force" in said
        mine = await runtime.container(pod, "agent", args=["--agent"])
        assert await why_refused(runtime.exec(mine, *PROBE))

        # The agent learns it from its authority.
        copy.write_bytes(node.signed(listed, epoch=8))
        await service.line("policy of epoch 8 is in force")
        await runtime.container(await runtime.pod())
        node.publish(node.signed(epoch=9))
        await service.line("policy of epoch 9 is in force")
        assert await why_refused(runtime.container(await runtime.pod()))
    # Everybody restarts, and etcd brings back epoch 8, which is signed and not over.
    node.publish(node.signed(listed, epoch=8))
    async with node.running(**always) as service:
        await service.line("epoch 9 was already seen")
        assert await why_refused(runtime.container(await runtime.pod()))
    (runtime.folder / "run" / "memory.json").write_text("{")
    code, _, errors = await output(
        sds("admission", "serve", "--config", runtime.folder / "admission.yaml")
    )
    assert (code, "memory.json cannot be used" in errors) == (2, True), errors


async def test_while_the_service_is_down_nothing_starts_and_pods_still_end(
    node: AdmissionNode, listed: PodContents
) -> None:
    runtime = node.runtime
    async with node.service(listed):
        pod = await runtime.pod()
        main = await runtime.container(pod)
    assert "does not answer" in await why_refused(runtime.pod())
    assert "does not answer" in await why_refused(runtime.exec(main, *PROBE))
    assert "does not answer" in await why_refused(runtime.container(pod, attempt=1))
    await runtime.remove(main)
    await runtime.remove_pod(pod)
    await node.configure(enforce=False)
    await runtime.container(await runtime.pod())


async def test_without_enforcement_all_runs_and_is_logged_and_counted(
    node: AdmissionNode, listed: PodContents
) -> None:
    runtime = node.runtime
    listen = f"unix:{runtime.folder}/metrics.sock"
    async with node.service(listed, enforce=False, metrics={"listen": listen}) as service:
        pod = await runtime.pod()
        main = await runtime.container(pod, args=["--other"])
        assert await runtime.exec(main, *PROBE) == 0
        assert "would be refused, and runs (enforce: false)" in service.text
        curl = ["curl", "-s", "--unix-socket", f"{runtime.folder}/metrics.sock", "http://x/metrics"]
        _, metrics, _ = await output(curl)
    for line in (
        'sds_admission_decisions_total{command="create",decision="admitted"} 1.0',
        'sds_admission_decisions_total{command="create",decision="admission_not_listed"} 1.0',
        'sds_admission_decisions_total{command="exec",decision="admission_not_listed"} 1.0',
    ):
        assert line in metrics


async def reference(runtime: Containerd, name: str = "main", **changes: Any) -> PodContents:
    """The list of a pod with this container, which runs under the bare runtime."""
    with short_folder() as folder:
        pod = await runtime.pod(handler="bare")
        await runtime.container(pod, name, **changes)
        contents = await CriNode(runtime, folder).contents(pod)
        await runtime.remove_pod(pod)
        return contents
