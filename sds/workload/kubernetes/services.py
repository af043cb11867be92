"""Which Services select a pod, kept up to date by a watch on the API server.

Owns :class:`ServiceIndex` (pure) and :class:`ServiceWatch`. Whoever may edit one namespace makes as
many Services there as they like, and changes them as often. Invariants: a Service without a
selector, or one that stands for an outside name, selects no pod; the selectors of one namespace
take a bounded amount of memory and of time for each look, and no Service of a namespace with more
counts; changes are announced at most once in :data:`APART_SECONDS`, because each is a reason
to look at every caller again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from sds.faults import guarded
from sds.listeners import Listeners
from sds.workload.kubernetes.pods import MOST_LABELS
from sds.workload.kubernetes.watch import ListAgainError, ListWatch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sds.clock import Clock
    from sds.errors import KubernetesError
    from sds.workload.kubernetes.watch import WatchedServer

_LOG = logging.getLogger("sds.workload.kubernetes")
_PATH: Final = "/api/v1/services"
_REMEMBERED: Final = 512
"""How many pods' Services are remembered; a node has a few hundred."""

MOST_OF_A_NAMESPACE: Final = 20_000
"""The most labels in the selectors of one namespace: 5,000 Services with 4 each. They take 5 MB,
and to compare a pod with all of them 1 ms."""
APART_SECONDS: Final = 1.0

ServiceName = tuple[str, str]
"""Namespace and name of a Service."""
NamedSelector: TypeAlias = "tuple[ServiceName, Mapping[str, str] | None, int]"
"""A Service, its selector if that is kept, and how many labels it has."""


@dataclass(slots=True, kw_only=True)
class _Namespace:
    """The Services of one namespace.

    Attributes:
        selectors: by name; none if there are too many labels in them.
        sizes: how many labels each selector has.
        total: how many they have together.
        is_over: whether there were too many since the last list.
    """

    selectors: dict[str, dict[str, str]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    total: int = 0
    is_over: bool = False

    def put(self, name: str, selector: Mapping[str, str] | None, size: int) -> bool:
        """Add or change a Service, and say if anything changed that is kept."""
        self.total += size - self.sizes.get(name, 0)
        self.sizes[name] = size
        if self.is_over:
            return False
        if selector is None or self.total > MOST_OF_A_NAMESPACE:
            self.is_over = True
            self.selectors.clear()
            return True
        changed = self.selectors.get(name) != selector
        self.selectors[name] = dict(selector)
        return changed

    def remove(self, name: str) -> bool:
        """Forget a Service, and say whether it was kept."""
        self.total -= self.sizes.pop(name, 0)
        return self.selectors.pop(name, None) is not None

    @property
    def fits_again(self) -> bool:
        """Say whether a list is worth it: far below the bound, so that nobody causes many."""
        return self.is_over and self.total <= MOST_OF_A_NAMESPACE // 2


class ServiceIndex:
    """Keeps the selectors of Services by namespace."""

    def __init__(self) -> None:
        """Begin without Services."""
        self._namespaces: dict[str, _Namespace] = {}
        self._coming: Counter[str] = Counter()
        """How many labels the selectors of each namespace have in the list that comes."""
        self._found: dict[tuple[str, frozenset[tuple[str, str]]], frozenset[ServiceName]] = {}
        """Answers since the last change, kept because each pod has many callers."""

    @property
    def overfull(self) -> frozenset[str]:
        """Return the namespaces of which no Service counts."""
        return frozenset(name for name, each in self._namespaces.items() if each.is_over)

    def put(self, name: ServiceName, selector: Mapping[str, str]) -> bool:
        """Add or change a Service (an empty selector selects no pod); say if anything changed."""
        if not selector:
            return self.remove(name)
        self._found.clear()
        there = self._namespaces.setdefault(name[0], _Namespace())
        return there.put(name[1], selector, len(selector))

    def remove(self, name: ServiceName) -> bool:
        """Forget a Service, and say whether it was known."""
        self._found.clear()
        there = self._namespaces.get(name[0])
        if there is None:
            return False
        was_kept = there.remove(name[1])
        if not there.sizes:
            del self._namespaces[name[0]]
        return was_kept

    def begin(self) -> None:
        """Expect the objects of a new list."""
        self._coming.clear()

    def read(self, item: dict[str, Any]) -> NamedSelector:
        """Return what is kept of one object of a list."""
        name, selector = _service(item)
        self._coming[name[0]] += len(selector)
        kept = None if self._coming[name[0]] > MOST_OF_A_NAMESPACE else selector
        return name, kept, len(selector)

    def replace(self, kept: Sequence[NamedSelector]) -> bool:
        """Keep exactly these Services, and say whether anything changed."""
        fresh: dict[str, _Namespace] = {}
        for (namespace, name), selector, size in kept:
            if size:
                fresh.setdefault(namespace, _Namespace()).put(name, selector, size)
        old, self._namespaces = self._namespaces, fresh
        self._found.clear()
        return fresh != old

    def apply(self, kind: str, item: dict[str, Any]) -> bool:
        """Apply one event of a watch, and say whether anything changed.

        Raises:
            ListAgainError: the selectors of a namespace have few enough labels again.
        """
        name, selector = _service(item)
        changed = self.remove(name) if kind == "DELETED" else self.put(name, selector)
        there = self._namespaces.get(name[0])
        if there is not None and there.fits_again:
            raise ListAgainError
        return changed

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
        there = self._namespaces.get(namespace)
        if there is None:
            return frozenset()
        return frozenset(
            (namespace, name)
            for name, selector in there.selectors.items()
            if selector.items() <= labels.items()
        )


class ServiceWatch:
    """Keeps a :class:`ServiceIndex` as the API server has it."""

    def __init__(self, api: WatchedServer, clock: Clock) -> None:
        """Ask nothing before :meth:`run`."""
        self._index = ServiceIndex()
        self._watch = ListWatch(api, clock, _PATH, self._index)
        self._watch.listen(self._changed)
        self._listeners = Listeners()
        self._told_at = float("-inf")
        self._telling: asyncio.TimerHandle | None = None
        """Tells of what changed since then."""

    @property
    def error(self) -> KubernetesError | None:
        """Return why Services are not followed now."""
        return self._watch.error

    @property
    def synced(self) -> bool:
        """Say whether a whole list was read once."""
        return self._watch.synced.is_set()

    @property
    def overfull(self) -> frozenset[str]:
        """Return the namespaces of which no Service counts, because there is too much in them."""
        return self._index.overfull

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call ``listener`` soon after every change until the result is called."""
        return self._listeners.add(listener)

    async def run(self) -> None:
        """List and watch until cancelled."""
        await self._watch.run()

    def _changed(self) -> None:
        """Tell of the first change at once, and of those that follow it together."""
        if self._telling is None:
            loop = asyncio.get_running_loop()
            rest = max(0.0, self._told_at + APART_SECONDS - loop.time())
            self._telling = loop.call_later(rest, guarded("listener", self._tell))

    def _tell(self) -> None:
        self._telling = None
        self._told_at = asyncio.get_running_loop().time()
        self._listeners.tell()

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


def _service(item: dict[str, Any]) -> tuple[ServiceName, dict[str, str]]:
    metadata, spec = item["metadata"], item.get("spec") or {}
    selector: dict[str, str] = spec.get("selector") or {}
    # One stands for a name outside; the other asks for more labels than count of any pod.
    if spec.get("type") == "ExternalName" or len(selector) > MOST_LABELS:
        selector = {}
    if not all(isinstance(text, str) for pair in selector.items() for text in pair):
        raise TypeError("a selector that is not text")
    return (str(metadata["namespace"]), str(metadata["name"])), selector
