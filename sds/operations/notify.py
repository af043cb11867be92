"""Tells the service manager the state of the process: sd_notify(3), without libsystemd.

Invariants: without ``NOTIFY_SOCKET`` nothing happens; the program runs on if the service manager
does not listen; READY=1 is sent once: when the process is ready for the first time, or at the start
of a service that others wait for.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import threading
from typing import TYPE_CHECKING, Final

from sds import service_manager
from sds.faults import guarded
from sds.untrusted_input import words_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from sds.operations.readiness import Readiness

_LOG = logging.getLogger("sds.operations.notify")
READY: Final = "READY=1"
STOPPING: Final = "STOPPING=1"
_AGAIN_SECONDS: Final = 1.0
_LONGEST_SECONDS: Final = 60.0


def notify(state: str, *, again: float = _AGAIN_SECONDS) -> None:
    """Send one state, such as :data:`READY`; further lines may carry more assignments.

    If :data:`READY` cannot be sent (no descriptor is left, say), it is sent later, while an event
    loop runs.

    Source: sd_notify(3): one datagram to the Unix socket that the variable names; ``@`` stands for
    an abstract one.

    Args:
        state: the assignments.
        again: after how many seconds to try again; twice as many after each failure.
    """
    place = service_manager.address(os.environ)
    if place is None:
        return
    try:
        try:
            service_manager.send(place, state, waits=False)
        except BlockingIOError:  # it stands still, and may go on: we do not wait for it
            work = functools.partial(_send, place, state)
            threading.Thread(target=work, name="notify", daemon=True).start()
    except (OSError, RuntimeError) as error:
        _LOG.warning("the service manager cannot be notified", extra={"why": words_of(error)})
        if state.startswith(READY):
            _later(again)


def _later(seconds: float) -> None:
    """Send READY=1 alone: what else went with it may be another by then."""
    with contextlib.suppress(RuntimeError):  # no event loop runs
        send = functools.partial(notify, READY, again=min(2 * seconds, _LONGEST_SECONDS))
        asyncio.get_running_loop().call_later(seconds, guarded("task", send))


def _send(place: str, state: str) -> None:
    with contextlib.suppress(OSError):  # it ended meanwhile
        service_manager.send(place, state)


def readiness_notifier(*, at_once: bool = False) -> Callable[[Readiness], None]:
    """Make a function that reports readiness: READY=1 once ready for the first time, STATUS always.

    ``systemctl status`` shows the status; a start (``Type=notify``) waits for READY=1.

    Args:
        at_once: whether to send READY=1 at the first call, whatever the readiness is: for services
            that others wait for.
    """
    told_ready = False

    def told(readiness: Readiness) -> None:
        nonlocal told_ready
        words = "; ".join(readiness.lacking).replace("\n", " ")
        lines = ["STATUS=ready" if readiness.ready else f"STATUS=not ready: {words}"]
        if (readiness.ready or at_once) and not told_ready:
            told_ready = True
            lines.insert(0, READY)
        notify("\n".join(lines))

    return told
