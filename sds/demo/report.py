"""Shows the demo: JSON lines for tools, plain lines for pipes.

:mod:`sds.demo.live` shows it on terminals.

Invariant: the JSON reporter writes nothing but one object a line to stdout, ``ready`` first and
``summary`` last; texts for people go to stderr.
"""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Protocol, Self, TextIO

from sds.demo.events import (
    Event,
    Exited,
    Failed,
    Ready,
    RightChanged,
    Rotated,
    Started,
    Summary,
)

if TYPE_CHECKING:
    from sds.clock import Instant
    from sds.demo.ledger import RotationLedger


class Reporter(Protocol):
    """Shows events; it is entered before the first event and left after the last."""

    def __enter__(self) -> Self:
        """Begin to show."""
        ...

    def __exit__(self, *_: object) -> None:
        """Leave the terminal as it was."""
        ...

    def tell(self, event: Event) -> None:
        """Show one event."""
        ...

    def refresh(self, ledger: RotationLedger, now: Instant) -> None:
        """Show the present state; called a few times a second."""
        ...


class _Lines:
    """The base of reporters that write lines and use no screen."""

    def __init__(self, out: TextIO | None = None, err: TextIO | None = None) -> None:
        self._out = out if out is not None else sys.stdout
        self._err = err if err is not None else sys.stderr

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def refresh(self, ledger: RotationLedger, now: Instant) -> None:
        """Do nothing, because lines need no refresh."""

    def _write(self, stream: TextIO, text: str) -> None:
        stream.write(text + "\n")
        stream.flush()


class JsonReporter(_Lines):
    """Writes one JSON object a line to stdout, and failures in words to stderr."""

    _ready = False

    def tell(self, event: Event) -> None:
        self._ready = self._ready or isinstance(event, Ready)
        if isinstance(event, Failed):
            self._write(self._err, in_words(event))
        elif self._ready:
            self._write(self._out, event.as_json())


class PlainReporter(_Lines):
    """Writes lines for people."""

    def tell(self, event: Event) -> None:
        self._write(self._out, in_words(event))


def in_words(event: Event) -> str:
    """Return an event as a line (``ready`` as several) for people."""
    match event:
        case Ready():
            processes = ", ".join(f"{name} ({pid})" for name, pid in event.pids.items())
            lines = [
                "Two Envoys talk mTLS; their keys were minted in memory, their CSRs attested.",
                f"  processes   {processes}",
                *(f"  {name:<6} SDS  {path}" for name, path in event.sockets.items()),
                *(f"  {name:<6} admin http://{at}/" for name, at in event.admin.items()),
                f"  try         curl {event.entry}",
                f"              {grpcurl_line(event.admin_socket)}",
            ]
            return "\n".join(lines)
        case Rotated():
            after = (
                ""
                if event.seen_after_ms is None
                else f", {event.seen_after_ms:.0f} ms after it came"
            )
            return (
                f"{event.workload}: peer saw new serial {event.serial[:8]}, "
                f"until {event.not_after:%H:%M:%S}{after}"
            )
        case RightChanged():
            return _right(event)
        case Exited() | Started():
            return _process(event)
        case Failed():
            return f"a request failed: {event.why}"
        case Summary():
            rotations = ", ".join(f"{name} {count}" for name, count in event.rotations.items())
            return (
                f"{event.requests} requests, {event.failed} failed; rotations: {rotations}; "
                f"{event.handshakes} full TLS handshakes"
            )


def _right(event: RightChanged) -> str:
    return (
        f"epoch {event.epoch} of the policy: the server answers {200 if event.allowed else 403}, "
        f"{event.seen_after_ms:.0f} ms after it was written"
    )


def _process(event: Exited | Started) -> str:
    if isinstance(event, Started):
        return f"{event.process} was started again (pid {event.pid})"
    return f"{event.process} (pid {event.pid}) ended with status {event.status}"


def grpcurl_line(admin_socket: str) -> str:
    """Return a command that shows all subscriptions; it works as printed."""
    method = "envoy.service.status.v3.ClientStatusDiscoveryService/FetchClientStatus"
    return f"grpcurl -plaintext -unix -d '{{}}' {shlex.quote(admin_socket)} {method}"
