"""The output side of a stream's call: to write, to wait, and to run work later.

Owns the difference between our own transport and ``grpc.aio``. Our own
:class:`~sds.transport.call.Call` implements :class:`CallOutput` itself: the work of a stream runs
in the turns of its owner, and a response that need not wait is sent without a task. grpc tells
neither who owns a call nor whether a write would wait, so there each push takes a task.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, Protocol

from sds.serving.slices import TurnTaker
from sds.transport.call import Call

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


class CallOutput(TurnTaker, Protocol):
    """What a stream needs of its call."""

    def soon(self, job: Callable[[], bool]) -> None:
        """Run a job in the owner's turns until it says that nothing is left."""
        ...

    def start(self, work: Callable[[], Coroutine[Any, None, None]]) -> asyncio.Task[None]:
        """Run work beside the handler, which the owner pays for as for the handler."""
        ...

    def send(self, message: bytes) -> bool:
        """Send a message at once; return False if the next one has to wait for :meth:`ready`.

        Raises:
            CallEndedError: the call is over.
            LimitError: the owner may not have so much output waiting.
        """
        ...

    async def ready(self) -> None:
        """Return when another message may be sent."""
        ...

    async def write(self, message: bytes) -> None:
        """Send a message; returns when another may be sent.

        Raises:
            CallEndedError: the call is over.
        """
        ...

    async def quiet(self) -> None:
        """Return when the call can end with a status, although a write was cancelled."""
        ...


QUIET_SECONDS: Final = 1.0
"""How long a status waits for a write of ``grpc.aio``. A client that reads more slowly may not get
it."""


class GrpcCallOutput:
    """The way out of a call of ``grpc.aio``."""

    turn_is_long = False

    def __init__(self, context: Any) -> None:
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._unsent: bytes | None = None
        self._writing: asyncio.Future[None] | None = None

    async def turn(self) -> None:
        await asyncio.sleep(0)

    def soon(self, job: Callable[[], bool]) -> None:
        self._loop.call_soon(self._run, job)

    def start(self, work: Callable[[], Coroutine[Any, None, None]]) -> asyncio.Task[None]:
        return self._loop.create_task(work())

    def _run(self, job: Callable[[], bool]) -> None:
        if job():
            self.soon(job)

    def send(self, message: bytes) -> bool:
        self._unsent = message
        return False

    async def ready(self) -> None:
        message, self._unsent = self._unsent, None
        if message is not None:
            await self.write(message)

    async def write(self, message: bytes) -> None:
        # grpc loses the status of a call whose write is cancelled, so only the wait for the write
        # is cancelled: see quiet().
        self._writing = asyncio.ensure_future(self._context.write(message))
        await asyncio.shield(self._writing)

    async def quiet(self) -> None:
        writing = self._writing
        if writing is not None and not writing.done():
            await asyncio.wait([writing], timeout=QUIET_SECONDS)


def call_output_of(context: Any) -> CallOutput:
    """Return the output side of the call with this context."""
    return context if isinstance(context, Call) else GrpcCallOutput(context)
