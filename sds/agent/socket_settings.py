"""The settings of the agent's sockets: their permissions, and what one client on them may do.

Invariants: settings are data; a valid value has the domain's own type; every refusal says what to
write instead.
"""

from __future__ import annotations

import re
import stat
from typing import Annotated, Any, Final, Self

from pydantic import BeforeValidator, Field, model_validator

from sds.serving.limits import ServingLimits
from sds.settings.field_types import MOST, Count, Settings, Size

_MODE: Final = re.compile(r"0[0-7]{3}", re.ASCII)
_LIMITS: Final = ServingLimits()


def _mode(value: Any) -> int:
    if not isinstance(value, str) or not _MODE.fullmatch(value):
        raise ValueError('expected an octal mode in quotes, such as "0600"')
    return int(value, 8)


Mode = Annotated[int, BeforeValidator(_mode)]
"""Permission bits, written in octal."""


class SocketSection(Settings):
    """Permissions of the workloads' sockets."""

    directory_mode: Mode = Field(
        default="0700", validate_default=True, description="Permissions of each socket's directory."
    )
    socket_mode: Mode = Field(
        default="0600", validate_default=True, description="Permissions of each socket."
    )
    group: str | None = Field(
        default=None,
        description="Group of the directories and sockets, by name. The agent must be a member.",
    )

    @model_validator(mode="after")
    def _usable(self) -> Self:
        if self.directory_mode & stat.S_IRWXU != stat.S_IRWXU:
            raise ValueError("directory_mode must leave the agent itself everything (07..)")
        if self.directory_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise ValueError(
                "directory_mode must let nobody else write: who may write to a "
                'directory can replace the socket in it; "0750" or "0755" let others connect'
            )
        if self.socket_mode & (stat.S_IRUSR | stat.S_IWUSR) != stat.S_IRUSR | stat.S_IWUSR:
            raise ValueError("socket_mode must leave the agent itself reading and writing (06..)")
        return self


class ClientLimitsSection(Settings):
    """What one client on a socket may do."""

    names_per_stream: Count = Field(
        default=_LIMITS.names_per_stream, description="How many names one stream may ask for."
    )
    message: Annotated[Size, Field(ge=4 << 10, le=MOST)] = Field(
        default=_LIMITS.message_bytes, description="The largest request."
    )
    streams_per_connection: Count = Field(
        default=_LIMITS.streams_per_connection,
        description="How many streams one connection may have.",
    )
    streams_per_socket: Count = Field(
        default=_LIMITS.streams_per_socket,
        description="How many streams all connections of one socket may have together.",
    )
    requests_per_second: Annotated[float, Field(gt=0)] = Field(
        default=_LIMITS.requests_per_second,
        description="How many requests per second one stream may send on average.",
    )
    request_burst: Count = Field(
        default=_LIMITS.request_burst, description="How many requests one stream may send at once."
    )

    def limits(self) -> ServingLimits:
        """Return the limits as serving takes them."""
        return ServingLimits(
            names_per_stream=self.names_per_stream,
            message_bytes=self.message,
            streams_per_connection=self.streams_per_connection,
            streams_per_socket=self.streams_per_socket,
            requests_per_second=self.requests_per_second,
            request_burst=self.request_burst,
        )
