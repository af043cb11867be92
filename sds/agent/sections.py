"""The blocks of the configuration that only the agent has: workloads, sockets, limits, names.

Invariants: settings are data; a valid value has the domain's own type; every refusal says what to
write instead.
"""

from __future__ import annotations

import re
import stat
from datetime import timedelta
from typing import Annotated, Any, Final, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from sds.identity import Identity, KeyType
from sds.serving.catalog import Aliases
from sds.serving.limits import ServingLimits
from sds.settings.fields import (
    MOST,
    CertificateDnsName,
    Count,
    Duration,
    PathField,
    Settings,
    Size,
    SpiffeIdField,
)
from sds.workload.mapping import check_lifetime

_MODE: Final = re.compile(r"0[0-7]{3}", re.ASCII)
_LIMITS: Final = ServingLimits()
_ALIASES: Final = Aliases()


def _served_to_envoy(key_type: KeyType) -> KeyType:
    if key_type is KeyType.ED25519:
        raise ValueError(
            "Envoy accepts an Ed25519 certificate over SDS, but its server side then refuses "
            "clients that show one; use ec-p256, ec-p384 or an RSA type"
        )
    return key_type


def _mode(value: Any) -> int:
    if not isinstance(value, str) or not _MODE.fullmatch(value):
        raise ValueError('expected an octal mode in quotes, such as "0600"')
    return int(value, 8)


Mode = Annotated[int, BeforeValidator(_mode)]
"""Permission bits, written in octal."""


class WorkloadSection(Settings):
    """A workload with a socket of its own: a process that can open the socket is the workload."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")] = Field(
        description="Names the workload, and its socket: `<run_dir>/workloads/<name>/sds.sock`."
    )
    spiffe_id: SpiffeIdField = Field(
        description="The workload's SPIFFE ID, in the trust domain of this file."
    )
    dns_names: list[CertificateDnsName] = Field(
        default=[], description="DNS names in its certificate, beside the SPIFFE ID."
    )
    lifetime: Annotated[Duration, AfterValidator(check_lifetime)] = Field(
        default=timedelta(hours=1),
        description="The lifetime that the agent asks for; the authority may shorten it. If the"
        " authority refuses another certificate, the last one is good for this "
        "long.",
    )
    key_type: Annotated[KeyType, AfterValidator(_served_to_envoy)] = Field(
        default=KeyType.EC_P256,
        description="Kind of the private key. Not `ed25519`: Envoy's servers refuse clients "
        "with such a key.",
    )

    session_tickets: bool = Field(
        default=False,
        description="Serve TLS session ticket keys, a set for this workload alone. A resumed "
        "session checks neither expiry nor, with the SPIFFE validator, who the peer"
        " is.",
    )
    generic_secrets: dict[str, PathField] = Field(
        default={},
        description="Further secrets by name, such as API keys. Each is a file in memory: on a "
        "tmpfs, or an inherited memfd. Changes are noticed.",
    )

    def identity(self) -> Identity:
        """Return the identity that is requested."""
        return Identity(
            spiffe_id=self.spiffe_id,
            dns_names=tuple(self.dns_names),
            lifetime=self.lifetime,
            key_type=self.key_type,
        )


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


class RotationSection(Settings):
    """How new roots come into use and old ones leave."""

    root_ack_wait: Duration = Field(
        default=timedelta(seconds=5),
        description="How long a new root waits for every subscriber's ACK before the agent "
        "serves the first certificate under it.",
    )
    root_settling: Duration = Field(
        default=timedelta(seconds=90),
        description="How long a new root is in the bundle before a certificate under it "
        "replaces a valid one, so that other nodes learn of the root: they ask every 30 seconds at "
        "least. At most a fifth of a lifetime, and never until the valid one ends.",
    )
    root_retention: Duration | None = Field(
        default=None,
        description="How long a root that the authority no longer names stays in the bundle: the "
        "longest lifetime that any certificate of the trust domain has, on any node. Without it: "
        "the longest lifetime on this node, and with Istio's authority at least 24 hours, the "
        "lifetime of certificates that sidecars ask for.",
    )


class SecretNamesSection(Settings):
    """The short SDS names of secrets."""

    svid: list[str] = Field(
        default=list(_ALIASES.svid), description="The workload's own certificate and key."
    )
    bundle: list[str] = Field(
        default=list(_ALIASES.bundle), description="The bundle of its trust domain."
    )
    all_bundles: list[str] = Field(
        default=list(_ALIASES.all_bundles),
        description="The bundles of all trust domains, as Envoy's SPIFFE validator.",
    )
    session_tickets: list[str] = Field(
        default=list(_ALIASES.session_tickets), description="The workload's session ticket keys."
    )

    def aliases(self) -> Aliases:
        """Return the names as serving takes them.

        Raises:
            ConfigurationError: a name has two meanings.
        """
        return Aliases(
            svid=tuple(self.svid),
            bundle=tuple(self.bundle),
            all_bundles=tuple(self.all_bundles),
            session_tickets=tuple(self.session_tickets),
        )


class ClientLimitsSection(Settings):
    """What one client on a socket may do."""

    names_per_stream: Count = Field(
        default=_LIMITS.names_per_stream, description="How many names one stream may ask for."
    )
    message: Annotated[Size, Field(le=MOST)] = Field(
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
