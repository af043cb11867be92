"""Opens, feeds and ends the calls of one connection, as its client asks.

Owns the map from streams to calls, and the task of each call. Invariants: a call that its client or
we ended gets no more input from that moment; it is closed, and its handler is told, in its owner's
turn, a few in each turn, however many calls end together.
"""

from __future__ import annotations

import weakref
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Final

import grpc

from sds.errors import LimitError, MalformedRequestError
from sds.shrinking_dict import ShrinkingDict
from sds.transport.call import Call
from sds.transport.events import Drained, Opened, Received, Reset
from sds.transport.handling import serve_in_turns
from sds.transport.headers import plain_response
from sds.transport.messages import timeout_seconds

if TYPE_CHECKING:
    import asyncio

    from sds.transport.connection import Connection
    from sds.transport.events import Event
    from sds.transport.served_connection import ServedConnection
    from sds.transport.server import Server
    from sds.transport.turns import Turns

_ENDED_AT_ONCE: Final = 8
"""How many handlers are told in one job that their calls are over."""
_NOT_POST: Final = plain_response(405, [(b"allow", b"POST")])
_NOT_GRPC: Final = plain_response(415, [(b"accept", b"application/grpc")])


class Calls:
    """The calls of one connection."""

    __slots__ = ("_ending", "_http2", "_link_reference", "_loop", "_open", "_server", "_turns")

    def __init__(
        self,
        link: ServedConnection,
        http2: Connection,
        server: Server,
        turns: Turns,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._link_reference = weakref.ref(link)  # weak, because the link owns this object
        self._http2 = http2
        self._server = server
        self._turns = turns
        self._loop = loop
        self._open: ShrinkingDict[int, Call] = ShrinkingDict()
        self._ending: list[Call] = []
        """Calls that are over, whose handlers were not told yet."""

    def _link(self) -> ServedConnection:
        link = self._link_reference()
        assert link is not None, "who asks is the connection, or a job in its name"
        return link

    def ending(self) -> int:
        """Return how many calls are over while their handlers still run."""
        return len(self._ending)

    def on_event(self, event: Event) -> None:
        """Act on what the client did."""
        match event:
            case Received():
                call = self._open.get(event.stream)
                if call is not None:
                    self._feed(call, event.payloads, ended=event.ended)
                else:  # of a call that is over: room for others nevertheless
                    self._http2.take(event.stream, sum(map(len, event.payloads)))
            case Opened():
                self._on_opened(event)
            case Drained():
                self.wake_writer(event.stream)
            case Reset():
                call = self._open.take(event.stream)
                if call is not None:
                    call.close()
                    self._cancel(call)

    def wake_writer(self, stream: int) -> None:
        """Wake the handler of a stream on which nothing waits any more."""
        call = self._open.get(stream)
        if call is not None:
            call.wake_writer()

    def finished(self, stream: int) -> None:
        """Forget a call that has its status."""
        self._open.take(stream)

    def end_all(self) -> None:
        """End all calls, and tell their handlers a few at a time."""
        if self._open:
            self._ending += self._open.values()
            self._open = ShrinkingDict()
            self._turns.run(self._link().owner, self._link(), self._end_some)

    def _end_some(self) -> bool:
        """Cancel some handlers whose calls are over, as a job; say whether there are more."""
        for call in self._ending[-_ENDED_AT_ONCE:]:
            call.close()
            self._cancel(call)
        del self._ending[-_ENDED_AT_ONCE:]
        self._link().settle()
        return bool(self._ending)

    def _cancel(self, call: Call) -> None:
        if call.task is not None:
            call.task.cancel()
            self._turns.promise(self._link().owner)

    def _feed(self, call: Call, payloads: list[memoryview], *, ended: bool) -> None:
        call.feed(payloads, ended=ended)
        if call.over:  # the client sent something that is not accepted
            self._cancel(call)

    # --- a new call -----------------------------------------------------------------------------

    def _on_opened(self, event: Opened) -> None:
        head = event.head
        if head.method != b"POST":
            self._refuse(event, _NOT_POST)
            return
        if not (head.get(b"content-type") or b"").startswith(b"application/grpc"):
            self._refuse(event, _NOT_GRPC)
            return
        handler = self._server.method(head.path)
        limits = self._server.limits
        one = handler is None or not handler.request_streaming
        most = limits.single_bytes if one else limits.message_bytes
        call = Call(self._link(), event.stream, head, most=most, loop=self._loop)
        try:
            self._link().settle()  # the stream counts already
            self._link().owner.check_stream(self._loop.time())
            call.begin()
            timeout = head.get(b"grpc-timeout")
            seconds = None if timeout is None else timeout_seconds(timeout)
        except LimitError as error:
            call.finish(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
            return
        except MalformedRequestError as error:
            call.finish(grpc.StatusCode.INTERNAL, str(error))
            return
        if self._server.stopping:
            call.finish(grpc.StatusCode.UNAVAILABLE, "this server is stopping: connect again")
            return
        self._open[event.stream] = call
        if event.ended:
            call.feed([], ended=True)
        self._start(call, handler)
        if seconds is not None:
            call.deadline = self._loop.call_later(seconds, call.expire)

    def _refuse(self, event: Opened, block: bytes) -> None:
        self._http2.refuse(event.stream, block)
        self._link().refused()

    def _start(self, call: Call, handler: grpc.RpcMethodHandler[Any, Any] | None) -> None:
        running = serve_in_turns(
            call,
            handler,
            self._server.admit if self._server.gate is not None else None,
            self._turns,
            pays_for_lines=self._server.limits.owners_pay_for_lines,
        )
        call.context = copy_context()
        task = self._loop.create_task(running, name=call.path, context=call.context)
        call.task = task
        self._turns.promise(self._link().owner)
        self._server.tasks.add(task)
        task.add_done_callback(self._server.tasks.discard)
        task.add_done_callback(call.forget_task)
