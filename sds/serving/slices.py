"""Work on many names, done in slices with other work in between.

A client chooses how many names a request has. Owns how many names are handled before other work
gets its turn. Work that may be long is a generator: after each slice it yields the number of names,
and at the end it returns its result. Invariants: no slice has more than :data:`SLICE` names; the
code that runs the work decides whether it waits between two slices.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SLICE: Final = 200
"""The most names that are handled in one turn of the event loop; they take 1 to 3 ms."""

_T = TypeVar("_T")
Slices: TypeAlias = Generator[int, None, _T]
"""Yields the number of names in each slice, and returns the result."""


def sliced(names: Sequence[_T]) -> Iterator[Sequence[_T]]:
    """Cut a sequence into slices."""
    if len(names) <= SLICE:
        if names:
            yield names
        return
    for at in range(0, len(names), SLICE):
        yield names[at : at + SLICE]


def at_once(work: Slices[_T]) -> _T:
    """Do all the work now, and return its result."""
    while True:
        try:
            next(work)
        except StopIteration as done:
            result: _T = done.value
            return result


class TurnTaker(Protocol):
    """Makes work wait for its turn."""

    @property
    def turn_is_long(self) -> bool:
        """Say whether the running work has run for so long that others should have their turn."""
        ...

    async def turn(self) -> None:
        """Return when it is the owner's turn again."""
        ...


class Pace:
    """Counts the work since others had their turn."""

    __slots__ = ("_left", "_turns")

    def __init__(self, turns: TurnTaker) -> None:
        self._turns = turns
        self._left = SLICE

    def spend(self, names: int = 1) -> bool:
        """Count names that were handled, and say whether to wait for the next :meth:`turn` now."""
        self._left -= names
        return self._left <= 0 or (names > 0 and self._turns.turn_is_long)

    async def turn(self) -> None:
        """Let others have their turn."""
        self._left = SLICE
        await self._turns.turn()

    async def run(self, work: Slices[_T]) -> _T:
        """Do the work, with turns of others in between, and return its result."""
        while True:
            try:
                names = next(work)
            except StopIteration as done:
                result: _T = done.value
                return result
            if self.spend(names):
                await self.turn()

    async def finish(self, work: Slices[None]) -> None:
        """Do the work to its end, even if the task is cancelled meanwhile.

        Raises:
            CancelledError: the task was cancelled; raised at the end.
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
            at_once(work)  # something is left only if the loop itself is closed
        if cancelled:
            raise asyncio.CancelledError
