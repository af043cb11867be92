"""Serves the gRPC services that the kubelet calls: Identity, Node and Registration.

Owns the mapping from a call to the driver and from an error to a status. Invariant: the text of an
error says what to change in the pod, because the kubelet puts that text into the pod's events.

Sources: CSI 1.11; k8s.io/kubelet, ``pkg/apis/pluginregistration/v1``.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

import grpc
from google.protobuf.wrappers_pb2 import BoolValue

from sds._proto.csi.v1 import csi_pb2
from sds._proto.kubelet.pluginregistration.v1 import registration_pb2
from sds.errors import SdsError, WorkloadError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from google.protobuf.message import Message

    from sds.csi.driver import Driver

_LOGGER: Final = logging.getLogger(__name__)
IDENTITY: Final = "csi.v1.Identity"
NODE: Final = "csi.v1.Node"
REGISTRATION: Final = "pluginregistration.Registration"
_VERSIONS: Final = ("1.0.0",)
"""Versions of CSI; the kubelet compares only the major number."""

_Context = grpc.aio.ServicerContext[Any, Any]


class CsiServices:
    """Serves Identity and Node for one driver."""

    def __init__(self, driver: Driver, *, node: str, version: str) -> None:
        self._driver = driver
        self._node = node
        self._version = version

    def handlers(self) -> tuple[grpc.GenericRpcHandler, grpc.GenericRpcHandler]:
        """Make the handlers of both services."""
        identity = {
            "GetPluginInfo": _method(csi_pb2.GetPluginInfoRequest, self._info),
            "GetPluginCapabilities": _method(
                csi_pb2.GetPluginCapabilitiesRequest,
                _always(csi_pb2.GetPluginCapabilitiesResponse()),
            ),
            "Probe": _method(
                csi_pb2.ProbeRequest, _always(csi_pb2.ProbeResponse(ready=BoolValue(value=True)))
            ),
        }
        node = {
            "NodePublishVolume": _method(csi_pb2.NodePublishVolumeRequest, self._publish),
            "NodeUnpublishVolume": _method(csi_pb2.NodeUnpublishVolumeRequest, self._unpublish),
            "NodeGetCapabilities": _method(
                csi_pb2.NodeGetCapabilitiesRequest, _always(csi_pb2.NodeGetCapabilitiesResponse())
            ),
            "NodeGetInfo": _method(
                csi_pb2.NodeGetInfoRequest,
                _always(csi_pb2.NodeGetInfoResponse(node_id=self._node)),
            ),
        }
        return (
            grpc.method_handlers_generic_handler(IDENTITY, identity),
            grpc.method_handlers_generic_handler(NODE, node),
        )

    async def _info(
        self, request: csi_pb2.GetPluginInfoRequest, context: _Context
    ) -> csi_pb2.GetPluginInfoResponse:
        del request, context
        return csi_pb2.GetPluginInfoResponse(name=self._driver.name, vendor_version=self._version)

    async def _publish(
        self, request: csi_pb2.NodePublishVolumeRequest, context: _Context
    ) -> csi_pb2.NodePublishVolumeResponse:
        try:
            await self._driver.publish(request)
        except SdsError as error:
            await self._refuse(error, context)
        return csi_pb2.NodePublishVolumeResponse()

    async def _unpublish(
        self, request: csi_pb2.NodeUnpublishVolumeRequest, context: _Context
    ) -> csi_pb2.NodeUnpublishVolumeResponse:
        try:
            await self._driver.unpublish(request)
        except SdsError as error:
            await self._refuse(error, context)
        return csi_pb2.NodeUnpublishVolumeResponse()

    async def _refuse(self, error: SdsError, context: _Context) -> None:
        self._driver.failed(error)
        broken = isinstance(error, WorkloadError)
        code = grpc.StatusCode.INVALID_ARGUMENT if broken else grpc.StatusCode.INTERNAL
        await context.abort(code, f"{error.reason}: {error}")


class RegistrationService:
    """Tells the kubelet's plugin watcher the driver's name and socket.

    Args:
        name: of the driver.
        endpoint: the path of the driver's socket, as the kubelet sees it.

    Attributes:
        name: of the driver.
        asked: set once the kubelet asked who the driver is.
    """

    def __init__(self, *, name: str, endpoint: str) -> None:
        self.name = name
        self.asked = asyncio.Event()
        self._info = registration_pb2.PluginInfo(
            type="CSIPlugin", name=name, endpoint=endpoint, supported_versions=_VERSIONS
        )

    def handler(self) -> grpc.GenericRpcHandler:
        """Make the handler of the service."""
        methods = {
            "GetInfo": _method(registration_pb2.InfoRequest, self._who),
            "NotifyRegistrationStatus": _method(registration_pb2.RegistrationStatus, self._told),
        }
        return grpc.method_handlers_generic_handler(REGISTRATION, methods)

    async def _who(
        self, request: registration_pb2.InfoRequest, context: _Context
    ) -> registration_pb2.PluginInfo:
        del request, context
        self.asked.set()
        return self._info

    async def _told(
        self, status: registration_pb2.RegistrationStatus, context: _Context
    ) -> registration_pb2.RegistrationStatusResponse:
        del context
        if status.plugin_registered:
            _LOGGER.info("the kubelet registered the CSI driver", extra={"driver": self._info.name})
        else:
            _LOGGER.error(
                "the kubelet did not register the CSI driver: %s (is there a CSIDriver object of "
                "this name?)",
                status.error[:300],
                extra={"driver": self._info.name, "reason": "csi_volume"},
            )
        return registration_pb2.RegistrationStatusResponse()


def _method(
    request: type[Message], serve: Callable[[Any, _Context], Awaitable[Message]]
) -> grpc.RpcMethodHandler[Any, Any]:
    return grpc.unary_unary_rpc_method_handler(
        serve,
        request_deserializer=request.FromString,
        response_serializer=lambda message: message.SerializeToString(),
    )


def _always(answer: Message) -> Callable[[Any, _Context], Awaitable[Message]]:
    async def serve(request: Any, context: _Context) -> Message:
        del request, context
        return answer

    return serve
