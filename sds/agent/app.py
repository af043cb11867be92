"""The agent as a running thing: parts joined, one TaskGroup, readiness, drain.

Invariants: every task lives in one TaskGroup and ends with it; sockets are open before the first
certificate is there; at the end streams are told first (UNAVAILABLE, so that Envoys come back to
the next agent), then rotation ends and every key is wiped.

Parts that a configuration need not have (signed policy, the node-wide socket, Istio's authority,
the status page) are loaded where they are made, so that a start waits only for what it uses.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import resource
import signal
from dataclasses import dataclass
from datetime import timedelta
from random import SystemRandom
from typing import TYPE_CHECKING, Final, TypeAlias

from sds.agent import admin
from sds.agent.directory import claimed, make_directory
from sds.agent.sockets import Listening, WorkloadListening, close, listen_for, listen_for_people
from sds.authority.attested import AttestedAuthority
from sds.authority.istio_settings import IstioSettings
from sds.errors import ConfigurationError, SdsError
from sds.federation.refresh import Federation
from sds.operations.health import health_listener
from sds.operations.instruments import AgentInstruments, connected_workloads
from sds.operations.listeners import bundle_listener, metrics_listener, status_page_listener
from sds.operations.notify import READY, STOPPING, notify
from sds.secrets.rotation import Rotation, RotationSettings
from sds.serving.generic import GenericSecretFiles
from sds.serving.server import set_health
from sds.serving.service import SecretService, ServingOptions
from sds.serving.tickets import SessionTickets

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from pathlib import Path

    from sds.agent.config import AgentConfig
    from sds.agent.node_socket import NodeSocket
    from sds.agent.policy import AgentPolicy
    from sds.attestation.evidence import Verifier
    from sds.authority.istio import IstioAuthority
    from sds.clock import Clock
    from sds.operations.status_page.view import PageView
    from sds.secrets.hardening import MemoryProtection
    from sds.secrets.store import Change, ResourceKey, SecretStore

_LOGGER = logging.getLogger(__name__)
_DRAIN_SECONDS: Final = 5.0
_OURS_ALONE: Final = 0o077
_SLACK_SECONDS: Final = 1.0

OurAuthority: TypeAlias = "AttestedAuthority | IstioAuthority"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningAgent:
    """An agent whose sockets are open.

    Attributes:
        store: what it serves.
        rotation: what fills that.
        service: what serves it.
        workloads: the sockets.
    """

    store: SecretStore
    rotation: Rotation
    service: SecretService
    workloads: tuple[WorkloadListening, ...]


async def run(
    config: AgentConfig,
    *,
    clock: Clock,
    stop: asyncio.Event,
    memory: MemoryProtection | None = None,
) -> None:
    """Run until ``stop`` is set, then drain; ``sds status`` shows what protects ``memory``.

    Raises:
        SdsError: it could not start, or a part of it failed.
    """
    try:
        async with running_agent(config, clock=clock, memory=memory):
            notify(READY)
            await stop.wait()
            notify(STOPPING)
            _LOGGER.info("draining: streams end, and Envoys keep the secrets that they have")
    except BaseExceptionGroup as group:
        raise _first(group) from group


@contextlib.asynccontextmanager
async def running_agent(
    config: AgentConfig, *, clock: Clock, memory: MemoryProtection | None = None
) -> AsyncIterator[RunningAgent]:
    """An agent while the block runs; ``sds status`` shows what protects ``memory``.

    Raises:
        ConfigurationError: the configuration does not fit this machine.
        SocketError: the run directory or a socket cannot be used.
    """
    raise_file_limit()
    os.umask(_OURS_ALONE)
    instruments = AgentInstruments(clock=clock)
    policy = _signed_policy(config, clock, instruments)
    authority = make_authority(config, clock, instruments, policy)
    store = instruments.store
    rotation = Rotation(
        trust_domain=config.trust_domain,
        store=store,
        authority=instruments.authority(authority),
        clock=clock,
        settings=rotation_settings(config),
        observer=instruments,
    )
    federation = Federation(
        store,
        config.federation.sources(),
        own=config.trust_domain,
        clock=clock,
        observer=instruments,
        random=SystemRandom(),
    )
    for identity in config.identities():
        rotation.ensure(identity)
    tickets = _session_tickets(config, store, clock)
    options = _serving_options(config, store, tickets, policy)
    service = SecretService(store, options=options, observer=instruments.serving, clock=clock)
    instruments.count_workloads(lambda: connected_workloads(service))
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(claimed(config.run_dir))
        stack.push_async_callback(authority.aclose)
        group = await stack.enter_async_context(asyncio.TaskGroup())
        # Certificates are asked for while the sockets are opened.
        running = [
            group.create_task(rotation.run(), name="rotation"),
            group.create_task(federation.run(), name="federation"),
        ]
        stack.callback(_cancel, running)
        if tickets is not None:
            refresh = functools.partial(service.refresh, trust_changed=False)
            running.append(group.create_task(tickets.run(refresh), name="session tickets"))
        sockets = await stack.enter_async_context(_workload_sockets(config, service))
        node = None
        if config.node is not None:
            from sds.agent.node import make_node_socket  # noqa: PLC0415  see the module

            node = make_node_socket(
                config,
                config.node,
                service=service,
                rotation=rotation,
                store=store,
                clock=clock,
            )
        if policy is not None:
            from sds.agent.policy import Followers  # noqa: PLC0415  see the module

            policy.follow(
                Followers(
                    service=service,
                    rotation=rotation,
                    federation=federation,
                    sockets=sockets,
                    node=node,
                )
            )
            running.append(group.create_task(policy.run(), name="policy"))
            stack.enter_context(_reread_on_hangup(policy))
        if node is not None:
            await stack.enter_async_context(node.open(grace_seconds=_DRAIN_SECONDS))
        sources = admin.Sources(
            trust_domain=config.trust_domain,
            rotation=rotation,
            store=store,
            clock=clock,
            started_at=clock.now().wall,
            authority=lambda: _address(config, authority),
            workloads=lambda: sockets,
            draining=lambda: service.draining is not None,
            notices=lambda: _notices(config, node, policy),
            memory=memory,
        )
        people = await stack.enter_async_context(_admin_socket(config, service, sources))
        health = Health(store, rotation, people, sockets, policy)
        running.append(group.create_task(health.run(), name="health"))
        stack.callback(service.close)
        started = clock.now()
        await stack.enter_async_context(metrics_listener(config.metrics, instruments))
        await stack.enter_async_context(
            bundle_listener(config.federation.serve, store, config.trust_domain)
        )

        def look() -> PageView:
            from sds.operations.photograph import photograph  # noqa: PLC0415  see the module

            return photograph(
                now=clock.now(),
                started=started,
                trust_domain=config.trust_domain,
                authority=_address(config, authority),
                notices=_notices(config, node, policy),
                instruments=instruments,
                rotation=rotation,
                service=service,
                policy=None if policy is None else policy.holder,
            )

        await stack.enter_async_context(status_page_listener(config.status_page, look))
        await stack.enter_async_context(
            health_listener(config.health, lambda: _ready(config, store, service))
        )
        _LOGGER.info(
            "the sockets are open",
            extra={"run_dir": str(config.run_dir), "workloads": len(sockets)},
        )
        yield RunningAgent(store=store, rotation=rotation, service=service, workloads=sockets)


def _signed_policy(
    config: AgentConfig, clock: Clock, instruments: AgentInstruments
) -> AgentPolicy | None:
    if config.policy is None:
        return None
    from sds.agent.policy import AgentPolicy  # noqa: PLC0415  see the module

    return AgentPolicy(config.policy, config=config, clock=clock, watcher=instruments)


def _session_tickets(
    config: AgentConfig, store: SecretStore, clock: Clock
) -> SessionTickets | None:
    """Session ticket keys of the workloads that have them; None where none has."""
    identities = [one.identity() for one in config.sockets_of_their_own if one.session_tickets]
    if not identities:
        return None
    shortest = min(one.lifetime for one in config.workloads if one.lifetime is not None)
    return SessionTickets(store, identities=identities, longest_life=shortest, clock=clock)


def _serving_options(
    config: AgentConfig,
    store: SecretStore,
    tickets: SessionTickets | None,
    policy: AgentPolicy | None,
) -> ServingOptions:
    aliases = config.secret_names.aliases()
    files = {
        one.name: one.generic_secrets for one in config.sockets_of_their_own if one.generic_secrets
    }
    return ServingOptions(
        aliases=aliases,
        spiffe_validator=config.spiffe_validator,
        limits=config.limits.limits(),
        peers=None if policy is None else policy.peers,
        tickets=tickets,
        generic=GenericSecretFiles(store, files=files, aliases=aliases) if files else None,
    )


def make_authority(
    config: AgentConfig,
    clock: Clock,
    instruments: AgentInstruments,
    policy: AgentPolicy | None,
) -> OurAuthority:
    """The client of the authority that the configuration names; nothing is connected yet.

    Raises:
        ConfigurationError: evidence, roots or addresses cannot be used.
    """
    section = config.authority
    if isinstance(section, IstioSettings):
        from sds.authority.istio import IstioAuthority  # noqa: PLC0415  see the module

        return IstioAuthority(section, clock=clock)
    attester = config.attestation.attester()
    if attester is None:
        raise ConfigurationError(
            "attestation.kind is missing", advice="our own authority certifies only what attests"
        )
    # An authority behind plain TLS may have no evidence; what it must show is then not written.
    proves = section.tls == "attested" or "verification" in config.model_fields_set
    return AttestedAuthority(
        config.own_authority(section),
        attester=instruments.attester(attester),
        verifier=instruments.verifier(_verifier(config, policy)) if proves else None,
        clock=clock,
        policy=None if policy is None else policy.holder,
    )


def _verifier(config: AgentConfig, policy: AgentPolicy | None) -> Verifier:
    return config.verification.verifier() if policy is None else policy.verifier()


@contextlib.contextmanager
def _reread_on_hangup(policy: AgentPolicy) -> Iterator[None]:
    """SIGHUP reads the policy again."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, policy.files.ask)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)


def rotation_settings(config: AgentConfig) -> RotationSettings:
    """Bounds of rotation; an attempt may try every address once."""
    section = config.authority
    if isinstance(section, IstioSettings):
        attempt = section.timeout * (1 + len(section.addresses))
    else:
        settings = config.own_authority(section)
        seconds = (1 + len(settings.addresses)) * settings.connect_seconds + settings.answer_seconds
        attempt = timedelta(seconds=seconds + _SLACK_SECONDS)
    return RotationSettings(
        attempt=attempt,
        ack_wait=config.rotation.root_ack_wait,
        settling=config.rotation.root_settling,
        retention=config.rotation.root_retention,
    )


def raise_file_limit() -> None:
    """Take all the descriptors that we may have: each workload's socket and stream needs some."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Health:
    """Tells every socket's health: a workload's is SERVING while its SVID is valid.

    The admin socket's is SERVING while every wanted identity has one, and a policy is in force
    where one is configured.
    """

    def __init__(
        self,
        store: SecretStore,
        rotation: Rotation,
        people: Listening,
        sockets: Sequence[WorkloadListening],
        policy: AgentPolicy | None = None,
    ) -> None:
        self._store = store
        self._rotation = rotation
        self._people = people
        self._sockets = sockets
        self._policy = policy
        self._said: dict[Path, bool] = {}
        self._changed = asyncio.Event()
        self._keys: set[ResourceKey] | None = None
        """What changed in the store; None where anything may have."""

    async def run(self) -> None:
        """Follow the store until cancelled."""
        stop = self._store.listen(self._on_change)
        stop_policy = self._policy.holder.listen(self._on_policy) if self._policy else None
        try:
            while True:
                self._changed.clear()
                keys, self._keys = self._keys, set()
                for one in self._sockets:
                    identities = one.entitlement.current.identities
                    if keys is None or not keys.isdisjoint(identities):
                        served = all(self._store.svid(each) is not None for each in identities)
                        await self._say(one.listening, serving=served)
                governed = self._policy is None or self._policy.in_force
                await self._say(self._people, serving=self._rotation.ready and governed)
                await self._changed.wait()
        finally:
            stop()
            if stop_policy is not None:
                stop_policy()

    def _on_change(self, change: Change) -> None:
        if self._keys is not None:
            self._keys |= change.keys
        self._changed.set()

    def _on_policy(self) -> None:
        self._keys = None
        self._changed.set()

    async def _say(self, listening: Listening, *, serving: bool) -> None:
        if self._said.get(listening.path) is not serving:
            self._said[listening.path] = serving
            await set_health(listening.health, serving=serving)
            if listening is self._people:
                _LOGGER.info("ready" if serving else "not ready", extra={"ready": serving})


def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()


@contextlib.asynccontextmanager
async def _workload_sockets(
    config: AgentConfig, service: SecretService
) -> AsyncIterator[tuple[WorkloadListening, ...]]:
    opened: list[WorkloadListening] = []
    sockets = config.sockets
    if config.sockets_of_their_own:
        make_directory(config.workloads_directory, sockets.directory_mode, group=sockets.group)
    try:
        for workload in config.sockets_of_their_own:
            opened.append(await listen_for(workload, config, service))  # noqa: PERF401  closed below
        yield tuple(opened)
    finally:
        await _close(*(one.listening for one in opened))


@contextlib.asynccontextmanager
async def _admin_socket(
    config: AgentConfig, service: SecretService, sources: admin.Sources
) -> AsyncIterator[Listening]:
    more = ((admin.SERVICE, admin.handler(sources)),)
    listening = await listen_for_people(config.admin_socket, service, more)
    try:
        yield listening
    finally:
        await _close(listening)


async def _close(*listening: Listening) -> None:
    async with asyncio.TaskGroup() as group:
        for one in listening:
            group.create_task(close(one, grace_seconds=_DRAIN_SECONDS))


def _ready(config: AgentConfig, store: SecretStore, service: SecretService) -> bool:
    """For probes: what was configured is served.

    Identities of callers of the node-wide socket do not count: one pod that the authority refuses
    would stop every roll-out.
    """
    served = all(store.svid(identity) is not None for identity in config.identities())
    return served and service.draining is None


def _address(config: AgentConfig, authority: OurAuthority) -> str:
    connected = authority.connected_to if isinstance(authority, AttestedAuthority) else None
    return connected or ", ".join(config.authority.addresses)


def _notices(
    config: AgentConfig, node: NodeSocket | None, policy: AgentPolicy | None
) -> Sequence[str]:
    found = [] if node is None else list(node.status().notices)
    if policy is not None:
        found += policy.notices()
    if config.attestation.kind == "simulated":
        found.append("SIMULATED machine: our evidence proves nothing")
    if config.verification.trusted_roots:
        found.append("roots of SIMULATED machines are trusted")
    if config.attestation.kind == "kubernetes-token":
        found.append("our evidence is a Kubernetes token: it says nothing about code or hardware")
    return found


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error that was raised on purpose, else the first: the others follow from it."""
    flat: list[BaseException] = []
    todo: list[BaseException] = [group]
    while todo:
        error = todo.pop(0)
        if isinstance(error, BaseExceptionGroup):
            todo[:0] = error.exceptions
        else:
            flat.append(error)
    return next((error for error in flat if isinstance(error, SdsError)), flat[0])
