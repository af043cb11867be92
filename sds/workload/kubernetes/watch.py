"""Follows a collection of the API server by list and watch.

Owns :class:`ListWatch`. Invariants: a list replaces everything, so an object that was removed while
we did not watch does not stay; an outage changes nothing; the pause between two attempts grows, and
is as long as the server asks for, within a bound.

Source: Kubernetes API concepts, "Efficient detection of changes" (list, then watch from its
resourceVersion; 410 means list again).
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

from sds.errors import KubernetesError, without_frames
from sds.listeners import Listeners
from sds.problems import Problems
from sds.workload.kubernetes.lists import at_most, read_list
from sds.workload.kubernetes.server import parse_json

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence

    from sds.clock import Clock

_LOG = logging.getLogger("sds.workload.kubernetes")
_PAGE: Final = "500"
_WATCH_SECONDS: Final = 240  # the server ends the watch then; it sends bookmarks in between
_IDLE_SECONDS: Final = 300.0
MOST_OBJECTS: Final = 150_000
"""The most objects in one list: the pods of the largest clusters that Kubernetes supports."""
_MOST_PAGES: Final = 2_000
_EVENTS_OF_A_TURN: Final = 100
"""How many events may be applied before others have their turn, however many have come."""
_MALFORMED: Final = (
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    OverflowError,
    RecursionError,
)
"""The errors that reading a document of an unexpected shape raises."""
_FIRST_PAUSE: Final = 0.2
_LONGEST_PAUSE: Final = 5.0
_LONGEST_LATER: Final = 60.0
"""The most seconds that the server's Retry-After counts for: others wait for what is followed."""
_GONE: Final = 410
_K = TypeVar("_K")


class WatchedServer(Protocol):
    """The API server."""

    def chunks(
        self, path: str, params: Mapping[str, str] | None = None
    ) -> AsyncGenerator[bytes, None]:
        """Yield the body of a GET as it comes.

        Raises:
            KubernetesError: ``kubernetes_api``: there is no good answer.
        """
        ...

    def lines(
        self, path: str, params: Mapping[str, str], *, idle_seconds: float
    ) -> AsyncIterator[bytes]:
        """Yield the lines of a watch.

        Raises:
            KubernetesError: ``kubernetes_api``: the watch broke.
        """
        ...


class ListAgainError(Exception):
    """What a collection keeps is not whole any more, and a list would make it so."""


class Collection(Protocol[_K]):
    """Keeps what is needed of the collection; a malformed object raises one of Python's errors."""

    @property
    def kind(self) -> str:
        """The kind of its lists, such as ``PodList``: another one would empty the collection."""
        ...

    def begin(self) -> None:
        """Expect the objects of a new list."""
        ...

    def read(self, item: dict[str, Any]) -> _K:
        """Return what is kept of one object: little, because a list has many."""
        ...

    def replace(self, kept: Sequence[_K]) -> bool:
        """Keep exactly these objects, and say whether anything changed."""
        ...

    def apply(self, kind: str, item: dict[str, Any]) -> bool:
        """Apply ``ADDED``, ``MODIFIED`` or ``DELETED``, and say whether anything changed.

        Raises:
            ListAgainError: only a list can tell.
        """
        ...


class ListWatch(Generic[_K]):
    """Keeps a :class:`Collection` as the API server has it; :meth:`run` runs it."""

    def __init__(
        self, api: WatchedServer, clock: Clock, path: str, collection: Collection[_K]
    ) -> None:
        """Follow the collection at ``path``, such as ``/api/v1/services``."""
        self.error: KubernetesError | None = None
        self.synced = asyncio.Event()
        self._api = api
        self._clock = clock
        self._path = path
        self._collection = collection
        self._listeners: Listeners[[]] = Listeners()
        self._endings = Problems()
        """Of watches that the server ended."""

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call ``listener`` after every change until the result is called."""
        return self._listeners.add(listener)

    async def run(self) -> None:
        """List and watch until cancelled."""
        pause = _FIRST_PAUSE
        version: str | None = None
        while True:
            began = self._clock.now().monotonic
            later = 0.0
            try:
                version = await self._watch(version or await self._list())
            except KubernetesError as error:
                if self.error is None or str(self.error) != str(error):
                    _LOG.warning(
                        "a collection cannot be watched", extra={"path": self._path, "why": error}
                    )
                self.error = without_frames(error)
                version = None
                later = min(error.later, _LONGEST_LATER)
            if self._clock.now().monotonic - began > _LONGEST_PAUSE:
                pause = _FIRST_PAUSE
                self._endings.over()
            drawn = random.uniform(pause / 2, pause)  # noqa: S311  spreads load
            await self._clock.sleep(later + drawn)
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _list(self) -> str:
        """Read everything, and return the version from which to watch."""
        kept: list[_K] = []
        self._collection.begin()
        params = {"limit": _PAGE}
        pages = 0
        while True:
            try:
                more, version = await self._page(params, kept)
                pages += 1  # more pages may follow an empty one
                if pages > _MOST_PAGES:
                    raise ValueError("the list does not end")
            except _MALFORMED as error:
                raise KubernetesError(
                    f"{self._path}: a malformed list: {error!r}", reason="kubernetes_api"
                ) from error
            if not more:
                break
            params = {"limit": _PAGE, "continue": more}
        try:
            changed = self._collection.replace(kept)
        except _MALFORMED as error:
            raise KubernetesError(
                f"{self._path}: a malformed object: {error!r}", reason="kubernetes_api"
            ) from error
        if self.error is not None:
            _LOG.info("a collection can be watched again", extra={"path": self._path})
        self.error = None
        if not self.synced.is_set():
            self.synced.set()
            changed = True
        if changed:
            self._listeners.tell()
        return str(version)

    async def _page(self, params: Mapping[str, str], kept: list[_K]) -> tuple[Any, Any]:
        """Read one page, and return where the next one begins and its version."""
        take = at_most(MOST_OBJECTS, kept, self._collection.read)
        answer = await read_list(self._api.chunks(self._path, params), take)
        assert answer is not None, "no answer is known beforehand"
        if (kind := answer[0].get("kind")) != self._collection.kind:
            raise ValueError(f"it is a {str(kind)[:80]!r} and not a {self._collection.kind}")
        metadata = answer[0]["metadata"]
        return metadata.get("continue"), metadata["resourceVersion"]

    async def _watch(self, version: str) -> str | None:
        """Follow changes until the server ends the watch, and return the version to go on from.

        None means: list again.

        Raises:
            KubernetesError: ``kubernetes_api``: the watch broke, or an event is malformed.
        """
        params = {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(_WATCH_SECONDS),
        }
        events = 0
        async for line in self._api.lines(self._path, params, idle_seconds=_IDLE_SECONDS):
            events += 1
            if events % _EVENTS_OF_A_TURN == 0:
                await asyncio.sleep(0)
            try:
                event = await parse_json(line)
                kind, item = event["type"], event["object"]
                if kind == "ERROR":
                    self._ended(item)
                    return None
                version = str(item["metadata"]["resourceVersion"])
                if kind != "BOOKMARK" and self._collection.apply(kind, item):
                    self._listeners.tell()
            except ListAgainError:
                return None
            except _MALFORMED as error:
                raise KubernetesError(
                    f"{self._path}: a malformed event: {error!r}", reason="kubernetes_api"
                ) from error
        return version

    def _ended(self, status: dict[str, Any]) -> None:
        """Log once why the server ended a watch, unless it only forgot the version (410)."""
        code = status.get("code")
        why = f"{code}: {str(status.get('message'))[:400]!r}"
        if code != _GONE and self._endings.is_news(why):
            _LOG.warning("the server ended a watch", extra={"path": self._path, "why": why})
