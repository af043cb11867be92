"""Measures the steps of a coroutine that runs for a call, and lets them wait for turns.

Owns the boundary between asyncio, which runs whatever was woken, and the turns of the event loop
(:mod:`sds.transport.turns`). Invariants: a step begins only while the turn has time for it,
whatever woke the coroutine; the call's owner pays for each step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator

    from sds.transport.call import Call
    from sds.transport.turns import Turns


class Steps:
    """Awaits a coroutine, and measures the processor time of each step.

    Whatever wakes the coroutine, a step begins only while the turn of the loop has time for it;
    otherwise it waits for the owner's next turn.
    """

    __slots__ = ("_call", "_coroutine", "_owner", "_turns")

    def __init__(self, coroutine: Coroutine[Any, None, None], call: Call, turns: Turns) -> None:
        self._coroutine = coroutine
        self._call = call
        self._owner = call.owner
        self._turns = turns

    def __await__(self) -> Generator[Any, None, None]:
        """Run the coroutine to its end."""
        coroutine, turns = self._coroutine, self._turns
        error: BaseException | None = None
        try:
            while True:
                if turns.is_over:
                    error = yield from self._until_turn(error)
                turns.step_begins()
                try:
                    waits_for = coroutine.send(None) if error is None else coroutine.throw(error)
                except StopIteration:
                    return
                finally:
                    turns.step_ends(self._owner)
                error = None
                try:
                    yield waits_for
                except BaseException as thrown:  # noqa: BLE001  the handler decides about it
                    error = thrown
        finally:
            error = None  # it refers to this frame; this breaks the circle
            coroutine.close()

    def _until_turn(
        self, error: BaseException | None
    ) -> Generator[Any, None, BaseException | None]:
        """Wait for the owner's turn; return what the handler must be told, maybe a cancellation."""
        try:
            while True:
                try:
                    yield from self._call.turn().__await__()
                except BaseException as thrown:  # noqa: BLE001  the handler decides about it
                    error = thrown
                else:
                    return error
        finally:
            error = None  # as above


async def in_steps(
    work: Callable[[], Coroutine[Any, None, None]], call: Call, turns: Turns
) -> None:
    """Do work beside the handler of a call, in steps as the handler's own.

    Args:
        work: makes the coroutine, once the task runs: one that is cancelled before leaves none.
        call: its owner pays.
        turns: the turns of the event loop.
    """
    await Steps(work(), call, turns)
