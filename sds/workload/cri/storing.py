"""Stores what was seen in pods, before anybody is served by it and without holding up the rest.

Owns :class:`Storing`. Invariants: a container is stored only once the file has it, or could not be
written (:class:`SeenPods` says so); the event loop waits for no disk; a disk that does not answer
holds up callers from new containers, and nothing else: what takes an identity away counts at once;
what could not be written is tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Set as AbstractSet

    from sds.workload.cri.pods import SeenPods

_MOMENT_SECONDS: Final = 1.0
_AGAIN_SECONDS: Final = 10.0
"""How long after a failure the file is written again, if nothing new comes."""


class Storing:
    """Stores news while :meth:`run` runs.

    Args:
        seen: what was seen, with its file.
        late: is called when news are stored that :meth:`settled` did not wait for to the end.
    """

    def __init__(self, seen: SeenPods, *, late: Callable[[], None]) -> None:
        self._seen = seen
        self._late = late
        self._given_up = False
        """Whether somebody stopped waiting."""
        self._fresh: set[str] = set()
        """The containers that are not stored yet."""
        self._noted = 0
        """How many news there were."""
        self._stored = 0
        """How many of them are stored."""
        self._failed = False
        """Whether the last write failed."""
        self._news = asyncio.Event()
        self._written = asyncio.Event()

    def note(self, container: str | None = None) -> None:
        """Note that something was seen; a container, if it is one."""
        if not self._seen.is_kept:
            return
        self._noted += 1
        if container is not None:
            self._fresh.add(container)

    def awaits(self, container: str) -> bool:
        """Say whether the container was seen and is not stored yet."""
        return container in self._fresh

    def keep_only(self, containers: AbstractSet[str]) -> None:
        """Forget containers that are gone."""
        self._fresh &= containers

    async def settled(self) -> None:
        """Store what was noted so far, and return once that is done, or after a moment."""
        noted = self._noted
        if self._stored < noted:
            self._news.set()
        try:
            async with asyncio.timeout(_MOMENT_SECONDS):
                while self._stored < noted:
                    await self._written.wait()
        except TimeoutError:
            self._given_up = True

    async def run(self) -> None:
        """Store news until cancelled, and then what is left.

        A pod that the next agent does not find in the file would lose its identity for good.
        """
        if self._stored < self._noted:  # this task ended in between and starts again
            self._news.set()
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_AGAIN_SECONDS if self._failed else None):
                        await self._news.wait()
                self._news.clear()
                await self._store()
        finally:
            if self._stored < self._noted:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_MOMENT_SECONDS):
                        await self._store()

    async def _store(self) -> None:
        """Write everything that was noted so far."""
        noted, fresh = self._noted, frozenset(self._fresh)
        self._failed = not await self._seen.write()
        self._stored = noted
        self._fresh -= fresh
        written, self._written = self._written, asyncio.Event()
        written.set()
        if self._given_up:
            self._given_up = False
            self._late()
