"""Opens the ``kubernetes`` attestor with its clients of the kubelet and the API server.

Owns the order in which they start and end. Invariant: a task that follows the kubelet or the API
server and ends unexpectedly is started again.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from sds.supervision import supervised
from sds.workload.kubernetes.attestor import KubernetesAttestor
from sds.workload.kubernetes.pod_list import PodList
from sds.workload.kubernetes.services import ServiceWatch
from sds.workload.kubernetes.settings import api_server, kubelet_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sds.workload.attestors import NodeContext


class _Kind:
    @contextlib.asynccontextmanager
    async def open(self, node: NodeContext) -> AsyncIterator[KubernetesAttestor]:
        # Measured: aiohttp takes 8 MB that a node without Kubernetes does not pay.
        from sds.workload.kubernetes.api import ApiClient  # noqa: PLC0415

        assert node.roots is not None
        settings = node.settings.kubernetes
        kubelet = kubelet_server(settings.kubelet, node.environment)
        api = api_server(settings.api, node.environment) if settings.services else None
        async with contextlib.AsyncExitStack() as stack:
            ahead = node.settings.ahead
            pods = PodList(
                await stack.enter_async_context(ApiClient(kubelet)),
                node.clock,
                every_seconds=None if ahead is None else ahead.look.total_seconds(),
            )
            runs = {"kubelet's pods": pods.run}
            services = None
            if api is not None:
                client = await stack.enter_async_context(ApiClient(api))
                services = ServiceWatch(client, node.clock)
                runs["services"] = services.run
            async with asyncio.TaskGroup() as tasks:
                running = [
                    tasks.create_task(supervised(name, run, clock=node.clock), name=name)
                    for name, run in runs.items()
                ]
                try:
                    yield KubernetesAttestor(pods, services, roots=node.roots)
                finally:
                    for task in running:
                        task.cancel()


KIND: Final = _Kind()
