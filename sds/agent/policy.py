"""The signed policy in the agent, and the parts that change with it.

Owns the agent's :class:`PolicyHolder` and everything that changes with it: rules of the node-wide
socket, identities of workloads with a socket of their own, federation, session tickets and
validation contexts. Invariants: if the policy has rules under ``workloads:``, they alone say who
has which identity, and the configuration can only take identities away; without a policy in force,
no new caller is recognised, and nobody is admitted in a handshake; the end of a policy gives nobody
what it took away; a part that cannot follow a change keeps no other part from it.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sds.agent.policy_authorizations import PolicyAuthorizations
from sds.agent.policy_peers import PolicyPeers
from sds.agent.rules import DecidedRules
from sds.errors import SdsError
from sds.faults import report
from sds.federation.endpoint import BundleServer
from sds.federation.refresh import BundleSource
from sds.pki import certificates_from_pem
from sds.policy.holder import PolicyHolder
from sds.policy.policy_copy import PolicyCopy
from sds.policy.reload import PolicyFiles
from sds.policy.verification import PolicyVerifier, Role
from sds.supervision import supervised
from sds.workload.entitlement import Caller, Selector
from sds.workload.facts import Facts
from sds.workload.recognition import Rules

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sds.agent.config import AgentConfig
    from sds.agent.node_socket import NodeSocket
    from sds.agent.sockets import WorkloadListening
    from sds.agent.workload_settings import WorkloadSection
    from sds.attestation.evidence import Verifier
    from sds.attestation.reference_values import ReferenceValues
    from sds.clock import Clock
    from sds.federation.refresh import Federation
    from sds.identity import Identity, TrustDomain
    from sds.policy.federated import FederatedDomain
    from sds.policy.settings import PolicySettings
    from sds.policy.trust import Epoch
    from sds.policy.watcher import PolicyWatcher
    from sds.secrets.rotation import Rotation
    from sds.serving.service import SecretService
    from sds.workload.cri.settings import PodContents

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Followers:
    """The parts that change with the policy."""

    service: SecretService
    rotation: Rotation
    federation: Federation
    sockets: Sequence[WorkloadListening]
    node: NodeSocket | None


class AgentPolicy:
    """The signed policy that an agent follows.

    Raises:
        ConfigurationError: the file or a key cannot be read.
    """

    def __init__(
        self,
        settings: PolicySettings,
        *,
        config: AgentConfig,
        clock: Clock,
        watcher: PolicyWatcher | None = None,
    ) -> None:
        self._clock = clock
        self._config = config
        self.holder = PolicyHolder(
            settings.start(config.trust_domain), clock=clock, watcher=watcher
        )
        self.files = PolicyFiles(settings.place, self.holder, clock=clock)
        self.files.load()
        self._copy = (
            None if config.policy_copy is None else PolicyCopy(config.policy_copy, self.holder)
        )
        self.peers = PolicyPeers(self.holder)
        self.authorizations = PolicyAuthorizations(self.holder)
        self._sources: dict[TrustDomain, BundleSource] = {}
        self._denied: dict[str, Epoch] = {}
        """The policy that was last said to give a socket nothing, by the workload's name."""

    def verifier(
        self, make: Callable[[ReferenceValues], Verifier], *, demanded: bool
    ) -> PolicyVerifier:
        """Make the verifier of the authority's evidence, with the policy's reference values too.

        Args:
            make: makes a verifier with the configured roots and the given reference values.
            demanded: whether the configuration demands evidence, too.
        """
        return PolicyVerifier(
            self.holder,
            role=Role.AUTHORITIES,
            configured=self._config.verification.reference_values if demanded else None,
            make=make,
        )

    @property
    def authorities(self) -> ReferenceValues | None:
        """Return what the newest policy demands of authorities; None if it demands nothing."""
        policy = self.holder.newest
        return None if policy is None else policy.reference_values.authorities

    def pods(self) -> tuple[PodContents, ...]:
        """Return the pods that the policy in force lists."""
        policy = self.holder.current
        return () if policy is None else policy.pods

    def rules(self) -> Rules:
        """Return the rules for callers of the node-wide socket."""
        configured = self._config.rules
        policy = self.holder.current
        if policy is None:
            return Rules(rules=(), defaults=configured.defaults)
        if not policy.decisions.workload_rules:
            return configured
        return DecidedRules.of(policy.decisions, configured.defaults)

    def identities(self, workload: WorkloadSection) -> tuple[Identity, ...]:
        """Return the identities of the processes that can open this workload's socket.

        After its end, the last policy still takes away: an authority that follows none would issue
        what it took. Before any was in force, the configuration decides.
        """
        configured = workload.identity()
        policy = self.holder.newest
        if policy is None or not policy.decisions.workload_rules:
            return (configured,)
        facts = Facts(selectors=frozenset({Selector("socket:name", workload.name)}))
        granted = policy.decisions.recognise(facts, defaults=self._config.rules.defaults)
        if configured.spiffe_id in {one.spiffe_id for one in granted.identities}:
            return (configured,)
        if self._denied.get(workload.name) == policy.epoch:
            return ()  # said already
        self._denied[workload.name] = policy.epoch
        _LOGGER.error(
            "the policy of epoch %d does not give the socket %s the identity %s: nothing is served",
            policy.epoch.number,
            workload.name,
            configured.spiffe_id,
            extra={"workload": workload.name, "policy_epoch": policy.epoch.number},
        )
        return ()

    def follow(
        self,
        *,
        service: SecretService,
        rotation: Rotation,
        federation: Federation,
        sockets: Sequence[WorkloadListening],
        node: NodeSocket | None,
    ) -> None:
        """Apply the policy in force now, and again after every change."""
        followers = Followers(
            service=service,
            rotation=rotation,
            federation=federation,
            sockets=sockets,
            node=node,
        )
        self.holder.listen(lambda: self._apply(followers))
        self._apply(followers)

    def _apply(self, followers: Followers) -> None:
        failed: list[Exception] = []
        for part in (
            self._apply_identities,
            self._apply_rules,
            self._apply_federation,
            # This replaces session ticket keys too, because no session may outlive its peer's
            # right.
            lambda _: followers.service.refresh(),
        ):
            try:
                part(followers)
            except Exception as error:  # noqa: BLE001  raised below, once every part was told
                failed.append(error)
        for other in failed[1:]:
            report("policy listener", other)
        if failed:
            raise failed[0]

    def _apply_rules(self, followers: Followers) -> None:
        if followers.node is not None:
            followers.node.replace_rules(self.rules())

    def _apply_federation(self, followers: Followers) -> None:
        policy = self.holder.current
        if policy is not None:
            configured = self._config.federation.sources()
            known = {source.trust_domain for source in configured}
            signed = [one for one in policy.federation if one.trust_domain not in known]
            self._sources = self._usable(signed)
            followers.federation.replace([*configured, *self._sources.values()])

    def _usable(self, signed: Sequence[FederatedDomain]) -> dict[TrustDomain, BundleSource]:
        """Return the sources of these domains; an unusable one leaves its domain as it was."""
        sources: dict[TrustDomain, BundleSource] = {}
        for domain in signed:
            name = domain.trust_domain
            try:
                sources[name] = _source(domain)
            except SdsError as error:
                _LOGGER.error(  # noqa: TRY400  a refusal, not a fault of ours
                    "the policy's bundle source of %s cannot be used; the last good one stays: %s",
                    name,
                    error,
                    extra={"bundle": name, "reason": error.reason},
                )
                if name in self._sources:
                    sources[name] = self._sources[name]
        return sources

    def _apply_identities(self, followers: Followers) -> None:
        for one in followers.sockets:
            before = one.entitlement.current
            identities = self.identities(one.workload)
            if identities == before.identities:
                continue
            for identity in set(identities) - set(before.identities):
                followers.rotation.ensure(identity)
            one.entitlement.replace(
                Caller(name=before.name, selectors=before.selectors, identities=identities)
            )
            for identity in set(before.identities) - set(identities):
                followers.rotation.release(identity)
        followers.rotation.changed()  # what was refused before may be allowed now

    def require_copy(self) -> None:
        """Check that the policy can be copied, if it is to be; the run directory must be there.

        Raises:
            ConfigurationError: it cannot.
        """
        if self._copy is not None:
            self._copy.require()

    async def run(self) -> None:
        """Follow files and time until cancelled."""
        followed = [("policy files", self.files.follow), ("policy time", self.holder.run)]
        if self._copy is not None:
            followed.append(("policy copy", self._copy.run))
        async with asyncio.TaskGroup() as tasks:
            for name, run in followed:
                tasks.create_task(supervised(name, run, clock=self._clock), name=name)


def _source(domain: FederatedDomain) -> BundleSource:
    """Convert a signed entry to a source of federation."""
    endpoint = None
    if domain.endpoint is not None:
        endpoint = BundleServer(
            url=domain.endpoint.url, spiffe_id=domain.endpoint.endpoint_spiffe_id
        )
    roots = tuple(der for pem in domain.roots for der in certificates_from_pem(pem.encode()))
    return BundleSource(trust_domain=domain.trust_domain, endpoint=endpoint, roots=roots)
