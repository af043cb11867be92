"""Runs long-lived tasks: a task that ends unasked is logged, counted and started again.

Owns the detection of ended tasks. Invariants: :func:`supervised` ends only by cancellation; an
exception of the task, its return, and an unasked cancellation (by a library that cancels what the
task waits for) all count as an end; a task that always ends at once is started again at a bounded
rate.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from sds.backoff import Backoff, Retry
from sds.errors import SdsError
from sds.faults import count
from sds.untrusted_input import is_panic

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sds.clock import Clock

_LOGGER = logging.getLogger(__name__)
_RESTART: Final = Backoff(first=0.1, longest=5.0)
_STEADY_SECONDS: Final = 30.0
"""A task that ran for this long starts again without the pauses that came before."""


async def supervised(name: str, run: Callable[[], Awaitable[object]], *, clock: Clock) -> None:
    """Run ``run`` again and again until cancelled.

    Args:
        name: the task's name in logs and metrics: a fixed word, without identities.
        run: the task; it is called once for each start.
        clock: measures how long the task ran, and waits before a restart.
    """
    retry = Retry(clock, _RESTART)
    while True:
        started = clock.now().monotonic
        try:
            await run()
        except asyncio.CancelledError as error:
            if is_cancelled():
                raise
            _report(name, error)
        except Exception as error:  # noqa: BLE001  the boundary between one task and the agent
            _report(name, error)
        except BaseException as error:
            if not is_panic(error):
                raise
            _report(name, error)
        else:
            _report(name, None)
        if clock.now().monotonic - started >= _STEADY_SECONDS:
            retry.succeeded()
        await retry.pause()


def is_cancelled() -> bool:
    """Return whether this very task was cancelled, and not only what it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first error that was raised on purpose, else the first of all."""
    flat: list[BaseException] = []
    todo: list[BaseException] = [group]
    while todo:
        error = todo.pop(0)
        if isinstance(error, BaseExceptionGroup):
            todo[:0] = error.exceptions
        else:
            flat.append(error)
    return next((error for error in flat if isinstance(error, SdsError)), flat[0])


def _report(name: str, error: BaseException | None) -> None:
    count("task")
    _LOGGER.error(
        "the task %r ended unexpectedly; it starts again",
        name,
        exc_info=error,
        extra={"task": name, "reason": "task_ended"},
    )
