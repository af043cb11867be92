"""The owners of connections to workloads' sockets, and their budgets.

Owns the agent's only table of budgets. Invariants: a pod, or a user outside pods, has one budget on
all sockets except the admin socket, which has its own; some descriptors are left for everything
that is not a connection.
"""

from __future__ import annotations

import functools
import os
import resource
from typing import TYPE_CHECKING

from sds.agent.memory_fit import MemoryFit
from sds.errors import WorkloadError
from sds.operations.garbage_collection import collect_when_quiet
from sds.transport.accepting import user_of
from sds.transport.budget import Budgets
from sds.transport.budget_sizes import STRANGERS
from sds.workload.attestors import ATTESTORS
from sds.workload.owner import owner_of
from sds.workload.peer import Peer
from sds.workload.proc import pod_roots

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

    from sds.agent.budget_settings import BudgetsSection
    from sds.agent.node_settings import NodeSettings
    from sds.clock import Clock
    from sds.workload.cgroup import PodRoots


class Owners:
    """Names the owner of a connection, and has the budgets.

    Attributes:
        budgets: the budgets of all owners.
        memory: fits the defaults into the control group.
    """

    def __init__(
        self, node: NodeSettings | None, shares: BudgetsSection, *, memory: int | None = None
    ) -> None:
        """Make the budgets as configured.

        Args:
            node: says where pods are, if the agent recognises pods at all.
            shares: how much each owner may use.
            memory: how many bytes the process may use; None if nothing bounds it.
        """
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.memory = MemoryFit(memory)
        fit = self.memory if shares.fits_itself else MemoryFit(None)
        self.budgets = Budgets(
            fit.share(shares.owner.share()),
            strangers=fit.share(shares.strangers.share(STRANGERS)),
            total=fit.total(shares.total(limit)),
        )
        self._roots: PodRoots | None = None
        if node is not None and any(ATTESTORS[name].pods for name in node.attestors):
            settings = node.kubernetes
            self._roots = pod_roots(
                os.environ,
                cgroup_root=settings.cgroup_root,
                runtime_cgroup=settings.runtime_cgroup,
            )

    def collect(self, clock: Clock) -> Callable[[], Awaitable[None]]:
        """Return what the garbage collector does while the agent runs."""
        return functools.partial(collect_when_quiet, lambda: self.budgets.all.streams, clock)

    def name(self, accepted: socket.socket) -> str:
        """Return the owner of an accepted connection: its pod, or its user outside pods."""
        if self._roots is None:
            return user_of(accepted)
        try:
            with Peer.of(accepted) as peer:
                return owner_of(peer, self._roots)
        except WorkloadError:
            return user_of(accepted)
