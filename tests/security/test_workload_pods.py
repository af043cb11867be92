"""Real processes in real control groups: a container that connects right after its start."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import TYPE_CHECKING

import pytest

from sds.clock import SystemClock
from sds.workload.kubernetes.api import ApiClient
from sds.workload.kubernetes.attestor import KubernetesAttestor
from sds.workload.kubernetes.pod_list import PodList
from sds.workload.proc import pod_roots
from sds.workload.recognition import Timing
from tests.support import need
from tests.support.cgroups import pod_cgroup
from tests.support.front_door import front_door, rules
from tests.support.kubernetes import cluster, container_id, pod
from tests.support.process import running

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.e2e, pytest.mark.root]

CLIENT = need.ROOT / "tests" / "support" / "door_client.py"
# A shell that joins the control group, then becomes the client: nothing lies in between.
JOIN = 'while [ "$1" != -- ]; do echo $$ > "$1" || exit 9; shift; done; shift; exec "$@"'
LISTED_AFTER_SECONDS = 0.4  # what a real kubelet took (0.2 to 0.5 s)


@pytest.mark.parametrize("condition", ["k8s:sa", "k8s:image-digest"])
async def test_a_container_that_connects_before_the_kubelet_lists_it(
    tmp_path: Path, condition: str
) -> None:
    need.root()
    identifier = container_id()
    item = pod("web-1", containers={"main": ""})  # the pod is listed, its container is not yet
    uid = item["metadata"]["uid"]
    listed = pod("web-1", uid=uid, containers={"main": identifier})
    exact = {"k8s:sa": "web", "k8s:image-digest": "sha256:" + "ab" * 32}
    # The second rule would match at once: it must not get whom the first one is for.
    mapping = rules({condition: exact[condition]}, {"k8s:ns": "shop"})
    async with contextlib.AsyncExitStack() as stack:
        procs = stack.enter_context(pod_cgroup(uid, identifier))
        kube = await stack.enter_async_context(cluster(tmp_path))
        kube.pods = [item]
        kubelet = await stack.enter_async_context(ApiClient(kube.kubelet()))
        pods = PodList(kubelet, SystemClock())
        fetching = asyncio.create_task(pods.run())
        stack.callback(fetching.cancel)
        door = await stack.enter_async_context(
            front_door(
                tmp_path,
                attestors=[KubernetesAttestor(pods, None, roots=pod_roots({}))],
                rules=mapping,
                timing=Timing(hold=20),
            )
        )
        client = [sys.executable, "-S", str(CLIENT), str(door.path), "hold"]
        async with running(
            ["/bin/sh", "-c", JOIN, "sh", *procs, "--", *client], stdin=asyncio.subprocess.PIPE
        ) as process:
            asyncio.get_running_loop().call_later(
                LISTED_AFTER_SECONDS, setattr, kube, "pods", [listed]
            )
            await process.line("is spiffe://example.org/r0")
            assert kube.kubelet_requests <= 8
