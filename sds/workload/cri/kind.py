"""Opens the ``cri`` attestor with its client of the runtime.

Owns the order in which they start and end.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from sds.supervision import supervised
from sds.workload.cri.attestor import CriAttestor
from sds.workload.cri.pods import SeenPods
from sds.workload.cri.runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sds.workload.attestors import NodeContext

_FILE: Final = "cri-seen.json"


class _Kind:
    @contextlib.asynccontextmanager
    async def open(self, node: NodeContext) -> AsyncIterator[CriAttestor]:
        assert node.roots is not None
        settings = node.settings.cri
        file = None if node.directory is None else node.directory / _FILE
        started_ns = int(node.clock.now().wall.timestamp() * 1e9)
        seen = SeenPods(settings, file, started_ns=started_ns)
        async with Runtime(settings.socket) as runtime, asyncio.TaskGroup() as tasks:
            attestor = CriAttestor(
                runtime, seen, settings, roots=node.roots, clock=node.clock, listed=node.listed
            )
            running = tasks.create_task(supervised("cri", attestor.run, clock=node.clock))
            try:
                yield attestor
            finally:
                running.cancel()


KIND: Final = _Kind()
