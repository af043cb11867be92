"""Which Services select a pod, kept up to date by a watch on the API server.

Owns :class:`ServiceIndex` (pure) and :class:`ServiceWatch`. Invariants: a Service without a
selector, or one that stands for an outside name, selects nobody; a list replaces everything, so
nothing removed while we did not watch stays; an outage of the API server changes nothing.

Source: Kubernetes API concepts, "Efficient detection of changes" (list, then watch from its
resourceVersion; 410 means list again).
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
from typing import TYPE_CHECKING, Any, Final, Protocol

from sds.errors import KubernetesApiError
from sds.workload.kubernetes.api import parse_json

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from sds.clock import Clock

_LOG = logging.getLogger("sds.workload.kubernetes")
_PATH: Final = "/api/v1/services"
_PAGE: Final = "500"
_WATCH_SECONDS: Final = 240  # the server ends the watch then; it sends bookmarks in between
_IDLE_SECONDS: Final = 300.0
_FIRST_PAUSE: Final = 0.2
_LONGEST_PAUSE: Final = 5.0

ServiceName = tuple[str, str]
"""Namespace and name."""


class ServiceIndex:
    """Selectors of Services by namespace."""

    def __init__(self) -> None:
        """Knows none."""
        self._selectors: dict[str, dict[str, dict[str, str]]] = {}

    def put(self, name: ServiceName, selector: Mapping[str, str]) -> bool:
        """Add or change a Service; an empty selector selects nobody. Whether anything changed."""
        if not selector:
            return self.remove(name)
        services = self._selectors.setdefault(name[0], {})
        changed = services.get(name[1]) != selector
        services[name[1]] = dict(selector)
        return changed

    def remove(self, name: ServiceName) -> bool:
        """Forget a Service; whether it was known."""
        return self._selectors.get(name[0], {}).pop(name[1], None) is not None

    def replace(self, services: Mapping[ServiceName, Mapping[str, str]]) -> bool:
        """Know exactly these; whether anything changed."""
        fresh: dict[str, dict[str, dict[str, str]]] = {}
        for (namespace, name), selector in services.items():
            if selector:
                fresh.setdefault(namespace, {})[name] = dict(selector)
        old = {namespace: each for namespace, each in self._selectors.items() if each}
        self._selectors = fresh
        return fresh != old

    def selecting(self, namespace: str, labels: Mapping[str, str]) -> frozenset[ServiceName]:
        """The Services whose selector these labels satisfy."""
        return frozenset(
            (namespace, name)
            for name, selector in self._selectors.get(namespace, {}).items()
            if all(labels.get(key) == value for key, value in selector.items())
        )


class ApiServer(Protocol):
    """The API server."""

    async def get(self, path: str, params: Mapping[str, str] | None = None) -> bytes:
        """The body of a GET."""
        ...

    def lines(
        self, path: str, params: Mapping[str, str], *, idle_seconds: float
    ) -> AsyncIterator[bytes]:
        """The lines of a watch."""
        ...


class ServiceWatch:
    """Keeps a :class:`ServiceIndex` as the API server has it."""

    def __init__(self, api: ApiServer, clock: Clock) -> None:
        """Nothing is asked before :meth:`run`."""
        self.error: KubernetesApiError | None = None
        self._api = api
        self._clock = clock
        self._index = ServiceIndex()
        self._synced = asyncio.Event()
        self._listeners: list[Callable[[], None]] = []

    @property
    def synced(self) -> bool:
        """Whether a whole list was read once."""
        return self._synced.is_set()

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call ``listener`` after every change until the result is called."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    async def selecting(
        self, namespace: str, labels: Mapping[str, str], *, patience: float
    ) -> frozenset[ServiceName]:
        """The Services that select such a pod; waits for the first list, bounded.

        Without a list in time the answer is empty: the SPIFFE ID, not a DNS name, is what callers
        are authenticated by, and the names follow as soon as the list is there.
        """
        try:
            async with asyncio.timeout(patience):
                await self._synced.wait()
        except TimeoutError:
            _LOG.warning(
                "the Services are not known: a certificate goes without their names for now",
                extra={"namespace": namespace, "why": self.error},
            )
        return self._index.selecting(namespace, labels)

    async def run(self) -> None:
        """List and watch until cancelled."""
        pause = _FIRST_PAUSE
        version: str | None = None
        while True:
            began = self._clock.now().monotonic
            try:
                version = await self._watch(version or await self._list())
            except KubernetesApiError as error:
                if self.error is None or str(self.error) != str(error):
                    _LOG.warning("the Services cannot be watched", extra={"why": error})
                self.error = error
                version = None
            if self._clock.now().monotonic - began > _LONGEST_PAUSE:
                pause = _FIRST_PAUSE
            await self._clock.sleep(random.uniform(pause / 2, pause))  # noqa: S311  spreads load
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _list(self) -> str:
        """Read all Services; the version from which to watch."""
        services: dict[ServiceName, Mapping[str, str]] = {}
        params = {"limit": _PAGE}
        while True:
            try:
                document = await parse_json(await self._api.get(_PATH, params))
                services.update(_service(item) for item in document.get("items") or ())
                metadata = document["metadata"]
                more, version = metadata.get("continue"), metadata["resourceVersion"]
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise KubernetesApiError(f"the list of Services is malformed: {error!r}") from error
            if not more:
                break
            params = {"limit": _PAGE, "continue": more}
        changed = self._index.replace(services)
        if self.error is not None:
            _LOG.info("the Services can be watched again", extra={"services": len(services)})
        self.error = None
        if not self._synced.is_set():
            self._synced.set()
            changed = True
        if changed:
            self._tell()
        return str(version)

    async def _watch(self, version: str) -> str | None:
        """Follow changes until the server ends the watch; the version to go on from.

        None: list again.

        Raises:
            KubernetesApiError: the watch broke, or said what no watch says.
        """
        params = {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(_WATCH_SECONDS),
        }
        async for line in self._api.lines(_PATH, params, idle_seconds=_IDLE_SECONDS):
            try:
                event = json.loads(line)
                kind, item = event["type"], event["object"]
                if kind == "ERROR":  # 410 Gone, most of the time
                    return None
                version = str(item["metadata"]["resourceVersion"])
                if kind != "BOOKMARK" and self._apply(kind, item):
                    self._tell()
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise KubernetesApiError(f"a watch event is malformed: {error!r}") from error
        return version

    def _apply(self, kind: str, item: dict[str, Any]) -> bool:
        name, selector = _service(item)
        if kind == "DELETED":
            return self._index.remove(name)
        return self._index.put(name, selector)

    def _tell(self) -> None:
        for listener in list(self._listeners):
            listener()


def _service(item: dict[str, Any]) -> tuple[ServiceName, Mapping[str, str]]:
    metadata, spec = item["metadata"], item.get("spec") or {}
    selector: dict[str, str] = spec.get("selector") or {}
    if spec.get("type") == "ExternalName":  # stands for a name outside; selects nobody
        selector = {}
    if not all(isinstance(text, str) for pair in selector.items() for text in pair):
        raise TypeError("a selector that is not text")
    return (str(metadata["namespace"]), str(metadata["name"])), selector
