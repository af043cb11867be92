"""Runs the agent: joins its parts, owns the TaskGroup, drains.

Invariants: every task lives in one TaskGroup and ends with it; sockets are open before the first
certificate arrives; at the end, streams are told first (UNAVAILABLE, so that Envoys come back to
the next agent), and then rotation ends and every key is wiped.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sds.agent import admin, build
from sds.agent.directory import claimed, make_directory
from sds.agent.drain import DRAIN_SECONDS, DrainTime
from sds.agent.health import HealthReporter
from sds.agent.owners import Owners
from sds.agent.socket_guard import SocketGuard
from sds.agent.sockets import Listening, WorkloadListening, close, listen_for, listen_for_people
from sds.agent.state_reader import LivingParts, UnservedIdentities
from sds.authority.attested import AttestedAuthority
from sds.control_group import memory_limit
from sds.descriptors import take_all
from sds.operations.hangup import on_hangup
from sds.operations.health import health_listener
from sds.operations.instruments import AgentInstruments
from sds.operations.listeners import bundle_listener, metrics_listener, status_page_listener
from sds.operations.notify import STOPPING, notify, readiness_notifier
from sds.secrets.roots_poll import roots_source
from sds.serving.workload_api import WorkloadApi
from sds.supervision import first_error, supervised
from sds.workload.connection_caller import entitlement_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence

    from sds.agent.config import AgentConfig
    from sds.agent.policy import AgentPolicy
    from sds.attestation.build import Verification
    from sds.authority.registry import AuthorityClient
    from sds.clock import Clock
    from sds.operations.readiness import Readiness
    from sds.operations.state import AgentState
    from sds.secrets.hardening import MemoryProtection
    from sds.secrets.rotation import Rotation
    from sds.secrets.store import SecretStore
    from sds.serving.generic_secrets import GenericSecretFiles
    from sds.serving.service import SecretService
    from sds.serving.session_ticket_keys import SessionTickets

_LOGGER = logging.getLogger(__name__)
_OURS_ALONE: Final = 0o077


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningAgent:
    """An agent whose sockets are open.

    Attributes:
        store: has what it serves.
        rotation: fills the store.
        service: serves the store.
        workloads: the workloads' sockets.
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
    notices: Callable[[], Sequence[str]] = tuple,
) -> None:
    """Run until ``stop`` is set, then drain; ``sds status`` shows ``memory`` and ``notices``.

    Raises:
        SdsError: the agent could not start, or a part of it failed.
    """
    try:
        # Containers wait for the start of an agent that measures its key, and the authority may be
        # one of them, so the start is complete once the sockets are open.
        told = readiness_notifier(at_once=config.attestation.exchange_key is not None)
        async with running_agent(config, clock=clock, memory=memory, told=told, notices=notices):
            await stop.wait()
            notify(STOPPING)
            _LOGGER.info("draining: streams end, and Envoys keep the secrets that they have")
    except BaseExceptionGroup as group:
        raise first_error(group) from group


def _nobody(_readiness: Readiness) -> None:
    """Do nothing: there is no service manager."""


@contextlib.asynccontextmanager
async def running_agent(
    config: AgentConfig,
    *,
    clock: Clock,
    memory: MemoryProtection | None = None,
    told: Callable[[Readiness], None] = _nobody,
    notices: Callable[[], Sequence[str]] = tuple,
) -> AsyncIterator[RunningAgent]:
    """Run an agent while the block runs.

    Args:
        config: the configuration.
        clock: time.
        memory: the protections of memory, which ``sds status`` shows.
        told: is told of every change of the readiness.
        notices: gives further sentences that ``sds status`` shows.

    Raises:
        ConfigurationError: the configuration does not fit this machine.
        SocketError: the run directory or a socket cannot be used.
    """
    take_all()
    owners = Owners(config.node, config.budgets, memory=memory_limit())
    os.umask(_OURS_ALONE)
    instruments = AgentInstruments(clock=clock)
    store = instruments.store
    policy = build.signed_policy(config, clock=clock, instruments=instruments)
    verification = build.verification(config, clock=clock, instruments=instruments)
    client = build.authority_client(
        config, clock=clock, instruments=instruments, policy=policy, verified_by=verification
    )
    granted = build.granted(config, policy)
    rotation = build.rotation(config, granted, client=client, clock=clock, instruments=instruments)
    federation = build.federation(config, clock=clock, instruments=instruments)
    tickets = build.session_tickets(config, store, clock)
    generic = build.generic_secrets(config, store)
    service = build.secret_service(
        config,
        clock=clock,
        instruments=instruments,
        tickets=tickets,
        generic=generic,
        policy=policy,
        memory=owners.memory,
    )
    drain = DrainTime(DRAIN_SECONDS, clock=clock)
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(claimed(config.run_dir))
        if policy is not None:
            policy.require_copy()
        stack.push_async_callback(client.aclose)
        guard = SocketGuard(clock=clock, keep=config.run_dir / "kept")
        stack.callback(guard.close)
        group = await stack.enter_async_context(asyncio.TaskGroup())
        # Certificates are requested while the sockets are opened.
        running = [
            group.create_task(rotation.run(), name="rotation"),
            group.create_task(federation.run(), name="federation"),
        ]
        stack.callback(_cancel, running)
        for name, run in _secrets_without_authority(service, tickets, generic, clock):
            running.append(group.create_task(supervised(name, run, clock=clock)))
        api = WorkloadApi(store, entitlement_of, unsent=service.unsent)
        sockets = await stack.enter_async_context(
            _workload_sockets(config, granted, service, api, owners, guard=guard, drain=drain)
        )
        node = build.node_socket(
            config,
            service=service,
            api=api,
            rotating=rotation,
            store=store,
            clock=clock,
            owners=owners,
            guard=guard,
            policy=policy,
        )
        if policy is not None:
            policy.follow(
                service=service,
                rotation=rotation,
                federation=federation,
                sockets=sockets,
                node=node,
            )
        running += _follow_files(group, policy, verification, clock)
        stack.enter_context(
            on_hangup(
                *(() if policy is None else (policy.files.ask,)),
                *(() if verification is None else (verification.files.ask,)),
                *(() if generic is None else (generic.ask,)),
            )
        )
        # Before anybody connects to the node's socket: with many rules this takes long.
        of_rules = build.rule_warnings(config)
        if node is not None:
            await stack.enter_async_context(node.open(grace_seconds=drain.left))
        parts = LivingParts(
            trust_domain=config.trust_domain,
            started=clock.now(),
            clock=clock,
            store=store,
            rotation=rotation,
            service=service,
            unserved=UnservedIdentities([one.entitlement for one in sockets], store),
            authority=lambda: _address(config, client),
            gives_news=roots_source(client) is not None,
            sockets=sockets,
            node_socket="" if node is None else str(config.node_socket),
            policy=None if policy is None else policy.holder,
            memory=memory,
            ahead=None if node is None else node.ahead,
            budgets=owners.budgets,
            node=node,
            lost_sockets=lambda: guard.lost,
            warnings=lambda: (
                *(() if memory is None else memory.missing()),
                *build.evidence_warnings(config, policy),
                *of_rules,
                *notices(),
                *owners.memory.notices,
                *(() if node is None else node.notices()),
                *(() if verification is None else verification.files.notices()),
                *(() if generic is None else generic.notices()),
            ),
            errors=lambda: instruments.errors,
        )
        instruments.watch_agent(parts)
        people = await stack.enter_async_context(
            _admin_socket(config, service, parts.state, drain, guard=guard)
        )
        health = HealthReporter(
            store=store,
            people=people,
            sockets=sockets,
            readiness=parts.readiness,
            told=told,
        )
        if policy is not None:
            stack.callback(policy.holder.listen(health.look_again))
        running += [
            group.create_task(supervised("health", health.run, clock=clock)),
            group.create_task(supervised("garbage collector", owners.collect(clock), clock=clock)),
        ]
        stack.callback(_drain, service, api)
        # The guard must end before our own sockets are closed.
        look = functools.partial(guard.run, health.look_again)
        stack.callback(group.create_task(supervised("socket guard", look, clock=clock)).cancel)
        for listener in (
            metrics_listener(config.metrics, instruments),
            bundle_listener(config.federation.serve, store, config.trust_domain),
            status_page_listener(config.status_page, parts.state),
            health_listener(config.health, lambda: parts.readiness().ready),
        ):
            await stack.enter_async_context(listener)
        _LOGGER.info(
            "the sockets are open",
            extra={"run_dir": str(config.run_dir.absolute()), "workloads": len(sockets)},
        )
        yield RunningAgent(store=store, rotation=rotation, service=service, workloads=sockets)


def _follow_files(
    group: asyncio.TaskGroup,
    policy: AgentPolicy | None,
    verification: Verification | None,
    clock: Clock,
) -> list[asyncio.Task[None]]:
    """Make the tasks that follow policy, revocation lists and collateral, if configured."""
    tasks = []
    if policy is not None:
        tasks.append(group.create_task(policy.run(), name="policy"))
    for name, run in verification.tasks() if verification is not None else ():
        tasks.append(group.create_task(supervised(name, run, clock=clock), name=name))
    return tasks


def _secrets_without_authority(
    service: SecretService,
    tickets: SessionTickets | None,
    generic: GenericSecretFiles | None,
    clock: Clock,
) -> Iterator[tuple[str, Callable[[], Awaitable[object]]]]:
    """Yield name and work of what makes or follows secrets that no authority gives."""
    refresh = functools.partial(service.refresh, trust_changed=False)
    if tickets is not None:
        yield "session tickets", functools.partial(tickets.run, refresh)
    if generic is not None:
        yield "generic secrets", functools.partial(generic.follow, refresh, clock=clock)


def _drain(service: SecretService, api: WorkloadApi) -> None:
    """Tell all streams before their sockets are closed."""
    api.drain()
    service.close()


def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()


@contextlib.asynccontextmanager
async def _workload_sockets(
    config: AgentConfig,
    granted: build.Granted,
    service: SecretService,
    api: WorkloadApi,
    owners: Owners,
    *,
    guard: SocketGuard,
    drain: DrainTime,
) -> AsyncIterator[tuple[WorkloadListening, ...]]:
    opened: list[WorkloadListening] = []
    sockets = config.sockets
    if config.sockets_of_their_own:
        make_directory(config.workloads_directory, sockets.directory_mode, group=sockets.group)
    try:
        for workload in config.sockets_of_their_own:
            may = granted[workload.name]
            opened.append(
                await listen_for(
                    workload, config, service, api, owners, guard=guard, identities=may
                )
            )
            # Opening never waits, and a thousand take 0.2 s: let the authority be asked meanwhile.
            await asyncio.sleep(0)
        yield tuple(opened)
    finally:
        await _close(drain, *(one.listening for one in opened))


@contextlib.asynccontextmanager
async def _admin_socket(
    config: AgentConfig,
    service: SecretService,
    look: Callable[[], AgentState],
    drain: DrainTime,
    *,
    guard: SocketGuard,
) -> AsyncIterator[Listening]:
    more = ((admin.SERVICE, admin.handler(look)),)
    listening = await listen_for_people(config.admin_socket, service, more, guard=guard)
    try:
        yield listening
    finally:
        await _close(drain, listening)


async def _close(drain: DrainTime, *listening: Listening) -> None:
    left = drain.left()
    async with asyncio.TaskGroup() as group:
        for one in listening:
            group.create_task(close(one, grace_seconds=left))


def _address(config: AgentConfig, client: AuthorityClient) -> str:
    connected = client.connected_to if isinstance(client, AttestedAuthority) else None
    return connected or ", ".join(config.authority.addresses)
