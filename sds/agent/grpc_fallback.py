"""Serves workloads' sockets by ``grpc.aio``: the fallback for our own transport.

Owns what grpc's own server needs in place of :class:`sds.transport.server.Server`. Invariants: a
handler cannot tell the two apart; each call has the caller of its socket, because grpc does not
tell connections apart. So this transport has no budgets of owners and no node-wide socket.

grpc's core differs in three further points: a stream beyond ``streams_per_connection`` waits until
another one ends, while our own transport refuses it with a text; a request that is too large is
refused with grpc's text; and a stream that we end gets its status only if its client reads the
pending output within :data:`sds.serving.call_output.QUIET_SECONDS`.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Final

import grpc

from sds.errors import SocketError
from sds.files import socket_target
from sds.unix_sockets import clear_socket, open_to

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable
    from pathlib import Path

    from sds.serving.limits import ServingLimits

PING_SECONDS: Final = 0.1
"""How often a client may ask whether we still answer; grpc ends a connection that asks more."""


class CalledBy(grpc.GenericRpcHandler):
    """Handlers whose calls all have the same caller.

    Args:
        handlers: the methods.
        caller: what ``context.caller()`` gives them.
    """

    def __init__(self, handlers: Iterable[grpc.GenericRpcHandler], caller: object) -> None:
        self._handlers = tuple(handlers)
        self._caller = caller

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Return the handler of a method, None if there is none."""
        for handler in self._handlers:
            found = handler.service(handler_call_details)
            if found is not None:
                return _with_caller(found, self._caller)
        return None


class _ContextOf:
    """A context of grpc with a caller."""

    __slots__ = ("_caller", "_context")

    def __init__(self, context: Any, caller: object) -> None:
        self._context = context
        self._caller = caller

    def caller(self) -> object:
        return self._caller

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


def _with_caller(
    handler: grpc.RpcMethodHandler[Any, Any], caller: object
) -> grpc.RpcMethodHandler[Any, Any]:
    makers = {
        (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
        (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
        (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
        (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
    }
    name, make = makers[handler.request_streaming, handler.response_streaming]
    behaviour: Callable[[Any, Any], Any] = getattr(handler, name)

    async def called(request: Any, context: Any) -> Any:
        return await behaviour(request, _ContextOf(context, caller))

    async def streamed(request: Any, context: Any) -> AsyncIterator[Any]:
        async for response in behaviour(request, _ContextOf(context, caller)):
            yield response

    maker: Any = make
    made: grpc.RpcMethodHandler[Any, Any] = maker(
        streamed if inspect.isasyncgenfunction(behaviour) else called,
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )
    return made


def make_grpc_server(limits: ServingLimits) -> grpc.aio.Server:
    """Make a server of grpc itself; :func:`listen_by_grpc` binds it."""
    return grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", limits.message_bytes),
            ("grpc.max_concurrent_streams", limits.streams_per_connection),
            # One process owns a socket; if two shared it, each would see half of the clients.
            ("grpc.so_reuseport", 0),
            # By default, grpc ends the connection of a client that asks more than once in five
            # minutes whether we still answer. An Envoy of `sds bootstrap` asks every 30 s.
            ("grpc.http2.min_ping_interval_without_data_ms", int(1000 * PING_SECONDS)),
            ("grpc.keepalive_permit_without_calls", 1),
        ]
    )


async def listen_by_grpc(
    server: grpc.aio.Server, path: Path, mode: int, *, group: str | None = None
) -> None:
    """Serve at ``path``, in place of a dead agent's socket.

    Raises:
        SocketError: it cannot be opened, or somebody listens there.
    """
    clear_socket(path)
    try:
        server.add_insecure_port(socket_target(path))
    except RuntimeError as error:
        raise SocketError(
            f"the socket {path} cannot be opened",
            advice="check that the directory is writable, and raise the limit of open files",
        ) from error
    # The agent's umask kept it to ourselves since it was bound.
    open_to(path, mode, group=group)
    await server.start()
