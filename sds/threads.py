"""Runs work that blocks in threads; each kind of work has its own threads.

A thread that waits for a device, a file system or a long calculation is occupied until that ends.
Owns which kinds of work share threads. Invariants: no work uses the event loop's default executor,
which anything may fill; work that a caller, a stranger or a peer can cause never runs on the
threads of rotation; work that never ends does not keep the process from ending: at its end the
process waits at most :data:`END_SECONDS` for calculations. Work that waits for a foreign server has
its own thread (:func:`alone`), and the end of the process does not wait for that thread.

Not :class:`concurrent.futures.ThreadPoolExecutor`: the interpreter joins its threads before it
ends, so that a file system that hangs would hold up SIGTERM for as long as it hangs.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import contextvars
import functools
import threading
from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Final, Generic, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_P = ParamSpec("_P")
_R = TypeVar("_R")

END_SECONDS: Final = 2.0
"""How many seconds the end of the process waits for running work."""
_under_way: Final[set[Future[Any]]] = set()


class Threads:
    """The threads of one kind of work; they start when work comes.

    Args:
        name: the name of the work, which the threads have in dumps.
        most: the most threads at the same time; further work waits for one.
    """

    __slots__ = ("_idle", "_most", "_name", "_started", "_there", "_waiting")

    def __init__(self, name: str, most: int) -> None:
        self._name = name
        self._most = most
        self._started = self._idle = 0
        self._waiting: deque[Callable[[], None]] = deque()
        self._there = threading.Condition()
        """Signals that there is work; also guards the attributes above."""

    async def run(self, work: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Do the work in a thread; return its result, or raise what it raises.

        If the call is cancelled before a thread has begun, the work is not done.
        """
        bound = functools.partial(contextvars.copy_context().run, work, *args, **kwargs)
        done: Future[_R] = Future()
        with self._there:
            if self._idle <= len(self._waiting) and self._started < self._most:
                self._start_another()
            one = functools.partial(_do, done, bound, _under_way)
            self._waiting.append(one)
            self._there.notify()
        try:
            return await asyncio.wrap_future(done)
        except asyncio.CancelledError:
            self._give_up(one)
            raise
        finally:
            del done, bound, one  # see _do

    def _give_up(self, one: Callable[[], None]) -> None:
        """Forget work that nobody waits for, which may wait behind work that hangs for good."""
        with self._there, contextlib.suppress(ValueError):  # a thread has begun it
            self._waiting.remove(one)

    def _start_another(self) -> None:
        """Start a thread; where the system gives none now, those that are there do the work."""
        name = f"{self._name}_{self._started + 1}"
        try:
            threading.Thread(target=self._serve, name=name, daemon=True).start()
        except RuntimeError:
            if not self._started:
                raise
        else:
            self._started += 1

    def _serve(self) -> None:
        while True:
            with self._there:
                while not self._waiting:
                    self._idle += 1
                    self._there.wait()
                    self._idle -= 1
                one = self._waiting.popleft()
            one()
            del one  # its objects must not stay alive until other work comes


def _do(done: Future[_R], bound: Callable[[], _R], under_way: set[Future[Any]]) -> None:
    """Do one piece of work and pass its result on, unless the call was cancelled.

    An error's traceback has this frame. If the frame still had the future, which has the error,
    only the garbage collector could end them, and the arguments of the work: some are keys.
    """
    if not done.running() and not done.set_running_or_notify_cancel():
        return
    try:
        under_way.add(done)  # this may lack memory too: who waits must hear of it
        result = bound()
    except BaseException as error:  # noqa: BLE001  handed to who waits
        done.set_exception(error)
    else:
        done.set_result(result)
    finally:
        under_way.discard(done)
        del done, bound


@atexit.register
def _wait_for_calculations() -> None:
    """Wait at the end: a thread that returns from a library to a dying interpreter can abort it."""
    concurrent.futures.wait(tuple(_under_way), timeout=END_SECONDS)


async def alone(name: str, work: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
    """Do the work in its own thread: however long it takes, no other work waits for a thread.

    The caller bounds the number of such threads. If the call is cancelled, the thread ends by
    itself or with the process.

    Args:
        name: the name of the thread in dumps.
        work: the function that blocks.
        args: its arguments.
        kwargs: its named arguments.
    """
    done: Future[_R] = Future()
    done.set_running_or_notify_cancel()  # from here on a cancellation does not reach it

    bound = functools.partial(work, *args, **kwargs)
    threading.Thread(target=_do, args=(done, bound, set()), name=name, daemon=True).start()
    try:
        return await asyncio.wrap_future(done)
    finally:
        del done, bound  # see _do


class Lone(Generic[_R]):
    """Work on one thing that may hang, such as one file: at most one thread is occupied by it.

    Args:
        name: the name of the thread in dumps.
        work: the function that blocks.
    """

    __slots__ = ("_name", "_running", "_work")

    def __init__(self, name: str, work: Callable[[], _R]) -> None:
        self._name = name
        self._work = work
        self._running: asyncio.Future[_R] | None = None

    async def run(self, *, seconds: float) -> _R:
        """Do the work, or wait with others for that which is under way.

        Raises:
            TimeoutError: it takes longer than this; its thread goes on.
            RuntimeError: the system gives no thread now.
        """
        running = self._running
        if running is None or _is_left(running):
            running = self._running = asyncio.ensure_future(alone(self._name, self._work))
        done, _ = await asyncio.wait((running,), timeout=seconds)
        if not done:
            raise TimeoutError
        if self._running is running:  # others may wait for the same work
            self._running = None
        return running.result()


def _is_left(running: asyncio.Future[Any]) -> bool:
    """Say whether work is over and nobody waited for it: it may have been long ago."""
    if not running.done():
        return False
    if not running.cancelled():
        running.exception()  # else it counts as an error that nobody looked at
    return True


ROTATION: Final = Threads("rotation", 4)
"""Keys, CSRs and chains of renewed certificates, and the credentials of their requests."""
SLOW_KEYS: Final = Threads("slow-keys", 1)
"""RSA keys of renewals: seconds each."""
SLOW_KEYS_OF_NEWCOMERS: Final = Threads("newcomers-keys", 1)
"""RSA keys of callers that have no certificate yet: as many as pods start."""
EVIDENCE: Final = Threads("evidence", 2)
"""Devices and file systems of the guest, which give evidence."""
SIGNERS: Final = Threads("signers", 1)
"""Keys of the authority's own certificates."""
COLLATERAL: Final = Threads("collateral", 2)
"""Files with revocation lists and collateral."""
ENDORSEMENTS: Final = Threads("endorsements", 2)
"""Directories with certificates of chips, which evidence of agents may need."""
KEPT_ENDORSEMENTS: Final = Threads("kept-endorsements", 1)
"""Directories in which such certificates are stored."""
TOKEN_KEYS: Final = Threads("token-keys", 1)
"""Files with the keys that sign the tokens of service accounts."""
CONTAINERS: Final = Threads("containers", 1)
"""Descriptions of containers, which the authors of pods make as long as they like."""
SEEN_PODS: Final = Threads("seen-pods", 1)
"""The file with what was seen in pods."""
ADMISSION: Final = Threads("admission", 2)
"""Files of sandboxes that a runtime starts."""
AUTHORITY_FILES: Final = Threads("authority-files", 1)
"""Token and roots for another authority than our own."""
KUBERNETES_FILES: Final = Threads("kubernetes-files", 1)
"""Tokens and roots for kubelets and API servers."""
NAMES: Final = Threads("names", 4)
"""The lookup of authorities' names."""
LOOKUPS: Final = Threads("lookups", 4)
"""The lookup of the names of HTTP servers."""
CONFIGURATION: Final = Threads("configuration", 1)
"""Compares the configuration file with the one of the start."""
POLICY: Final = Threads("policy", 1)
"""Files of the signed policy."""
POLICY_COPY: Final = Threads("policy-copy", 1)
"""The copy of the policy for another process, which may be on another disk."""
TLS_FILES: Final = Threads("tls-files", 1)
"""Certificate and key of the authority's TLS, if an operator gives them."""
VOLUMES: Final = Threads("csi", 1)
"""Directories of CSI volumes."""
KUBERNETES: Final = Threads("kubernetes-json", 1)
"""Long answers of kubelets and API servers: callers cause requests."""
