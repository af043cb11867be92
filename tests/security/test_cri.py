"""The cri attestor against a real containerd: what changes in a pod, and what is said then."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
import yaml

from sds.agent.node_settings import NodeSettings
from sds.clock import SystemClock
from sds.errors import WorkloadError
from sds.workload.attestors import NodeContext, attestor_kind
from sds.workload.cri import runtime as runtime_module
from sds.workload.cri.runtime import Runtime
from sds.workload.cri.settings import PodContents
from sds.workload.peer import Peer, process_start_time
from sds.workload.proc import pod_roots
from tests.support import need
from tests.support.cgroups import group, hierarchies
from tests.support.containerd import Containerd, containerd, first_process
from tests.support.cri_node import CriNode
from tests.support.node import short_folder
from tests.support.process import PATIENCE_SECONDS, output, running, sds

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sds.workload.cri.attestor import CriAttestor
    from sds.workload.cri.runtime import DescribedContainer
    from sds.workload.facts import Facts

pytestmark = [pytest.mark.e2e, pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]
NOTHING: frozenset[str] = frozenset()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def runtime() -> AsyncIterator[Containerd]:
    need.root()
    with short_folder() as folder:
        async with containerd(folder) as runtime:
            yield runtime


@pytest_asyncio.fixture(loop_scope="module")
async def node(runtime: Containerd, tmp_path: Path) -> AsyncIterator[CriNode]:
    yield CriNode(runtime, tmp_path)
    await runtime.close()


async def facts(attestor: CriAttestor, pid: int) -> Facts:
    peer = Peer(pid=pid, uid=0, gid=0, groups=frozenset(), pidfd=os.pidfd_open(pid))
    with peer:
        return await attestor.attest(peer, NOTHING)


async def test_a_pod_that_its_list_describes(node: CriNode) -> None:
    pod = await node.runtime.pod()
    main = await node.runtime.container(pod)
    contents = await node.contents(pod)
    async with node.attestor(contents) as attestor:
        found = await facts(attestor, first_process(main))
        seen = attestor._seen.pods[pod.sandbox]
        assert (seen.missed, seen.differs(contents)) == ("", ())
        assert found.values("cri:pod-digest") == {contents.digest}
        assert found.values("cri:container-name") == {"main"}
        assert found.values("cri:image-config") == {node.runtime.image}
        assert not found.unknown
        # Another pod of the same manifest has another UID and name, and is the same.
        again = await node.runtime.pod("web-2")
        other = await node.runtime.container(again)
        assert (await facts(attestor, first_process(other))).selectors == found.selectors


@pytest.mark.parametrize(
    "change",
    [
        {"args": ["--write-the-key-out"]},
        {"command": ["/pause", "-x"]},
        {"envs": [{"key": "MODE", "value": "debug"}]},
        {"envs": []},
        {"mounts": [{"container_path": "/x", "host_path": "/etc"}]},
        {"mounts": [{"container_path": "/etc/hosts", "host_path": "/etc/hosts"}]},
        {"working_dir": "/tmp"},
        {"security": {"privileged": True}},
        {"security": {"run_as_user": {"value": 7}}},
        {"security": {"readonly_rootfs": True}},
        {"security": {"namespace_options": {"network": 2, "pid": 2}}},
        {"annotations": {"run.oci.hooks": "x"}},
    ],
    ids=lambda change: str(next(iter(change.items())))[:40],
)
async def test_a_container_that_differs_in_anything(node: CriNode, change: dict[str, Any]) -> None:
    pod = await node.runtime.pod()
    await node.runtime.container(pod)
    contents = await node.contents(pod)
    privileged = change.get("security", {}).get("privileged", False)
    another = await node.runtime.pod(privileged=privileged)
    changed = await node.runtime.container(another, **change)
    async with node.attestor(contents) as attestor:
        found = await facts(attestor, first_process(changed))
        annotated = "annotations" in change  # containerd passes none of the pod's own to runc
        assert found.values("cri:pod-digest") == ({contents.digest} if annotated else frozenset())


async def test_a_container_that_is_not_listed_takes_the_identity_for_good(node: CriNode) -> None:
    pod = await node.runtime.pod()
    main = await node.runtime.container(pod)
    contents = await node.contents(pod)
    async with node.attestor(contents) as attestor:
        pid = first_process(main)
        assert (await facts(attestor, pid)).values("cri:pod-digest")
        told = asyncio.Event()
        attestor.listen(told.set)
        sidecar = await node.runtime.container(pod, "sidecar", args=["--read-the-key"])
        await told.wait()
        found = await facts(attestor, pid)
        assert not found.values("cri:pod-digest")
        (hint,) = found.hints
        assert hint.startswith("the pod is not what a list says: container sidecar (attempt 0) ")
        (notice,) = attestor.notices()
        assert f"pod {pod.uid} is not what a list says: container sidecar (attempt 0)" in notice
        await node.runtime.remove(sidecar)
        await attestor._look(not_before=0)
        assert not (await facts(attestor, pid)).values("cri:pod-digest")
    async with node.attestor(contents, ago=0) as restarted:
        assert not (await facts(restarted, pid)).values("cri:pod-digest")


async def test_an_agent_that_restarts_remembers_and_one_without_memory_refuses(
    node: CriNode,
) -> None:
    pod = await node.runtime.pod()
    main = await node.runtime.container(pod)
    contents = await node.contents(pod)
    async with node.attestor(contents, ago=0) as restarted:
        assert (await facts(restarted, first_process(main))).values("cri:pod-digest")
    (node.folder / "seen.json").unlink()
    async with node.attestor(contents, ago=0) as forgetful:
        found = await facts(forgetful, first_process(main))
        assert found.values("cri:container-digest")
        assert not found.values("cri:pod-digest")


async def test_an_attempt_that_was_never_seen(node: CriNode) -> None:
    pod = await node.runtime.pod()
    await node.runtime.remove(await node.runtime.container(pod))
    main = await node.runtime.container(pod, attempt=1)
    contents = await node.contents(pod)
    async with node.attestor(contents) as attestor:
        assert not (await facts(attestor, first_process(main))).values("cri:pod-digest")


async def test_a_process_that_moved_itself_into_the_control_group(node: CriNode) -> None:
    """As a root pod can that mounts the control groups' file system writable."""
    pod = await node.runtime.pod()
    main = await node.runtime.container(pod)
    contents = await node.contents(pod)
    groups = [str(top / "kubepods" / "burstable" / f"pod{pod.uid}" / main) for top in hierarchies()]
    join = 'for g; do echo $$ > "$g/cgroup.procs" || exit 9; done; echo joined; exec sleep 60'
    async with (
        node.attestor(contents) as attestor,
        running(["/bin/sh", "-c", join, "sh", *groups]) as process,
    ):
        await process.line("joined")
        found = await facts(attestor, process.pid)
        assert not found.selectors
        for kind in ("cri:pod-digest", "k8s:sa"):
            why = found.why_unknown(kind)
            assert why is not None
            assert why.reason == "cri_other_namespaces"
        assert (await facts(attestor, first_process(main))).values("cri:pod-digest")


async def test_a_process_that_has_the_number_of_a_container_that_has_ended(node: CriNode) -> None:
    """A root pod that mounts the control groups' file system writable makes the group again.

    Every pod with an init container has one that has ended.
    """
    pod = await node.runtime.pod()
    await node.runtime.container(pod)
    initial = await node.runtime.container(pod, "init")
    contents = await node.contents(pod)
    groups = [top / "kubepods" / "burstable" / f"pod{pod.uid}" / initial for top in hierarchies()]
    join = 'for g; do echo $$ > "$g/cgroup.procs" || exit 9; done; echo joined; exec sleep 60'
    async with node.attestor(contents) as attestor:
        number = first_process(initial)
        assert (await facts(attestor, number)).values("cri:pod-digest")
        os.kill(number, signal.SIGKILL)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while Path(f"/proc/{number}").exists() or any(map(Path.exists, groups)):
                await asyncio.sleep(0.05)
        with contextlib.ExitStack() as made:
            for each in groups:
                made.enter_context(group(each))
            command = ["/bin/sh", "-c", join, "sh", *map(str, groups)]
            while True:
                Path("/proc/sys/kernel/ns_last_pid").write_text(str(number - 1))
                async with running(command) as process:
                    if process.pid == number:
                        await process.line("joined")
                        found = await facts(attestor, number)
                        break
            assert not found.selectors
            assert found.why_unknown("cri:pod-digest")


async def test_unmeasured_content_must_be_listed(node: CriNode) -> None:
    pod = await node.runtime.pod()
    mounts = [{"container_path": "/data", "host_path": "/etc"}]
    main = await node.runtime.container(pod, mounts=mounts)
    bare = await node.contents(pod)
    listed = bare.model_copy(update={"unmeasured": ('host "/etc"',)})
    assert listed.digest != bare.digest
    async with node.attestor(bare, listed) as attestor:
        found = await facts(attestor, first_process(main))
        assert found.values("cri:pod-digest") == {listed.digest}


async def test_a_runtime_that_does_not_answer_changes_nothing(node: CriNode) -> None:
    pod = await node.runtime.pod()
    main = await node.runtime.container(pod)
    pid = first_process(main)
    contents = await node.contents(pod)
    async with node.attestor(contents) as attestor:
        assert (await facts(attestor, pid)).values("cri:pod-digest")
        attestor._runtime._socket = "/nowhere"
        async with Runtime("/nowhere") as nobody:
            attestor._runtime = nobody
            await attestor._look(not_before=0)
            assert "cri_unavailable" in str(attestor._error and attestor._error.reason)
            assert attestor.notices()
            assert (await facts(attestor, pid)).values("cri:pod-digest")


async def test_a_process_in_no_pod_has_no_fact(node: CriNode) -> None:
    async with node.attestor() as attestor:
        assert await facts(attestor, os.getpid()) == await facts(attestor, os.getpid())
        assert not (await facts(attestor, os.getpid())).unknown


MANIFEST = """
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop}
spec:
  containers:
    - name: main
      image: localhost/pause:1
      args: [--serve]
      env: [{name: MODE, value: production}]
"""


async def test_the_list_of_a_pod_from_its_manifest_and_a_reference_pod(node: CriNode) -> None:
    pod = await node.runtime.pod()
    await node.runtime.container(pod)
    contents = await node.contents(pod)
    manifest = node.folder / "pod.yaml"
    manifest.write_text(MANIFEST)
    directories = [f"--runtime-directory={each}" for each in node.runtime.directories]
    command = sds(
        *("policy", "pod", str(manifest), "--uid", pod.uid, "--socket", node.runtime.socket),
        *directories,
    )
    code, said, errors = await output([*command, "--lines"])
    assert code == 0, errors
    assert contents.digest in said
    assert '#   arg "--serve"' in said
    (listed,) = yaml.safe_load(said)
    assert PodContents.model_validate(listed).digest == contents.digest
    sidecar = await node.runtime.container(pod, "sidecar")
    code, _, errors = await output(command)
    assert code != 0
    assert "container sidecar is not in it" in errors
    await node.runtime.remove(sidecar)
    for before, after, why in (
        ("[--serve]", "[--other]", "the manifest says"),
        ("value: production", "value: debug", "the variable MODE is not 'debug'"),
        ("name: main", "name: other", "container other has not started"),
        ("kind: Pod", "kind: Deployment", "has 0 Pods, not one"),
    ):
        manifest.write_text(MANIFEST.replace(before, after))
        code, _, errors = await output(command)
        assert code != 0
        assert why in errors


async def test_the_node_opens_it_by_its_settings(node: CriNode) -> None:
    pod = await node.runtime.pod()
    main = await node.runtime.container(pod)
    contents = await node.contents(pod)
    cri = {
        "socket": node.runtime.socket,
        "runtime_directories": list(node.runtime.directories),
    }
    context = NodeContext(
        socket="node",
        settings=NodeSettings.model_validate({"attestors": ["cri"], "cri": cri}),
        roots=pod_roots({}),
        directory=node.folder,
        environment={},
        clock=SystemClock(),
        # Of the signed policy; the other tests name the settings' own.
        listed=lambda: (contents,),
    )
    async with attestor_kind("cri").open(context) as attestor:
        peer = Peer(pid=first_process(main), uid=0, gid=0, groups=frozenset(), pidfd=None)
        peer.start_time = process_start_time(peer.pid)
        found = await attestor.attest(peer, NOTHING)
        # This memory begins now, and the pod is older: its container is known, the pod is not.
        assert found.values("cri:container-name") == {"main"}
        assert not found.values("cri:pod-digest")
        younger = await node.runtime.pod("web-2")
        peer.pid = first_process(await node.runtime.container(younger))
        peer.start_time = process_start_time(peer.pid)
        found = await attestor.attest(peer, NOTHING)
        assert found.values("cri:pod-digest") == {contents.digest}
    assert "web" not in (node.folder / "cri-seen.json").read_text()


@pytest.mark.parametrize("where", ["args", "annotations"])
async def test_a_container_too_large_to_be_described_takes_the_identity_of_its_pod_only(
    node: CriNode, where: str
) -> None:
    """Go writes each ``<`` as six characters, and both sides bound an answer to 16 MiB.

    Arguments are in the description of a container, annotations in the list of all too.
    """
    pod, other = await node.runtime.pod(), await node.runtime.pod()
    main = await node.runtime.container(pod)
    contents = await node.contents(pod)
    async with node.attestor(contents) as attestor:
        pid = first_process(main)
        assert (await facts(attestor, pid)).values("cri:pod-digest")
        large = ["<" * 100_000] * 15
        for attempt in range(2):
            change: dict[str, Any] = (
                {"args": large}
                if where == "args"
                else {"annotations": {str(n): each * 6 for n, each in enumerate(large)}}
            )
            await node.runtime.container(pod, "sidecar", attempt=attempt, start=False, **change)
        await attestor._look(not_before=0)
        honest = await node.runtime.container(other)
        assert (await facts(attestor, first_process(honest))).values("cri:container-digest")
        assert not (await facts(attestor, pid)).values("cri:pod-digest")
        assert attestor.notices()


class _GoesAfterOneAnswer(Runtime):
    """A runtime that describes one container and is not there for the next."""

    answered = False

    async def container(self, identifier: str) -> DescribedContainer:
        if self.answered:
            raise WorkloadError("it is not there", reason="cri_unavailable")
        self.answered = True
        return await super().container(identifier)


async def test_what_was_seen_before_an_outage_is_remembered(
    node: CriNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod = await node.runtime.pod()
    for name in ("main", "sidecar"):
        await node.runtime.container(pod, name)
    monkeypatch.setattr("tests.support.cri_node.Runtime", _GoesAfterOneAnswer)
    async with node.attestor() as attestor:
        await attestor._look(not_before=0)
    written = json.loads((node.folder / "seen.json").read_bytes())
    assert len(written["pods"][pod.sandbox]["containers"]) == 1


def shim_of(sandbox: str) -> int:
    """The process that runs a sandbox's containers for the runtime."""
    for each in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = (each / "cmdline").read_bytes().split(b"\0")
            if b"shim" in words[0] and sandbox.encode() in words:
                return int(each.name)
    raise AssertionError(f"{sandbox} has no shim")


async def test_a_sandbox_about_which_there_is_no_answer_blinds_nobody_to_other_pods(
    node: CriNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runtime asks the sandbox's shim, which stands still, and lists everything meanwhile."""
    monkeypatch.setattr(runtime_module, "_SECONDS", 1.0)
    pod = await node.runtime.pod()
    main = await node.runtime.container(pod)
    contents = await node.contents(pod)
    async with node.attestor(contents) as attestor:
        pid = first_process(main)
        assert (await facts(attestor, pid)).values("cri:pod-digest")
        async with attestor._looking:
            stuck = await node.runtime.pod("stuck")
            shim = shim_of(stuck.sandbox)
            os.kill(shim, signal.SIGSTOP)
        try:
            told = asyncio.Event()
            attestor.listen(told.set)
            await node.runtime.container(pod, "sidecar", args=["--read-the-key"])
            async with asyncio.timeout(10):
                await told.wait()
            assert not (await facts(attestor, pid)).values("cri:pod-digest")
            other = await node.runtime.pod("web-2")
            honest = await node.runtime.container(other)
            assert (await facts(attestor, first_process(honest))).values("cri:pod-digest")
            before = attestor._clock.now().monotonic
            await attestor._look(not_before=0)
            assert attestor._clock.now().monotonic - before < 0.9, "it is not asked about each time"
        finally:
            os.kill(shim, signal.SIGCONT)
