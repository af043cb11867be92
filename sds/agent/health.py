"""Reports the agent's health, on every socket and to everyone who watches it.

Owns two facts and their distribution: whether each workload's socket serves its workload (its
health is SERVING while every identity that the workload may have, at least one, has a valid
certificate), and whether the agent as a whole is ready (:mod:`sds.operations.readiness`).
Invariants: a change is told once; after a change in the store, only the sockets that it concerns
are checked.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from sds.agent.sockets import Listening, WorkloadListening
    from sds.operations.readiness import Readiness
    from sds.secrets.store import Change, ResourceKey, SecretStore

_LOGGER = logging.getLogger(__name__)


class HealthReporter:
    """Follows the store, and reports what changed.

    Args:
        store: has what is served.
        people: the admin socket.
        sockets: the workloads' sockets.
        readiness: gives the readiness now.
        told: is called with the readiness at the start and after each change of it.
    """

    def __init__(
        self,
        *,
        store: SecretStore,
        people: Listening,
        sockets: Sequence[WorkloadListening],
        readiness: Callable[[], Readiness],
        told: Callable[[Readiness], None],
    ) -> None:
        self._store = store
        self._people = people
        self._sockets = sockets
        self._readiness = readiness
        self._told = told
        self._said: dict[Path, bool] = {}
        self._last: Readiness | None = None
        self._changed = asyncio.Event()
        self._keys: set[ResourceKey] | None = None
        """The keys that changed in the store; None if anything may have changed."""

    def look_again(self) -> None:
        """Check everything: something other than the store changed (the policy, a socket)."""
        self._keys = None
        self._changed.set()

    async def run(self) -> None:
        """Report every change until cancelled."""
        self._keys = None  # whatever changed while nothing looked
        stop = self._store.listen(self._on_change)
        try:
            while True:
                self._changed.clear()
                keys: set[ResourceKey] | None = self._keys
                self._keys = set()
                for one in self._sockets:
                    identities = one.entitlement.current.identities
                    if keys is None or not keys.isdisjoint(identities):
                        served = [self._store.svid(each) is not None for each in identities]
                        self._say(one.listening, serving=bool(served) and all(served))
                self._say_ready(self._readiness())
                await self._changed.wait()
        finally:
            stop()

    def _on_change(self, change: Change) -> None:
        if self._keys is not None:
            self._keys |= change.keys
        self._changed.set()

    def _say(self, listening: Listening, *, serving: bool) -> None:
        if self._said.get(listening.path) is not serving:
            listening.health.tell(serving=serving)
            self._said[listening.path] = serving

    def _say_ready(self, readiness: Readiness) -> None:
        before, self._last = self._last, readiness
        self._say(self._people, serving=readiness.ready)
        if before is None or before.ready != readiness.ready:
            words = "; ".join(readiness.lacking)
            _LOGGER.info(
                "ready" if readiness.ready else "not ready: %s",
                *(() if readiness.ready else (words,)),
                extra={"ready": readiness.ready},
            )
        if readiness != before:
            self._told(readiness)
