"""A containerd with attestors that look at it, for tests of what runs in pods."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from sds.clock import SystemClock
from sds.workload.cri.attestor import CriAttestor
from sds.workload.cri.pods import SeenPods
from sds.workload.cri.runtime import Runtime
from sds.workload.cri.settings import CriSettings, PodContents
from sds.workload.proc import pod_roots
from tests.support.front_door import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.containerd import Containerd, RuntimePod


@dataclass
class CriNode:
    """A containerd with an attestor that looks at it."""

    runtime: Containerd
    folder: Path

    @contextlib.asynccontextmanager
    async def attestor(self, *pods: PodContents, ago: float = 3600) -> AsyncIterator[CriAttestor]:
        """An attestor whose memory began so many seconds ago."""
        settings = CriSettings(
            socket=self.runtime.socket,
            pods=pods,
            runtime_directories=self.runtime.directories,
        )
        began = datetime.now(UTC) - timedelta(seconds=ago)
        seen = SeenPods(
            settings, self.folder / "seen.json", started_ns=int(began.timestamp() * 1e9)
        )
        async with Runtime(settings.socket) as client:
            attestor = CriAttestor(client, seen, settings, roots=pod_roots({}), clock=SystemClock())
            task = asyncio.create_task(attestor.run())
            try:
                yield attestor
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def contents(self, pod: RuntimePod, **more: Any) -> PodContents:
        """The list of what is in a pod now."""
        async with self.attestor() as attestor:
            await until(lambda: pod.sandbox in attestor._seen.pods)
            await attestor._look(not_before=0)
            seen = attestor._seen.pods[pod.sandbox]
            digests = tuple(each.digest for each in seen.containers.values())
            return PodContents(sandbox=seen.digest, containers=digests, **more)
