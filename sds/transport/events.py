"""The events by which a connection tells the server what its client did.

Owns the events and the limits of one connection. Invariant: an event speaks of one stream, and the
payloads in it are views of what was received, which do not change until more is received.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from sds.transport.flow_control import STREAM_WINDOW

if TYPE_CHECKING:
    from sds.transport.headers import RequestHead


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """The limits of one connection.

    Attributes:
        concurrent_streams: the most streams that are open at the same time; one more is refused.
        frames_per_second: the most frames other than DATA each second, on average.
        frame_burst: the most such frames at once.
        stream_window: how many bytes a client may send on a stream that no handler reads; at least
            65,535, because a client may send that many before it knows better.
    """

    concurrent_streams: int = 2_100
    frames_per_second: float = 1_000.0
    frame_burst: int = 20_000
    stream_window: int = STREAM_WINDOW


class Opened(NamedTuple):
    """A request began; with ``ended`` it has no body."""

    stream: int
    head: RequestHead
    ended: bool


class Received(NamedTuple):
    """Bytes of a request's body, from one or more frames that came one after another."""

    stream: int
    payloads: list[memoryview]
    ended: bool


class Reset(NamedTuple):
    """The stream is over: the client cancelled it, or broke a rule."""

    stream: int
    why: str


class Drained(NamedTuple):
    """Nothing waits on a stream any more."""

    stream: int


Event = Opened | Received | Reset | Drained


def add_received(events: list[Event], number: int, payload: memoryview, *, ended: bool) -> None:
    """Add bytes to the events; frames of one message become one event, handled once."""
    last = events[-1] if events else None
    if type(last) is Received and last.stream == number:
        last.payloads.append(payload)
        if ended:
            events[-1] = Received(number, last.payloads, ended=True)
    else:
        events.append(Received(number, [payload], ended))
