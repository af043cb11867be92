"""Asks the runtime, over its CRI socket, what runs.

Owns :class:`Runtime`. Invariants: every question has a deadline, and every answer a bounded size
and number of parts; answers are read outside the event loop; only this module decodes the runtime's
JSON; only our errors leave it.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

import grpc

from sds import threads
from sds._proto.cri.v1 import runtime_pb2
from sds.errors import WorkloadError
from sds.files import socket_target
from sds.supervision import is_cancelled
from sds.untrusted_input import reading
from sds.varint import read_varint

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from google.protobuf.message import Message

_Answer = TypeVar("_Answer")
_SERVICE: Final = "/runtime.v1.RuntimeService/"
_SECONDS: Final = 5.0
_ALIVE: Final = frozenset({0, 1})  # CONTAINER_CREATED, CONTAINER_RUNNING
_MOST_BYTES: Final = 16 << 20
_MOST_LISTED: Final = 20_000
"""The most containers or sandboxes in one list; a node has a few hundred. An empty one has two
bytes on the wire, and 16 MiB of them would become 1.5 GiB."""
_LENGTH: Final = 2
_OUTAGES: Final = frozenset(
    {
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)
"""The runtime answers nothing now; any other status is about the one question."""
_FOR_GOOD: Final = frozenset(
    {
        grpc.StatusCode.DATA_LOSS,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)
"""The answer is too long or cannot be encoded, and asking again changes nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A container that the runtime lists, in any state."""

    id: str
    sandbox_id: str
    name: str
    attempt: int
    image: str
    alive: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DescribedContainer:
    """The runtime's verbose description of a container or a sandbox.

    Attributes:
        pid: its first process; 0 if it does not run.
        spec: its OCI runtime specification, decoded.
        image: the image as the answer names it.
        pod_uid: the pod's UID for a sandbox; the empty string for a container.
        created_at: its creation in nanoseconds since 1970.
    """

    pid: int
    spec: Any
    image: str
    pod_uid: str
    created_at: int


class Runtime:
    """The runtime of this node; an asynchronous context manager."""

    def __init__(self, socket: str) -> None:
        """Use the runtime's Unix socket at this path."""
        self._socket = socket
        self._channel: grpc.aio.Channel | None = None
        self._retired: dict[grpc.aio.Channel, asyncio.Task[None]] = {}

    async def __aenter__(self) -> Self:
        """Connect nothing before the first question."""
        self._channel = _channel(self._socket)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connection, and those that did not answer."""
        for closing in self._retired.values():
            closing.cancel()
        for channel in (self._channel, *self._retired):
            if channel is not None:
                await channel.close()

    def _retire(self, channel: grpc.aio.Channel) -> None:
        """It did not answer: perhaps another runtime listens at the path by now."""
        if channel is self._channel:
            self._channel = _channel(self._socket)
            # Other questions under way have their own time.
            closing = asyncio.ensure_future(channel.close(_SECONDS))
            self._retired[channel] = closing
            closing.add_done_callback(lambda _: self._retired.pop(channel, None))

    async def containers(self, identifier: str = "", *, sandbox: str = "") -> tuple[Listed, ...]:
        """List every container that the runtime has, of every sandbox and in every state.

        Args:
            identifier: the ID of the only container to list; empty for all.
            sandbox: the ID of the only sandbox whose containers to list; empty for all.

        Raises:
            WorkloadError: ``cri_unavailable``, ``cri_not_described``, ``cri_unknown_shape``.
        """
        wanted = runtime_pb2.ContainerFilter(id=identifier, pod_sandbox_id=sandbox)
        request = runtime_pb2.ListContainersRequest(filter=wanted)
        return await self._ask("ListContainers", request, _containers)

    async def sandboxes(self) -> frozenset[str]:
        """List the IDs of all sandboxes that the runtime has, in every state.

        Raises:
            WorkloadError: ``cri_unavailable``, ``cri_not_described``, ``cri_unknown_shape``.
        """
        return await self._ask(
            "ListPodSandbox", runtime_pb2.ListPodSandboxRequest(), _sandbox_identifiers
        )

    async def container(self, identifier: str) -> DescribedContainer:
        """Describe one container.

        Raises:
            WorkloadError: ``cri_unavailable``, ``cri_late``, ``cri_not_described``,
                ``cri_unknown_shape``.
        """
        request = runtime_pb2.ContainerStatusRequest(container_id=identifier, verbose=True)
        return await self._ask("ContainerStatus", request, _container, of_one=True)

    async def sandbox(self, identifier: str) -> DescribedContainer:
        """Describe one sandbox.

        Raises:
            WorkloadError: ``cri_unavailable``, ``cri_late``, ``cri_not_described``,
                ``cri_unknown_shape``.
        """
        request = runtime_pb2.PodSandboxStatusRequest(pod_sandbox_id=identifier, verbose=True)
        return await self._ask("PodSandboxStatus", request, _sandbox, of_one=True)

    async def _ask(
        self,
        method: str,
        request: Message,
        read: Callable[[bytes], _Answer],
        *,
        of_one: bool = False,
    ) -> _Answer:
        channel = self._channel
        assert channel is not None
        call: Any = channel.unary_unary(
            _SERVICE + method,
            request_serializer=type(request).SerializeToString,
            response_deserializer=bytes,
        )
        try:
            answer = await call(request, timeout=_SECONDS)
        except grpc.aio.AioRpcError as error:
            status = error.code()
            said = f"{method}: {status.name}: {(error.details() or '')[:200]}"
            if status is grpc.StatusCode.DEADLINE_EXCEEDED:
                self._retire(channel)
                raise WorkloadError(
                    f"the runtime at {self._socket} gives no answer in time to {said}",
                    reason="cri_late" if of_one else "cri_unavailable",
                    advice="if it answers others, look for what keeps it from this one: its shim "
                    "may stand still",
                ) from None
            if status in _OUTAGES:
                raise WorkloadError(
                    f"the runtime at {self._socket} does not answer {said}",
                    reason="cri_unavailable",
                    advice="check that this is the runtime's socket (node.cri.socket, --socket) "
                    "and that this process may open it",
                ) from None
            raise WorkloadError(
                f"the runtime at {self._socket} cannot answer {said}",
                reason="cri_unknown_shape" if status in _FOR_GOOD else "cri_not_described",
            ) from None
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            # gRPC ends a call like this if its channel is closed, although nobody cancelled the
            # task.
            raise WorkloadError(
                f"the runtime at {self._socket} does not answer {method}: it was cut off",
                reason="cri_unavailable",
            ) from None
        what = f"the answer of the runtime at {self._socket} to {method}"
        with reading(what, WorkloadError, reason="cri_unknown_shape"):
            return await threads.CONTAINERS.run(read, answer)


def _channel(path: str) -> grpc.aio.Channel:
    options = [
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),
        ("grpc.max_receive_message_length", _MOST_BYTES),
        # A runtime that is back after a long outage is asked at once: it is on this machine.
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 1_000),
    ]
    return grpc.aio.insecure_channel(socket_target(path), options=options)


def _containers(data: bytes) -> tuple[Listed, ...]:
    _require_few(data)
    return tuple(
        Listed(
            id=each.id,
            sandbox_id=each.pod_sandbox_id,
            name=each.metadata.name,
            attempt=each.metadata.attempt,
            image=each.image_id or each.image_ref,
            alive=each.state in _ALIVE,
        )
        for each in runtime_pb2.ListContainersResponse.FromString(data).containers
    )


def _sandbox_identifiers(data: bytes) -> frozenset[str]:
    _require_few(data)
    return frozenset(each.id for each in runtime_pb2.ListPodSandboxResponse.FromString(data).items)


def _require_few(data: bytes) -> None:
    """Count the parts of a list before anything is made of them.

    Raises:
        ValueError: there are too many, or it is cut off.
    """
    position, found, end = 0, 0, len(data)
    while position < end:
        found += 1
        if found > _MOST_LISTED:
            raise ValueError(f"it lists more than {_MOST_LISTED}")
        tag, position = read_varint(data, position, end)
        if tag & 7 != _LENGTH:
            raise ValueError("it is not a list")
        length, position = read_varint(data, position, end)
        position += length


def _container(data: bytes) -> DescribedContainer:
    return _described(runtime_pb2.ContainerStatusResponse.FromString(data), pod_uid="")


def _sandbox(data: bytes) -> DescribedContainer:
    answer = runtime_pb2.PodSandboxStatusResponse.FromString(data)
    return _described(answer, pod_uid=answer.status.metadata.uid)


def _described(answer: Any, *, pod_uid: str) -> DescribedContainer:
    try:
        info = json.loads(answer.info["info"])
        pid, spec, image = info["pid"], info["runtimeSpec"], info.get("image", "")
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise WorkloadError(
            f"the runtime's verbose information does not have containerd's form: {error!r}",
            reason="cri_unknown_shape",
        ) from error
    if not isinstance(pid, int) or not isinstance(image, str):
        raise WorkloadError(
            "the runtime's verbose information has no pid or image", reason="cri_unknown_shape"
        )
    return DescribedContainer(
        pid=pid, spec=spec, image=image, pod_uid=pod_uid, created_at=answer.status.created_at
    )
