"""Reports unexpected errors: each ends one thing, is logged with its reason, and is counted.

An unforeseen exception in the work for one connection, request, file, peer or timer must end that
one thing and nothing else. The boundary around that work reports the exception here. Invariants: a
place that fails again and again writes one line in an interval, and every error is counted;
reporting never raises; places are fixed words, so the table of them is bounded.

:func:`guarded` is the boundary for callbacks of the event loop, :func:`sds.supervision.supervised`
is the boundary for long-lived tasks, and :func:`watch_loop` is the last resort for both.
"""

from __future__ import annotations

import functools
import logging
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, ParamSpec

from sds.clock import SystemClock

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping

_LOGGER = logging.getLogger(__name__)
_INTERVAL_SECONDS: Final = 10.0
_LOOP: Final = "event loop"
_IN_TLS: Final = "Fatal error on SSL protocol"
_CLOSED: Final = "the handler is closed"
"""What uvloop says (``sslproto.pyx``, ``handle.pyx``)."""
_CANNOT_ACCEPT: Final = "socket.accept() out of system resource"
"""What asyncio says (``selector_events.py``); it tries again after a second."""
_ATTEMPT_SECONDS: Final = 0.5
_P = ParamSpec("_P")

_clock: Final = SystemClock()
PLACES: Final = (
    "accept",
    "admission",
    "authority stream",
    "call",
    "certificate file",
    "connection",
    "event loop",
    "federation source",
    "issuance",
    "key",
    "listener",
    "policy listener",
    "policy offer",
    "recognition",
    "release of an identity",
    "request",
    "store listener",
    "stream",
    "task",
)
"""Every place that reports, so that each is counted from 0."""
_counts: Counter[str] = Counter(dict.fromkeys(PLACES, 0))
_said: dict[tuple[str, type[BaseException]], tuple[float, int]] = {}
"""When a line told of each kind, and how often it occurred since then."""


def report(where: str, error: BaseException, **about: object) -> None:
    """Count an unexpected error, and log it with its traceback, once in an interval.

    Args:
        where: the place that failed: a fixed word, without identities.
        error: what was raised.
        about: further fields of the line of log.
    """
    _counts[where] += 1
    times = _due((where, type(error)), _INTERVAL_SECONDS)
    if not times:
        return
    extra = {**about, "where": where, "reason": "unexpected", "times": times}
    _LOGGER.error("an unexpected error ended one %s", where, exc_info=error, extra=extra)


def _due(key: tuple[str, type[BaseException]], seconds: float) -> int:
    """Return how often this occurred since it was due last; 0 if that is less than ``seconds`` ago.

    It is due now if the result is not 0.
    """
    now = _clock.now().monotonic
    last, since = _said.get(key, (-seconds, 0))
    if now - last < seconds:
        _said[key] = (last, since + 1)
        return 0
    _said[key] = (now, 0)
    return since + 1


def count(where: str) -> None:
    """Count what is logged elsewhere."""
    _counts[where] += 1


def counts() -> Mapping[str, int]:
    """Return how often each place failed since the start."""
    return dict(_counts)


def guarded(where: str, callback: Callable[_P, object]) -> Callable[_P, None]:
    """Wrap ``callback`` for the event loop: its errors are reported, and end this call only.

    Args:
        where: as for :func:`report`.
        callback: of ``add_reader``, ``call_later``, ``add_done_callback``, a listener, ….
    """
    # A partial object, not a wrapping function: every connection makes some.
    return functools.partial(_call, where, callback)


def _call(where: str, callback: Callable[_P, object], *args: _P.args, **kwargs: _P.kwargs) -> None:
    try:
        callback(*args, **kwargs)
    except Exception as error:  # noqa: BLE001  the boundary between one callback and the loop
        report(where, error)


def watch_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Report what reaches the loop itself: callbacks without a guard, tasks that nobody awaited."""
    loop.set_exception_handler(_from_loop)


def _from_loop(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    del loop
    error = context.get("exception") or RuntimeError(context.get("message", "unknown"))
    if context.get("message") == _IN_TLS and _CLOSED in str(error):
        # uvloop answers in a handshake although we closed the connection meanwhile.
        _LOGGER.debug("a closed connection was written to: %s", error)
        return
    if context.get("message") == _CANNOT_ACCEPT:
        _cannot_accept(error)
        return
    report(_LOOP, error, why=context.get("message", ""))


def _cannot_accept(error: BaseException) -> None:
    """Count an attempt once, for which asyncio calls up to a hundred times, and log it in words."""
    if not _due(("attempt", type(error)), _ATTEMPT_SECONDS):
        return
    count("accept")
    times = _due(("accept", type(error)), _INTERVAL_SECONDS)
    if not times:
        return
    _LOGGER.error(
        "cannot accept connections: they wait; raise the limit of open files if this goes on",
        extra={"why": getattr(error, "strerror", None) or str(error), "times": times},
    )
