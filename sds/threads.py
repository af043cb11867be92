"""Threads for work that blocks: each kind of work has some of its own.

A thread that waits for a device, a file system or a long calculation is gone until that ends. Owns
which work shares threads with which. Invariants: no work uses the event loop's default executor,
which anything may fill; what a caller, a stranger or a peer can cause never runs on the threads of
rotation. What waits for somebody else's server has a thread of its own (:func:`alone`), and the
process does not wait for that one when it ends.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_P = ParamSpec("_P")
_R = TypeVar("_R")


class Threads:
    """Threads for one kind of work; they start when there is some.

    Args:
        name: of the work, as threads are called in dumps.
        most: threads at the same time; further work waits for one.
    """

    __slots__ = ("_pool",)

    def __init__(self, name: str, most: int) -> None:
        self._pool = ThreadPoolExecutor(most, thread_name_prefix=name)

    async def run(self, work: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Do the work in a thread; its result, or what it raises."""
        bound = functools.partial(contextvars.copy_context().run, work, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._pool, bound)


async def alone(name: str, work: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
    """Do the work in a thread of its own: however long it takes, nobody else waits for a thread.

    The caller bounds how many there are. Where it is cancelled, the thread ends by itself, or with
    the process.

    Args:
        name: of the thread, as dumps show it.
        work: blocks.
        args: its arguments.
        kwargs: its named arguments.
    """
    done: Future[_R] = Future()
    done.set_running_or_notify_cancel()  # from here on a cancellation does not reach it

    def run() -> None:
        try:
            result = work(*args, **kwargs)
        except BaseException as error:  # noqa: BLE001  handed to who waits
            done.set_exception(error)
        else:
            done.set_result(result)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await asyncio.wrap_future(done)


ROTATION: Final = Threads("rotation", 4)
"""Keys, CSRs and chains of certificates that are renewed, and the credentials to ask for them."""
SLOW_KEYS: Final = Threads("slow-keys", 1)
"""RSA keys of renewals: seconds each."""
SLOW_KEYS_OF_NEWCOMERS: Final = Threads("newcomers-keys", 1)
"""RSA keys of callers that have no certificate yet: as many as pods start."""
EVIDENCE: Final = Threads("evidence", 2)
"""Devices and file systems of the guest: what attests."""
SIGNERS: Final = Threads("signers", 1)
"""Keys of the authority's own certificates."""
COLLATERAL: Final = Threads("collateral", 2)
"""Files with revocation lists and collateral."""
ENDORSEMENTS: Final = Threads("endorsements", 2)
"""Directories of chips' certificates, read for what agents send."""
TOKEN_KEYS: Final = Threads("token-keys", 1)
"""Files with the keys that sign the tokens of service accounts."""
ADMISSION: Final = Threads("admission", 2)
"""Files of sandboxes that a runtime starts."""
