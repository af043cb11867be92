"""Which Services select a pod, kept up to date by a watch on the API server.

Owns :class:`ServiceIndex` (pure) and :class:`ServiceWatch`. Whoever may edit one namespace makes as
many Services there as they like, and changes them as often. Invariants: a Service without a
selector, or one that stands for an outside name, selects no pod; of an overfull namespace no
Service counts (:mod:`sds.workload.kubernetes.selectors`); an answer is bounded; changes are
announced at most once in :data:`APART_SECONDS`, because each is a reason to look at every caller
again.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from sds.faults import guarded
from sds.listeners import Listeners
from sds.workload.kubernetes.pods import MOST_LABELS, read_name
from sds.workload.kubernetes.selectors import Selectors
from sds.workload.kubernetes.watch import MOST_OBJECTS, ListAgainError, ListWatch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sds.clock import Clock
    from sds.errors import KubernetesError
    from sds.workload.kubernetes.selectors import ServiceName
    from sds.workload.kubernetes.watch import WatchedServer

_LOG = logging.getLogger("sds.workload.kubernetes")
_PATH: Final = "/api/v1/services"
_REMEMBERED: Final = 512
"""How many pods' Services are remembered; a node has a few hundred."""
_REMEMBERED_PARTS: Final = 16_384
"""How many labels and Services these answers have together: a pod has up to 256 long labels, and
its author may change them at any time."""

MOST_SERVICES: Final = 128
"""The most Services of one pod that count; each adds four names to match and to certify."""
APART_SECONDS: Final = 1.0


class ServiceIndex:
    """Keeps the selectors of Services by namespace."""

    kind: Final = "ServiceList"

    def __init__(self) -> None:
        self._selectors = Selectors()
        self._coming = Selectors()
        """Those of the list that comes."""
        self._is_news = False
        """Whether something changed that nobody was told of, because a list was asked for."""
        self._found: dict[tuple[str, frozenset[tuple[str, str]]], frozenset[ServiceName]] = {}
        """Answers since the last change, kept because each pod has many callers."""
        self._parts = 0
        """How many labels and Services they have."""

    @property
    def overfull(self) -> frozenset[str]:
        """Return the namespaces of which no Service counts."""
        return self._selectors.overfull

    def begin(self) -> None:
        self._coming = Selectors()

    def read(self, item: dict[str, Any]) -> None:
        """Take one object of a list."""
        self._coming.put(*_service(item), is_new=True)

    def replace(self, kept: Sequence[None]) -> bool:
        del kept
        old, self._selectors = self._selectors, self._coming
        self._coming = Selectors()
        self._forget()
        is_news, self._is_news = self._is_news, False
        return is_news or not old.same_as(self._selectors)

    def apply(self, kind: str, item: dict[str, Any]) -> bool:
        """Apply one event of a watch, and say whether anything changed.

        Raises:
            ListAgainError: there is room for an overfull namespace again, or the watch told of more
                namespaces than a list can have.
        """
        name, selector = _service(item)
        self._forget()
        if kind == "DELETED":
            changed = self._selectors.remove(name, selector)
        else:
            changed = self._selectors.put(name, selector, is_new=kind == "ADDED")
        too_many = self._selectors.namespaces > MOST_OBJECTS
        if too_many or self._selectors.may_be_whole:
            self._is_news |= changed
            raise ListAgainError
        return changed

    def selecting(self, namespace: str, labels: Mapping[str, str]) -> frozenset[ServiceName]:
        """Return the Services whose selector these labels satisfy; of too many only some."""
        key = (namespace, frozenset(labels.items()))
        found = self._found.get(key)
        if found is None:
            found = self._selectors.selecting(namespace, labels, most=MOST_SERVICES + 1)
            parts = 1 + len(labels) + len(found)
            if len(self._found) >= _REMEMBERED or self._parts + parts > _REMEMBERED_PARTS:
                self._forget()
            self._parts += parts
            self._found[key] = found
        return found

    def _forget(self) -> None:
        self._found.clear()
        self._parts = 0


class ServiceWatch:
    """Keeps a :class:`ServiceIndex` as the API server has it."""

    def __init__(self, api: WatchedServer, clock: Clock) -> None:
        """Ask nothing before :meth:`run`."""
        self._index = ServiceIndex()
        self._watch = ListWatch(api, clock, _PATH, self._index)
        self._watch.listen(self._changed)
        self._listeners: Listeners[[]] = Listeners()
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
    return (read_name(metadata["namespace"]), read_name(metadata["name"])), selector
