"""Tells people how their container differs from the closest list, within a share of the time.

Owns :class:`Explanations`. Everybody in a pod may ask, also who has no identity, and the author of
a pod makes a container's description as long as they like. Invariants: one container is explained
at a time, and explanations together take at most a tenth of the time; what is told is bounded, and
the lines that differ come first; nothing here decides anything.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from sds import threads
from sds.errors import WorkloadError
from sds.workload.cri.canonical import canonical
from sds.workload.cri.nearest import compared

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from sds.clock import Clock
    from sds.workload.cri.canonical import Surroundings
    from sds.workload.cri.pods import SeenContainer
    from sds.workload.cri.runtime import Runtime
    from sds.workload.cri.settings import PodContents

MOST_LINES: Final = 1000
_MOST_CHARACTERS: Final = 2000
"""Of one line."""
_REST: Final = 9.0
"""How many times its own length the rest after an explanation is."""
_TURN_SECONDS: Final = 10.0


class Explanations:
    """Explains containers, one after another."""

    def __init__(self, runtime: Runtime, *, clock: Clock) -> None:
        self._runtime = runtime
        self._clock = clock
        self._one = asyncio.Lock()
        self._not_before = float("-inf")

    async def of(
        self,
        identifier: str,
        known: SeenContainer,
        around: Surroundings,
        like: Sequence[PodContents],
    ) -> tuple[str, ...]:
        """Compare a container, line by line, with the closest of these lists.

        Raises:
            WorkloadError: too many ask; or the runtime does not answer, or describes it in an
                unknown way.
        """
        async with self._turn():
            said = await self._runtime.container(identifier)

            def explain() -> tuple[str, ...]:
                image = known.image
                found = canonical(known.name, image, said.spec, around, container_id=identifier)
                return bounded(compared(found.lines, like))

            return await threads.CONTAINERS.run(explain)

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Wait for a turn, and rest after it for longer than it took.

        Raises:
            WorkloadError: too many wait.
        """
        try:
            async with asyncio.timeout(_TURN_SECONDS):
                await self._one.acquire()
        except TimeoutError:
            raise WorkloadError(
                "too many ask how their containers differ", reason="undetermined"
            ) from None
        try:
            await self._clock.sleep(self._not_before - self._clock.now().monotonic)
            began = self._clock.now().monotonic
            try:
                yield
            finally:
                now = self._clock.now().monotonic
                self._not_before = now + _REST * (now - began)
        finally:
            self._one.release()


def bounded(lines: Sequence[str]) -> tuple[str, ...]:
    """Return at most :data:`MOST_LINES` lines, and one that says how many there are; none is long.

    If there are more, those that are equal on both sides are left out first.
    """
    shown = [line for line in lines if len(lines) <= MOST_LINES or not line.startswith("  ")]
    left = len(lines) - len(shown[:MOST_LINES])
    told = (line[:_MOST_CHARACTERS] for line in shown[:MOST_LINES])
    return (*told, f"# {left} more lines") if left else tuple(told)
