"""Builds from settings every part that the agent's configuration names.

Owns the choice of the authority's client, its attester and verifier, the signed policy, rotation,
federation, what is served, and the node-wide socket. Invariant: settings are data; this module
connects and binds nothing, and opens only the files that the configuration names.

Optional parts are imported where they are made: an agent without them starts 0.2 s earlier and
takes 9 MB less (measured).
"""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from random import SystemRandom
from typing import TYPE_CHECKING, Final, TypeAlias

from sds.agent.config import OwnAuthoritySection
from sds.attestation.build import Verification, keyed, make_attester
from sds.attestation.reference_values import PLACEHOLDERS
from sds.authority.attested import AttestedAuthority
from sds.authority.patience import longest_seconds
from sds.authority.registry import authority_kind
from sds.authority.root_file import ANSWER_SECONDS
from sds.errors import ConfigurationError
from sds.federation.refresh import Federation
from sds.secrets.rotation import Rotation
from sds.secrets.rotation_settings import RotationSettings
from sds.serving.generic_secrets import GenericSecretFiles
from sds.serving.service import SecretService, ServingOptions
from sds.serving.session_ticket_keys import SessionTickets
from sds.workload.attestors import ATTESTORS
from sds.workload.mapping import Matching, WorkloadRule
from sds.workload.pod_chosen_facts import open_to_pods
from sds.workload.selector_forms import impossible_values
from sds.workload.service_dns_names import wildcards
from sds.workload.shadowed_rules import shadowed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from sds.agent.config import AgentConfig
    from sds.agent.memory_fit import MemoryFit
    from sds.agent.node_socket import NodeSocket
    from sds.agent.owners import Owners
    from sds.agent.policy import AgentPolicy
    from sds.agent.socket_guard import SocketGuard
    from sds.attestation.evidence import Verifier
    from sds.attestation.reference_values import ReferenceValues
    from sds.authority.attested import AuthoritySettings
    from sds.authority.registry import AuthorityClient
    from sds.clock import Clock
    from sds.identity import Identity
    from sds.operations.instruments import AgentInstruments
    from sds.secrets.store import SecretStore
    from sds.serving.workload_api import WorkloadApi

_RETRY_BEFORE: Final = 0.05
"""The part of the shortest lifetime that connecting to one address may take."""
_ANSWER_WITHIN: Final = 0.2
"""The part of the shortest lifetime that an answer may take."""
_SLACK_SECONDS: Final = 1.0
_FILES: Final = timedelta(seconds=3 * ANSWER_SECONDS + _SLACK_SECONDS)
"""The time for the files that another authority's client reads first: its token, and its roots
(twice, the first time)."""

Granted: TypeAlias = "Mapping[str, tuple[Identity, ...]]"
"""What each workload with a socket of its own may have, by its name."""


def signed_policy(
    config: AgentConfig, *, clock: Clock, instruments: AgentInstruments
) -> AgentPolicy | None:
    """Read the signed policy; None if none is configured.

    Raises:
        ConfigurationError: a file or a key cannot be read.
    """
    if config.policy is None:
        return None
    from sds.agent.policy import AgentPolicy  # noqa: PLC0415  measured: see the module

    return AgentPolicy(config.policy, config=config, clock=clock, watcher=instruments)


def verification(
    config: AgentConfig, *, clock: Clock, instruments: AgentInstruments | None = None
) -> Verification | None:
    """Make the verifier of the authority's evidence; None if the authority need not show any.

    Raises:
        ConfigurationError: a root, a list or collateral cannot be used.
    """
    section = config.authority
    if not isinstance(section, OwnAuthoritySection):
        return None
    # An authority behind plain TLS may have no evidence; then the configuration demands none.
    proves = section.tls == "attested" or "verification" in config.model_fields_set
    if not proves:
        return None
    made = Verification(config.verification, clock=clock)
    if instruments is not None:
        instruments.watch_collateral(made)
    return made


def authority_client(
    config: AgentConfig,
    *,
    clock: Clock,
    instruments: AgentInstruments,
    policy: AgentPolicy | None,
    verified_by: Verification | None,
) -> AuthorityClient:
    """Make the client of the authority that the configuration names.

    Raises:
        ConfigurationError: evidence or addresses cannot be used.
    """
    section = config.authority
    if not isinstance(section, OwnAuthoritySection):
        return authority_kind(section.kind).client(section, clock=clock)
    attester = make_attester(config.attestation)
    if attester is None:
        raise ConfigurationError(
            "attestation.kind is missing",
            advice="our own authority certifies only agents that give evidence",
        )
    verifier: Verifier | None = None
    if policy is not None:
        # Without a verifier of the configuration's, one is made once the policy demands evidence.
        make = _policys_alone(config, clock) if verified_by is None else verified_by.verifier
        verifier = policy.verifier(make, demanded=verified_by is not None)
    elif verified_by is not None:
        verifier = verified_by.verifier()
    return AttestedAuthority(
        authority_settings(config, section),
        attester=instruments.attester(keyed(attester, config.attestation)),
        verifier=None if verifier is None else instruments.verifier(verifier),
        clock=clock,
        policy=None if policy is None else policy.holder,
    )


def _policys_alone(config: AgentConfig, clock: Clock) -> Callable[[ReferenceValues], Verifier]:
    return lambda values: Verification(config.verification, clock=clock).verifier(values)


def authority_settings(config: AgentConfig, section: OwnAuthoritySection) -> AuthoritySettings:
    """Return how to reach our authority; time limits that are not configured fit the lifetimes.

    Raises:
        ConfigurationError: an address is not ``host:port``, or the root cannot be read.
    """
    settings = section.settings()
    shortest = min(
        (one.lifetime for one in config.workloads if one.lifetime is not None),
        default=timedelta(hours=1),
    )
    seconds = shortest.total_seconds()
    if "connect" not in section.model_fields_set:
        fitting = min(max(_RETRY_BEFORE * seconds, 1.0), settings.connect_seconds)
        settings = dataclasses.replace(settings, connect_seconds=fitting)
    if "answer" not in section.model_fields_set:
        fitting = min(max(_ANSWER_WITHIN * seconds, 2.0), settings.answer_seconds)
        settings = dataclasses.replace(settings, answer_seconds=fitting)
    return settings


def granted(config: AgentConfig, policy: AgentPolicy | None) -> Granted:
    """Return what each workload with a socket of its own may have now, by its name.

    A policy decides that before the first socket opens: what it took away is never served.
    """
    return {
        one.name: (one.identity(),) if policy is None else policy.identities(one)
        for one in config.sockets_of_their_own
    }


def rotation(
    config: AgentConfig,
    granted: Granted,
    *,
    client: AuthorityClient,
    clock: Clock,
    instruments: AgentInstruments,
) -> Rotation:
    """Make rotation for every identity that has a socket of its own."""
    made = Rotation(
        trust_domain=config.trust_domain,
        store=instruments.store,
        authority=instruments.authority(client),
        clock=clock,
        settings=rotation_settings(config),
        observer=instruments,
    )
    for identities in granted.values():
        for identity in identities:
            made.ensure(identity)
    return made


def rotation_settings(config: AgentConfig) -> RotationSettings:
    """Return the time limits of rotation: an attempt has time for every address, and for files."""
    section = config.authority
    if not isinstance(section, OwnAuthoritySection):
        attempt = section.timeout * (1 + len(section.addresses)) + _FILES
        elsewhere = authority_kind(section.kind).elsewhere
    else:
        settings = authority_settings(config, section)
        places = 1 + len(settings.addresses)
        seconds = places * longest_seconds(settings) + settings.answer_seconds
        attempt = timedelta(seconds=seconds + _SLACK_SECONDS)
        elsewhere = timedelta(0)
    return RotationSettings(
        attempt=attempt,
        ack_wait=config.rotation.root_ack_wait,
        settling=config.rotation.root_settling,
        retention=config.rotation.root_retention,
        lifetime_elsewhere=elsewhere,
        idle_news=config.policy is not None,
    )


def federation(config: AgentConfig, *, clock: Clock, instruments: AgentInstruments) -> Federation:
    """Make the part that fetches the bundles of other trust domains."""
    sources = config.federation.sources()
    instruments.watch_federation(one.trust_domain for one in sources)
    return Federation(
        instruments.store,
        sources,
        own=config.trust_domain,
        clock=clock,
        observer=instruments,
        random=SystemRandom(),
    )


def session_tickets(config: AgentConfig, store: SecretStore, clock: Clock) -> SessionTickets | None:
    """Make the session ticket keys of the workloads that have them; None if none has."""
    identities = [one.identity() for one in config.sockets_of_their_own if one.session_tickets]
    if not identities:
        return None
    shortest = min(one.lifetime for one in config.workloads if one.lifetime is not None)
    return SessionTickets(store, identities=identities, longest_life=shortest, clock=clock)


def generic_secrets(config: AgentConfig, store: SecretStore) -> GenericSecretFiles | None:
    """Read the generic secrets of all workloads; None if there are none.

    Raises:
        ConfigurationError: a file cannot be used.
    """
    files = {
        one.name: one.generic_secrets for one in config.sockets_of_their_own if one.generic_secrets
    }
    if not files:
        return None
    return GenericSecretFiles(store, files=files, aliases=config.secret_names.aliases())


def secret_service(
    config: AgentConfig,
    *,
    clock: Clock,
    instruments: AgentInstruments,
    tickets: SessionTickets | None,
    generic: GenericSecretFiles | None,
    policy: AgentPolicy | None,
    memory: MemoryFit,
) -> SecretService:
    """Make the service that serves the store; the names that clients watch fit into ``memory``."""
    store = instruments.store
    limits = config.limits.limits()
    aliases = config.secret_names.aliases()
    options = ServingOptions(
        aliases=aliases,
        spiffe_validator=config.spiffe_validator,
        limits=dataclasses.replace(limits, names=memory.names(limits.names)),
        peers=None if policy is None else policy.peers,
        tickets=tickets,
        generic=generic,
        authorizations=None if policy is None else policy.authorizations,
        authorization_ttl=config.authorization_ttl,
    )
    return SecretService(store, options=options, observer=instruments.serving, clock=clock)


def node_socket(
    config: AgentConfig,
    *,
    service: SecretService,
    api: WorkloadApi,
    rotating: Rotation,
    store: SecretStore,
    clock: Clock,
    owners: Owners,
    guard: SocketGuard,
    policy: AgentPolicy | None,
) -> NodeSocket | None:
    """Bind the node-wide socket; None if it is not configured.

    Raises:
        SocketError: it cannot be bound.
    """
    if config.node is None:
        return None
    from sds.agent.node import make_node_socket  # noqa: PLC0415  measured: see the module

    return make_node_socket(
        config,
        config.node,
        service=service,
        api=api,
        rotation=rotating,
        store=store,
        clock=clock,
        budgets=owners.budgets,
        guard=guard,
        listed=tuple if policy is None else policy.pods,
    )


def warnings(config: AgentConfig, policy: AgentPolicy | None = None) -> tuple[str, ...]:
    """Return what an operator should not overlook; ``policy`` is the signed one, if it was read."""
    return (*evidence_warnings(config, policy), *rule_warnings(config))


def evidence_warnings(config: AgentConfig, policy: AgentPolicy | None) -> tuple[str, ...]:
    """Return what should not be overlooked about machines, and whether anybody is served.

    Args:
        config: the configuration.
        policy: the signed policy, if one is followed and was read.
    """
    found = []
    if config.attestation.kind == "simulated":
        found.append("SIMULATED machine: our evidence proves nothing")
    if config.verification.trusted_roots:
        found.append("roots of SIMULATED machines are trusted")
    if config.attestation.kind == "kubernetes-token":
        found.append("our evidence is a Kubernetes token: it says nothing about code or hardware")
    authority = config.authority
    attested = isinstance(authority, OwnAuthoritySection) and authority.tls == "attested"
    by_policy = None if policy is None else policy.authorities
    named = config.policy is not None and (
        policy is None or (by_policy is not None and not by_policy.any_machine)
    )
    if attested and not named and config.verification.reference_values.any_machine:
        found.append(
            "verification.reference_values names no measurement: every machine with genuine "
            "evidence can pose as the authority"
        )
    if config.verification.reference_values.has_placeholders:
        found.append(f"verification.{PLACEHOLDERS}")
    if said := config.verification.reference_values.snp.without_minimum:
        found.append(f"verification.reference_values.{said}")
    if not config.workloads and config.node is None:
        found.append("nobody is served: the configuration has neither workloads nor node")
    return tuple(found)


def rule_warnings(config: AgentConfig) -> tuple[str, ...]:
    """Return what should not be overlooked in the rules; with a thousand, this takes a second."""
    rules = [one for one in config.workloads if isinstance(one, WorkloadRule)]
    return (
        *impossible_values(rules),
        *(shadowed(rules) if config.rules.matching is Matching.FIRST else ()),
        *_open_to_pods(config, rules),
        *_names_from_istio(config),
        *_names_of_services(config),
    )


def _open_to_pods(config: AgentConfig, rules: Sequence[WorkloadRule]) -> Iterator[str]:
    """Return rules that any pod can satisfy, if the agent expects pods on this node."""
    if config.node is not None and any(ATTESTORS[one].pods for one in config.node.attestors):
        yield from open_to_pods(rules)


def _names_from_istio(config: AgentConfig) -> Iterator[str]:
    if config.authority.kind != "istio":
        return
    services = config.node is not None and config.node.asks_for_services
    refused = [
        one.name
        for one in config.workloads
        if one.dns_names
        or (services and isinstance(one, WorkloadRule) and one.service_dns_names != ())
    ]
    if refused:
        yield (
            f"{', '.join(refused)}: Istio's authority gives no DNS names, so whoever wants one is "
            "refused: leave dns_names out, and write service_dns_names: [] into rules"
        )


def _names_of_services(config: AgentConfig) -> Iterator[str]:
    """Return what a guest does with names that the API server asserts (docs/kubernetes.md)."""
    asked = config.node is not None and config.node.asks_for_services
    if not (asked and config.attestation.is_guest):
        return
    rules = [one for one in config.workloads if isinstance(one, WorkloadRule)]
    without = [rule.name for rule in rules if rule.service_dns_names is None]
    if without:
        yield (
            f"rules {', '.join(without)} put no names of Services into certificates, because this "
            "is a confidential guest: write dns_names, or service_dns_names to take the API "
            "server's word; node.kubernetes.services: false says that this is meant"
        )
    for rule in rules:
        if open_patterns := wildcards(rule.service_dns_names or ()):
            yield (
                f"rule {rule.name} takes names within {', '.join(open_patterns)} on the word of "
                "the API server: anyone who can write to etcd moves such a name to another pod"
            )
