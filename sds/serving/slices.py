"""Work on many names, done in slices with other work in between.

A client chooses how many names a request has. Owns how many are looked at before others have their
turn. Work that may be long is a generator: it yields after each slice how many names that was, and
returns its result. Invariants: no slice has more than :data:`SLICE` names; the code that runs the
work decides whether it waits between two slices.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SLICE: Final = 200
"""Names that are looked at between two turns of the event loop: 1 to 3 ms."""

_T = TypeVar("_T")
Slices: TypeAlias = Generator[int, None, _T]
"""Yields the names of each slice, and returns the result."""


def sliced(names: Sequence[_T]) -> Iterator[Sequence[_T]]:
    """Cut a sequence into slices."""
    if len(names) <= SLICE:
        if names:
            yield names
        return
    for at in range(0, len(names), SLICE):
        yield names[at : at + SLICE]


def at_once(work: Slices[_T]) -> _T:
    """Do all the work now; what it returns."""
    while True:
        try:
            next(work)
        except StopIteration as done:
            result: _T = done.value
            return result


class TurnTaker(Protocol):
    """What makes work wait."""

    @property
    def turn_is_long(self) -> bool:
        """Whether what runs now has run for so long that others should have their turn."""
        ...

    async def turn(self) -> None:
        """Return when it is the owner's turn again."""
        ...


class Pace:
    """How much work was done since others had their turn.

    Args:
        way: makes the work wait.
    """

    __slots__ = ("_left", "_way")

    def __init__(self, way: TurnTaker) -> None:
        """A turn begins."""
        self._way = way
        self._left = SLICE

    def spend(self, names: int = 1) -> bool:
        """So many names were looked at; whether to wait for the next :meth:`turn` now."""
        self._left -= names
        return self._left <= 0 or (names > 0 and self._way.turn_is_long)

    async def turn(self) -> None:
        """Let others have their turn."""
        self._left = SLICE
        await self._way.turn()

    async def run(self, work: Slices[_T]) -> _T:
        """Do the work, with turns of others in between; what it returns."""
        while True:
            try:
                names = next(work)
            except StopIteration as done:
                result: _T = done.value
                return result
            if self.spend(names):
                await self.turn()

    async def finish(self, work: Slices[None]) -> None:
        """As :meth:`run`, also where the task is cancelled meanwhile: it hears of that at the end.

        Raises:
            CancelledError: it was cancelled.
        """
        cancelled = False
        try:
            for names in work:
                if self.spend(names):
                    try:
                        await self.turn()
                    except asyncio.CancelledError:
                        cancelled = True
        finally:
            at_once(work)  # nothing is left, but where the loop itself is closed
        if cancelled:
            raise asyncio.CancelledError
