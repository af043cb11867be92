"""Runs the authority: joins its parts, owns the TaskGroup, drains.

Invariants: every task lives in one TaskGroup and ends with it; the port is open before the first
signer exists (agents are told ``authority_not_ready``, health says NOT_SERVING); once the drain has
begun, no new stream is accepted, and open ones have ``drain_seconds``.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from grpc_health.v1 import health_pb2_grpc

from sds.ca.connections import Connections
from sds.ca.health import AuthorityHealth, tell_health
from sds.ca.listening import open_listeners
from sds.ca.own_evidence import Prover
from sds.ca.registration import RegistrationAuthority
from sds.ca.server import ExchangeLimits, ExchangeService, handler
from sds.ca.signers import SigningState, follow_roots, keep_signing, roots_teller
from sds.exchange.challenge import NonceTable
from sds.supervision import supervised

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from sds.attestation.evidence import Attester, Verifier
    from sds.backoff import Retry
    from sds.ca.issuance import IssuancePolicy
    from sds.ca.journal import Journal
    from sds.ca.signers import SignerSource
    from sds.ca.tls import ServerTls
    from sds.clock import Clock
    from sds.identity import TrustDomain

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorityParts:
    """The parts of an authority.

    Attributes:
        trust_domain: the trust domain whose certificates it signs.
        listen: ``host:port``; port 0 takes a free one.
        tls: its TLS identity.
        source: the source of its own certificate.
        policy: decides who may ask for what.
        verifier: verifies agents' evidence by the reference values.
        attester: gives its own evidence; None if it has none.
        clock: time.
        max_lifetime: the lifetime of the longest leaf; a nonce lives no longer, and a new root
            settles for this time.
        backdate: how long before now certificates begin to be valid.
        limits: the limits of callers.
        connections: the most connections at once. Of those on which nothing was proven, some end if
            there are too many, so that half of all are for agents.
        nonce_limit: the most nonces in all.
        journal: records what was issued.
        answered: is told how many seconds each message waited for its answer.
        retry: says when to ask again for a certificate of its own; code that notices a change that
            may help tells it.
        drain_seconds: how long open streams have to end by themselves after a stop.
    """

    trust_domain: TrustDomain
    listen: str
    tls: ServerTls
    source: SignerSource
    policy: IssuancePolicy
    verifier: Verifier
    attester: Attester | None
    clock: Clock
    max_lifetime: timedelta
    backdate: timedelta = timedelta(seconds=30)
    limits: ExchangeLimits = ExchangeLimits()  # noqa: RUF009  frozen
    connections: int = 10_064
    nonce_limit: int = 65_536
    journal: Journal
    answered: Callable[[float], None] | None = None
    retry: Retry | None = None
    drain_seconds: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningAuthority:
    """An authority that listens.

    Attributes:
        port: its port.
        signing: its signer.
        service: its streams.
        prover: its own evidence.
        nonces: the outstanding nonces.
        connections: the connections of its port.
    """

    port: int
    signing: SigningState
    service: ExchangeService
    prover: Prover
    nonces: NonceTable
    connections: Connections


@contextlib.asynccontextmanager
async def running_authority(parts: AuthorityParts) -> AsyncIterator[RunningAuthority]:
    """Serve until the block ends, then drain.

    Raises:
        ConfigurationError: the address cannot be listened on.
    """
    signing = SigningState(clock=parts.clock)
    registration = RegistrationAuthority(
        trust_domain=parts.trust_domain,
        signers=signing,
        policy=parts.policy,
        verifier=parts.verifier,
        journal=parts.journal,
        clock=parts.clock,
        tls=parts.tls,
        backdate=parts.backdate,
    )
    prover = Prover(parts.attester, registration.statement)
    nonces = NonceTable(lifetime=parts.max_lifetime.total_seconds(), limit=parts.nonce_limit)
    service = ExchangeService(
        registration=registration,
        prover=prover,
        nonces=nonces,
        clock=parts.clock,
        limits=parts.limits,
    )
    connections = Connections(
        most=parts.connections,
        limits=parts.limits,
        tls=parts.tls.settings,
        now=lambda: parts.clock.now().monotonic,
    )
    server = connections.server
    server.add_generic_rpc_handlers((handler(service, parts.answered),))
    health = AuthorityHealth(watchers=parts.limits.unproven)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    server.at_stop(health.end)
    listeners = await open_listeners(parts.listen)
    port = listeners[0].getsockname()[1]
    async with asyncio.TaskGroup() as tasks:
        telling = _start(tasks, "health", lambda: tell_health(health, signing, parts.clock), parts)
        running = [
            _start(tasks, "prover", prover.run, parts),
            _start(
                tasks,
                "signer",
                lambda: keep_signing(
                    signing,
                    parts.source,
                    clock=parts.clock,
                    settle=parts.max_lifetime,
                    retry=parts.retry,
                ),
                parts,
            ),
        ]
        if (above := roots_teller(parts.source)) is not None:
            follow = functools.partial(
                follow_roots, signing, above, clock=parts.clock, settle=parts.max_lifetime
            )
            running.append(_start(tasks, "roots", follow, parts))
        connections.listen(listeners)
        try:
            yield RunningAuthority(
                port=port,
                signing=signing,
                service=service,
                prover=prover,
                nonces=nonces,
                connections=connections,
            )
        finally:
            telling.cancel()
            health.tell(serving=False)
            service.drain()
            await server.stop(parts.drain_seconds)
            for task in running:
                task.cancel()


def _start(
    tasks: asyncio.TaskGroup,
    name: str,
    run: Callable[[], Awaitable[None]],
    parts: AuthorityParts,
) -> asyncio.Task[None]:
    return tasks.create_task(supervised(name, run, clock=parts.clock), name=name)
