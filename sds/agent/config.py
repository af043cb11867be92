"""The configuration of ``sds agent``: read once, frozen.

Invariants: a valid configuration is complete and consistent; every refusal names the field and says
what to write instead; only the configuration file itself is opened here.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from sds.agent.budget_settings import BudgetsSection
from sds.agent.node_settings import NodeSettings  # noqa: TC001  pydantic reads it at run time
from sds.agent.rotation_settings import RotationSection
from sds.agent.rules import DecidedRules
from sds.agent.socket_settings import ClientLimitsSection, SocketSection
from sds.agent.workload_settings import SecretNamesSection, WorkloadSection
from sds.attestation.settings import AttestationSection, VerificationSection
from sds.authority.istio_settings import IstioSettings  # noqa: TC001  pydantic reads it at run time
from sds.authority.registry import AUTHORITIES
from sds.authority.settings import AuthoritySection
from sds.errors import IdentityError
from sds.federation.settings import FederationSettings
from sds.files import SOCKET_PATH_BYTES
from sds.operations.settings import (  # noqa: TC001  pydantic reads them at run time
    HealthSection,
    MetricsSection,
    StatusPageSection,
)
from sds.policy.settings import PolicySettings  # noqa: TC001  as above
from sds.settings.field_types import (
    Duration,
    PathField,
    Settings,
    TrustDomainField,
)
from sds.settings.overwriting import require_files_of_their_own
from sds.workload.attestors import ATTESTORS
from sds.workload.mapping import (
    NAMES_IN_NAMESPACE,
    Defaults,
    Matching,
    WorkloadRule,
    check_trust_domain,
    selector_types,
)
from sds.workload.socket_name import NODE_WIDE

if TYPE_CHECKING:
    from pathlib import Path

    from sds.identity import Identity
    from sds.workload.recognition import Rules


class OwnAuthoritySection(AuthoritySection):
    """Our own authority, ``sds ca``."""

    kind: Literal["sds"] = Field(default="sds", description="Our own authority, `sds ca`.")


class OtherAuthoritySection(Settings):
    """An authority that a module of its own makes known (`docs/extending.md`)."""

    in_reference: ClassVar[bool] = False

    kind: str = Field(description="Its name in the registry of authorities.")
    addresses: tuple[str, ...] = Field(min_length=1, description="`host:port` of each replica.")
    timeout: Duration = Field(
        default=timedelta(seconds=10), description="The longest that one call may take."
    )
    settings: dict[str, Any] = Field(
        default={}, description="What its module takes; the module says what may be written here."
    )

    @field_validator("kind")
    @classmethod
    def _is_registered(cls, kind: str) -> str:
        if kind not in AUTHORITIES:
            raise ValueError(f"expected {', '.join(['sds', *AUTHORITIES])}")
        return kind


def _authority_kind(value: Any) -> str:
    kind = value.get("kind", "sds") if isinstance(value, dict) else getattr(value, "kind", "sds")
    return str(kind) if kind in ("sds", "istio") else "other"


def _workload_kind(value: Any) -> str:
    rule = "match" in value if isinstance(value, dict) else isinstance(value, WorkloadRule)
    return "rule" if rule else "socket"


class AgentConfig(Settings):
    """The whole file."""

    trust_domain: TrustDomainField = Field(
        description="The trust domain of this agent and its workloads, without a scheme."
    )
    run_dir: PathField = Field(
        description="Directory of the sockets. The agent makes it if it is missing. Use a "
        "tmpfs, such as `/run`."
    )
    authority: Annotated[
        Annotated[OwnAuthoritySection, Tag("sds")]
        | Annotated[IstioSettings, Tag("istio")]
        | Annotated[OtherAuthoritySection, Tag("other")],
        Discriminator(_authority_kind),
    ] = Field(description="The certificate authority that signs.")
    attestation: AttestationSection = Field(
        default=AttestationSection(),
        description="The evidence that this agent gives to the authority.",
    )
    verification: VerificationSection = Field(
        default=VerificationSection(), description="What the authority's evidence must show."
    )
    workloads: list[
        Annotated[
            Annotated[WorkloadSection, Tag("socket")] | Annotated[WorkloadRule, Tag("rule")],
            Discriminator(_workload_kind),
        ]
    ] = Field(
        default=[],
        description="The workloads. Without `match`, a workload has a socket of its own. With "
        "`match`, the entry is a rule for callers of the node-wide socket.",
    )
    node: NodeSettings | None = Field(
        default=None,
        description="The node-wide socket, `<run_dir>/node/sds.sock`. It exists only if this "
        "block does.",
    )
    health: HealthSection | None = Field(
        default=None, description="An HTTP listener for probes. Without this block there is none."
    )
    policy: PolicySettings | None = Field(
        default=None,
        description="The signed policy: who has which identity, and who may talk to whom. "
        "Without this block, this file alone decides.",
    )
    policy_copy: PathField | None = Field(
        default=None,
        description="Where the agent copies each later policy that it learns, for `sds admission` "
        "on the same machine, which names the same file. Its folder must exist.",
    )
    sockets: SocketSection = Field(
        default=SocketSection(), description="Permissions of the workloads' sockets."
    )
    transport: Literal["own", "grpc"] = Field(
        default="own",
        description="What serves the workloads' sockets: `own` knows each connection, has budgets "
        "for the owners of connections and costs a tenth of the memory; `grpc` is `grpc.aio`, a "
        "fallback without the node-wide socket, which needs to know its callers.",
    )
    spiffe_validator: bool = Field(
        default=False,
        description="Serve the bundle of our own trust domain as Envoy's SPIFFE validator, even"
        " to clients that do not ask for it.",
    )
    authorization_ttl: Duration = Field(
        default=timedelta(hours=1),
        ge=timedelta(seconds=3),
        description="How long an Envoy enforces its authorization without hearing from the agent,"
        " at most until the policy ends. After that, its listener denies everything. Heartbeats"
        " come three times in that span.",
    )
    rotation: RotationSection = Field(
        default=RotationSection(),
        description="How new roots come into use and old ones leave. The defaults fit lifetimes"
        " from seconds to days.",
    )
    limits: ClientLimitsSection = Field(
        default=ClientLimitsSection(), description="What one client on a socket may do."
    )
    budgets: BudgetsSection = Field(
        default=BudgetsSection(),
        description="What each owner of connections (a pod, or a user outside pods) may use.",
    )
    federation: FederationSettings = Field(
        default=FederationSettings(),
        description="Bundles of other trust domains, and how others get ours.",
    )
    metrics: MetricsSection | None = Field(
        default=None, description="Prometheus metrics. Without this block there are none."
    )
    status_page: StatusPageSection | None = Field(
        default=None, description="The status page for people. Without this block there is none."
    )
    secret_names: SecretNamesSection = Field(
        default=SecretNamesSection(),
        description="The short SDS names of secrets. Each secret may have several.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names: set[str] = set()
        for index, workload in enumerate(self.workloads):
            field = f"workloads[{index}]"
            if workload.name in names:
                raise ValueError(f"{field}.name: {workload.name!r} appears twice")
            names.add(workload.name)
            if isinstance(workload, WorkloadRule):
                if self.node is None:
                    raise ValueError(
                        f"{field}.match: rules are for callers of the node-wide socket; write the "
                        "section node, or leave match out for a socket of its own"
                    )
                continue
            if workload.spiffe_id.trust_domain != self.trust_domain:
                raise ValueError(
                    f"{field}.spiffe_id: {workload.spiffe_id} is not in the trust domain "
                    f"{self.trust_domain}"
                )
            if not workload.spiffe_id.path:
                raise ValueError(f"{field}.spiffe_id: {workload.spiffe_id} has no path")
            try:
                workload.identity()
            except IdentityError as error:
                raise ValueError(f"{field}: {error}") from error
        self._check_copy()
        self._check_authority()
        self._check_transport()
        self._check_rules()
        self._check_sockets()
        own = sorted(one.name for one in self.sockets_of_their_own)
        for path in (
            self.admin_socket,
            self.node_socket,
            *map(self.workload_socket, own),
        ):
            check_socket_path(path)
        self._check_listeners()
        if (
            self.attestation.kind == "kubernetes-token"
            and isinstance(self.authority, OwnAuthoritySection)
            and self.authority.tls == "attested"
        ):
            raise ValueError(
                "attestation.kind: a Kubernetes token is a bearer credential and is sent only over "
                "TLS that a configured root vouches for: write authority.tls with root and "
                "server_name"
            )
        return self

    def _check_listeners(self) -> None:
        """Refuse a listener in the place of a socket of the agent's own."""
        own = [self.admin_socket, *([] if self.node is None else [self.node_socket])]
        own += [self.workload_socket(one.name) for one in self.sockets_of_their_own]
        taken = {os.path.normpath(path) for path in own}
        for field, section in (
            ("metrics", self.metrics),
            ("status_page", self.status_page),
            ("health", self.health),
            ("federation.serve", self.federation.serve),
        ):
            path = None if section is None else section.address().path
            if path is not None and os.path.normpath(path) in taken:
                raise ValueError(
                    f"{field}.listen: {path} is a socket of the agent's own: name another path"
                )

    def _check_copy(self) -> None:
        """Refuse a copy of nothing."""
        if self.policy_copy is not None and self.policy is None:
            raise ValueError("policy_copy: there is no policy to copy; write the section policy")
        if self.policy_copy is not None:
            require_files_of_their_own(self, ["policy_copy"])

    def _check_authority(self) -> None:
        """Refuse evidence of us or of the authority if the authority neither takes nor gives any.

        Whoever writes such a section means that somebody checks it.
        """
        if isinstance(self.authority, OwnAuthoritySection):
            return
        kind = self.authority.kind
        if self.verification != VerificationSection():
            raise ValueError(
                f"verification: an authority of the kind {kind} gives no evidence, so nothing "
                "reads this section: remove it"
            )
        if self.attestation != AttestationSection():
            raise ValueError(
                f"attestation: an authority of the kind {kind} takes no evidence, so none is "
                "given: remove this section"
            )

    def _check_sockets(self) -> None:
        """Refuse permissions of sockets that there are none of: no other socket has them."""
        if self.sockets != SocketSection() and not self.sockets_of_their_own:
            raise ValueError(
                "sockets: no workload has a socket of its own, and others have fixed permissions "
                "(everybody may open the node-wide socket, and rules decide): remove this section"
            )

    def _check_transport(self) -> None:
        """Refuse a transport that does not know its callers if the configuration needs them."""
        if self.transport == "grpc" and self.budgets != BudgetsSection():
            raise ValueError(
                "budgets: grpc.aio cannot tell the owners of connections apart; remove the "
                "section, or write transport: own"
            )
        if self.transport == "grpc" and self.node is not None:
            raise ValueError(
                "transport: grpc.aio cannot tell the callers of the node-wide socket apart; remove "
                "the section node, or write transport: own"
            )

    def _check_rules(self) -> None:
        """Refuse rules for another trust domain or unknown facts, and sockets of one name."""
        if self.node is None:
            return
        found = {each for name in self.node.attestors for each in ATTESTORS[name].types}
        for index, rule in enumerate(self.workloads):
            if not isinstance(rule, WorkloadRule):
                if rule.name == NODE_WIDE and "socket" in self.node.attestors:
                    raise ValueError(
                        f"workloads[{index}].name: {NODE_WIDE!r} is the socket:name of everybody "
                        "on the node-wide socket, whom rules could not tell apart: choose another"
                    )
                continue
            try:
                check_trust_domain(rule.spiffe_id, self.trust_domain)
            except ValueError as error:
                raise ValueError(f"workloads[{index}].{error}") from error
            if rule.service_dns_names and not self.node.asks_for_services:
                raise ValueError(
                    f"workloads[{index}].service_dns_names: nobody is asked for Services: write "
                    "dns_names, or use the attestor 'kubernetes' with node.kubernetes.services"
                )
            for needed in sorted(selector_types([rule])):
                if needed in found or any(
                    each.endswith(":") and needed.startswith(each) for each in found
                ):
                    continue
                finders = [
                    name
                    for name, each in ATTESTORS.items()
                    if any(needed == one or needed.startswith(one) for one in each.types)
                ]
                raise ValueError(
                    f"workloads[{index}].match: {needed} is found by the attestor "
                    f"{' or '.join(finders)}, and node.attestors names "
                    f"{', '.join(self.node.attestors)} only"
                )

    @property
    def sockets_of_their_own(self) -> tuple[WorkloadSection, ...]:
        """Return the workloads that have a socket of their own."""
        return tuple(one for one in self.workloads if isinstance(one, WorkloadSection))

    @property
    def rules(self) -> Rules:
        """Return the rules for callers of the node-wide socket."""
        node = self.node
        return DecidedRules.configured(
            (one for one in self.workloads if isinstance(one, WorkloadRule)),
            defaults=Defaults(
                trust_domain=self.trust_domain,
                cluster_domain=node.kubernetes.cluster_domain if node else "cluster.local",
                service_dns_names=() if self.attestation.is_guest else NAMES_IN_NAMESPACE,
            ),
            matching=node.matching if node else Matching.FIRST,
        )

    @property
    def node_socket(self) -> Path:
        """Return the path of the node-wide socket."""
        return self.run_dir / "node" / "sds.sock"

    @property
    def admin_socket(self) -> Path:
        """Return the path of the admin socket."""
        return self.run_dir / "admin.sock"

    @property
    def workloads_directory(self) -> Path:
        """Return the directory in which each workload with a socket of its own has a directory."""
        return self.run_dir / "workloads"

    def workload_socket(self, name: str) -> Path:
        """Return the socket of the workload of this name."""
        return self.workloads_directory / name / "sds.sock"

    def identities(self) -> tuple[Identity, ...]:
        """Return the identities that are requested, in the order of the workloads."""
        return tuple(workload.identity() for workload in self.sockets_of_their_own)


def check_socket_path(path: Path) -> None:
    """Check that a Unix socket can have this path.

    Raises:
        ValueError: it is too long (unix(7): ``sun_path`` has 108 bytes, the last one NUL).
    """
    size = len(os.fsencode(path))
    if size > SOCKET_PATH_BYTES:
        raise ValueError(
            f"run_dir: the socket {str(path)!r} has a path of {size} bytes, and a Unix socket's "
            f"has {SOCKET_PATH_BYTES} at most: use a shorter run_dir or name"
        )
