"""The settings of workloads with a socket of their own, and the names of their secrets.

Invariants: settings are data; a valid value has the domain's own type; every refusal says what to
write instead.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Final

from pydantic import AfterValidator, Field

from sds.identity import Identity, KeyType
from sds.serving.secret_catalog import Aliases
from sds.settings.field_types import (
    CertificateDnsName,
    Duration,
    PathField,
    Settings,
    SpiffeIdField,
)
from sds.workload.mapping import check_lifetime

_ALIASES: Final = Aliases()


def _served_to_envoy(key_type: KeyType) -> KeyType:
    if key_type is KeyType.ED25519:
        raise ValueError(
            "Envoy accepts an Ed25519 certificate over SDS, but its server side then refuses "
            "clients that show one; use ec-p256, ec-p384 or an RSA type"
        )
    return key_type


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
