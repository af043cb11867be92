"""Runs a handler for one call, as grpc does.

Owns how the four kinds of methods (``grpc.RpcMethodHandler``) are called, with messages or bytes.
Invariants: when :func:`serve_call` returns, the call has a status; a handler that fails ends only
its own call; its error goes to the log, not to the client.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

import grpc
from google.protobuf.message import DecodeError

from sds.errors import CallEndedError, LimitError, MalformedRequestError, ProtocolError
from sds.faults import report
from sds.transport.call import AbortedError
from sds.transport.owner_lines import RUNS_FOR
from sds.transport.steps import Steps

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from sds.transport.call import Call
    from sds.transport.turns import Turns

_LOG: Final = logging.getLogger("sds.transport")
REFUSALS: Final = frozenset(
    code.value[0]
    for code in grpc.StatusCode
    if code
    not in (
        grpc.StatusCode.OK,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    )
)
"""The statuses that count as a refused call."""


class Admission(Protocol):
    """Decides whether a call reaches its handler."""

    async def __call__(self, call: Call, /) -> None:
        """Return, or abort the call."""
        ...


async def serve_in_turns(
    call: Call,
    handler: grpc.RpcMethodHandler[Any, Any] | None,
    gate: Admission | None,
    turns: Turns,
    *,
    pays_for_lines: bool = True,
) -> None:
    """Do what :func:`serve_call` does, and let the owner of the call pay for each step.

    Args:
        call: as there.
        handler: as there.
        gate: as there.
        turns: the turns of the event loop.
        pays_for_lines: whether the owner's allowance bounds what the handler logs.
    """
    if pays_for_lines:
        RUNS_FOR.set(call.owner)  # for this task and those that it starts
    await Steps(serve_call(call, handler, gate), call, turns)


async def serve_call(
    call: Call, handler: grpc.RpcMethodHandler[Any, Any] | None, gate: Admission | None = None
) -> None:
    """Run a handler to its end, so that the call has a status afterwards.

    Args:
        call: the call.
        handler: the method's handler; None if there is none.
        gate: is asked first; it may wait, and may abort the call. No message is read before that.
    """
    try:
        if gate is not None:
            await gate(call)
        if handler is None:
            await call.abort(grpc.StatusCode.UNIMPLEMENTED, f"there is no method {call.path[:200]}")
        await _handle(call, handler)
        call.finish(grpc.StatusCode.OK)
    except AbortedError:
        pass  # the call has its status
    except CallEndedError:
        _LOG.debug("a client went during a write", extra={"peer": call.peer()})
        call.finish(grpc.StatusCode.CANCELLED)
    except LimitError as error:
        call.finish(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
    except ProtocolError as error:
        call.finish(grpc.StatusCode.INVALID_ARGUMENT, str(error))
    except asyncio.CancelledError:
        call.finish(grpc.StatusCode.UNAVAILABLE, "this server is stopping: connect again")
        raise
    except Exception as error:  # noqa: BLE001  the boundary between one call and the whole agent
        report("call", error, peer=call.peer())
        call.finish(grpc.StatusCode.INTERNAL, "the handler failed; the server's log says why")


async def _handle(call: Call, handler: grpc.RpcMethodHandler[Any, Any]) -> None:
    parse = handler.request_deserializer
    given: Any
    if not handler.request_streaming:
        given = await _one_request(call, parse)
    else:
        given = call if parse is None else _deserialized(call, parse)
    serialize: Callable[[Any], bytes] = handler.response_serializer or _as_it_is
    context: Any = call if handler.response_serializer is None else _Serializing(call, serialize)
    answering: Any = _behaviour(handler)(given, context)
    del given  # a handler that waits keeps only what it needs of the request
    if inspect.isasyncgen(answering):
        async with contextlib.aclosing(answering) as responses:
            async for response in responses:
                written = [serialize(response)]
                del response  # only what is left of its bytes waits, because only that is counted
                await call.write(written.pop())
    else:
        response = await answering
        if not handler.response_streaming:
            written = [serialize(response)]
            del response
            await call.write(written.pop())


def _behaviour(handler: grpc.RpcMethodHandler[Any, Any]) -> Callable[[Any, Any], Any]:
    if handler.request_streaming:
        chosen = handler.stream_stream if handler.response_streaming else handler.stream_unary
    else:
        chosen = handler.unary_stream if handler.response_streaming else handler.unary_unary
    return cast("Callable[[Any, Any], Any]", chosen)


class _Serializing:
    """A call to which a handler writes messages instead of bytes."""

    __slots__ = (
        "_call",
        "_serialize",
        "abort",
        "caller",
        "connection",
        "cut",
        "invocation_metadata",
        "owner",
        "peer",
    )

    def __init__(self, call: Call, serialize: Callable[[Any], bytes]) -> None:
        self._call = call
        self._serialize = serialize
        self.abort = call.abort
        self.caller = call.caller
        self.connection = call.connection
        self.cut = call.cut
        self.owner = call.owner
        self.invocation_metadata = call.invocation_metadata
        self.peer = call.peer

    def write(self, message: Any) -> Awaitable[None]:
        # No coroutine, whose frame would keep the message: only its bytes are counted.
        return self._call.write(self._serialize(message))


async def _deserialized(call: Call, parse: Callable[[bytes], Any]) -> AsyncIterator[Any]:
    async for data in call:
        parsed = [_parsed(data, parse)]
        del data
        yield parsed.pop()  # nothing of the message stays here while this waits


async def _one_request(call: Call, parse: Callable[[bytes], Any] | None) -> Any:
    """Return the request of a method that takes one."""
    async for data in call:
        call.read_no_more()
        return data if parse is None else _parsed(data, parse)
    return await call.abort(grpc.StatusCode.UNIMPLEMENTED, "the method takes one request")


def _parsed(data: bytes, parse: Callable[[bytes], Any]) -> Any:
    try:
        return parse(data)
    except DecodeError:
        raise MalformedRequestError(
            "the request cannot be parsed as the message of this method"
        ) from None


def _as_it_is(message: Any) -> Any:
    return message
