"""Which Services select a pod, kept up to date by a watch on the API server.

Owns :class:`ServiceIndex` (pure) and :class:`ServiceWatch`. Invariant: a Service without a
selector, or one that stands for an outside name, selects no pod.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from sds.workload.kubernetes.pods import MOST_LABELS
from sds.workload.kubernetes.watch import ListWatch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sds.clock import Clock
    from sds.errors import KubernetesError
    from sds.workload.kubernetes.watch import WatchedServer

_LOG = logging.getLogger("sds.workload.kubernetes")
_PATH: Final = "/api/v1/services"
_REMEMBERED: Final = 512
"""How many pods' Services are remembered; a node has a few hundred."""

ServiceName = tuple[str, str]
"""Namespace and name of a Service."""
NamedSelector: TypeAlias = "tuple[ServiceName, Mapping[str, str]]"


class ServiceIndex:
    """Keeps the selectors of Services by namespace."""

    def __init__(self) -> None:
        """Begin without Services."""
        self._selectors: dict[str, dict[str, dict[str, str]]] = {}
        self._found: dict[tuple[str, frozenset[tuple[str, str]]], frozenset[ServiceName]] = {}
        """Answers since the last change, kept because each pod has many callers."""

    def put(self, name: ServiceName, selector: Mapping[str, str]) -> bool:
        """Add or change a Service (an empty selector selects no pod); say if anything changed."""
        if not selector:
            return self.remove(name)
        self._found.clear()
        services = self._selectors.setdefault(name[0], {})
        changed = services.get(name[1]) != selector
        services[name[1]] = dict(selector)
        return changed

    def remove(self, name: ServiceName) -> bool:
        """Forget a Service, and say whether it was known."""
        self._found.clear()
        return self._selectors.get(name[0], {}).pop(name[1], None) is not None

    def read(self, item: dict[str, Any]) -> NamedSelector:
        """Return what is kept of one object of a list."""
        return _service(item)

    def replace(self, kept: Sequence[NamedSelector]) -> bool:
        """Keep exactly these Services, and say whether anything changed."""
        fresh: dict[str, dict[str, dict[str, str]]] = {}
        for (namespace, name), selector in kept:
            if selector:
                fresh.setdefault(namespace, {})[name] = dict(selector)
        old = {namespace: each for namespace, each in self._selectors.items() if each}
        self._selectors = fresh
        self._found.clear()
        return fresh != old

    def apply(self, kind: str, item: dict[str, Any]) -> bool:
        """Apply one event of a watch, and say whether anything changed."""
        name, selector = _service(item)
        return self.remove(name) if kind == "DELETED" else self.put(name, selector)

    def selecting(self, namespace: str, labels: Mapping[str, str]) -> frozenset[ServiceName]:
        """Return the Services whose selector these labels satisfy."""
        key = (namespace, frozenset(labels.items()))
        found = self._found.get(key)
        if found is None:
            if len(self._found) >= _REMEMBERED:
                self._found.clear()
            found = self._found[key] = self._selecting(namespace, labels)
        return found

    def _selecting(self, namespace: str, labels: Mapping[str, str]) -> frozenset[ServiceName]:
        return frozenset(
            (namespace, name)
            for name, selector in self._selectors.get(namespace, {}).items()
            if all(labels.get(key) == value for key, value in selector.items())
        )


class ServiceWatch:
    """Keeps a :class:`ServiceIndex` as the API server has it."""

    def __init__(self, api: WatchedServer, clock: Clock) -> None:
        """Ask nothing before :meth:`run`."""
        self._index = ServiceIndex()
        self._watch = ListWatch(api, clock, _PATH, self._index)

    @property
    def error(self) -> KubernetesError | None:
        """Return why Services are not followed now."""
        return self._watch.error

    @property
    def synced(self) -> bool:
        """Say whether a whole list was read once."""
        return self._watch.synced.is_set()

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call ``listener`` after every change until the result is called."""
        return self._watch.listen(listener)

    async def run(self) -> None:
        """List and watch until cancelled."""
        await self._watch.run()

    async def selecting(
        self, namespace: str, labels: Mapping[str, str], *, patience: float
    ) -> frozenset[ServiceName]:
        """Return the Services that select such a pod; wait for the first list, bounded.

        Without a list in time, the answer is empty: callers are authenticated by the SPIFFE ID and
        not by a DNS name, and the names follow as soon as the list is there.
        """
        try:
            async with asyncio.timeout(patience):
                await self._watch.synced.wait()
        except TimeoutError:
            _LOG.warning(
                "the Services are not known: certificates do not have their names for now",
                extra={"namespace": namespace, "why": self.error},
            )
        return self._index.selecting(namespace, labels)


def _service(item: dict[str, Any]) -> NamedSelector:
    metadata, spec = item["metadata"], item.get("spec") or {}
    selector: dict[str, str] = spec.get("selector") or {}
    # One stands for a name outside; the other asks for more labels than count of any pod.
    if spec.get("type") == "ExternalName" or len(selector) > MOST_LABELS:
        selector = {}
    if not all(isinstance(text, str) for pair in selector.items() for text in pair):
        raise TypeError("a selector that is not text")
    return (str(metadata["namespace"]), str(metadata["name"])), selector
