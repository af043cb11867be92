"""The photograph behind the status page: living parts of the agent, as plain values.

Invariant: reads only; nothing secret is copied (the view's types have no place for it).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import sds
from sds.errors import PolicyError
from sds.operations.status_page.view import (
    ClientView,
    ErrorView,
    IdentityView,
    PageView,
    PolicyView,
    SubscriptionView,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from sds.clock import Instant
    from sds.identity import Identity, TrustDomain
    from sds.operations.instruments import AgentInstruments
    from sds.policy.holder import PolicyHolder
    from sds.secrets.rotation import Rotation
    from sds.serving.service import SecretService
    from sds.serving.subscription import Watched


def photograph(
    *,
    now: Instant,
    started: Instant,
    trust_domain: TrustDomain,
    authority: str,
    notices: Sequence[str],
    instruments: AgentInstruments,
    rotation: Rotation,
    service: SecretService,
    policy: PolicyHolder | None,
) -> PageView:
    """What the agent is doing at this moment.

    Args:
        now: the moment.
        started: when the agent started.
        trust_domain: its own.
        authority: who is asked, for people.
        notices: what must not be overlooked (simulated attestation, unlocked memory).
        instruments: the errors that were seen, and the store.
        rotation: identities.
        service: streams.
        policy: policy, where there is one.
    """
    holders = _holders(service)
    return PageView(
        now=now.wall,
        version=sds.__version__,
        trust_domain=trust_domain,
        ready=rotation.ready,
        uptime=now.wall - started.wall,
        authority=authority,
        notices=tuple(notices),
        identities=tuple(
            IdentityView(
                spiffe_id=str(status.identity.spiffe_id),
                dns_names=status.identity.dns_names,
                workloads=tuple(sorted(holders.get(status.identity, ()))),
                serial="" if status.serial is None else f"{status.serial:x}",
                not_after=status.not_after,
                received_at=_received(instruments, status.identity),
                next_attempt=status.renew_at,
                error=f"{status.reason}: {status.message}" if status.reason else "",
            )
            for status in rotation.status()
        ),
        clients=tuple(_clients(service)),
        bundles=tuple(
            (str(name), len(stored.bundle.roots))
            for name, stored in sorted(instruments.store.bundles().items())
        ),
        policy=None if policy is None else _policy(policy),
        errors=tuple(
            ErrorView(at=past.at, about=past.about, reason=past.reason, words=past.words)
            for past in instruments.errors
        ),
    )


def _received(instruments: AgentInstruments, identity: Identity) -> datetime | None:
    stored = instruments.store.svid(identity)
    return None if stored is None else stored.svid.received_at


def _holders(service: SecretService) -> dict[Identity, set[str]]:
    found: dict[Identity, set[str]] = {}
    for hub in service.hubs():
        for identity in hub.caller.identities:
            found.setdefault(identity, set()).add(hub.caller.name)
    return found


def _clients(service: SecretService) -> Iterable[ClientView]:
    for hub in service.hubs():
        for stream in hub.streams:
            yield ClientView(
                node=stream.node.id,
                workload=hub.caller.name,
                method=stream.method.value,
                subscriptions=tuple(
                    _subscription(watched) for watched in sorted(stream.subscription.watched())
                ),
            )


def _subscription(watched: Watched) -> SubscriptionView:
    if watched.refused is not None and watched.refused == watched.sent:
        state = "NACKed"
    elif watched.sent is None and watched.acked is None:
        state = "waiting"
    else:
        state = "ACKed" if watched.acked == watched.sent else "sent"
    return SubscriptionView(
        name=watched.name,
        version=watched.sent or watched.acked or "",
        state=state,
        error=watched.error if state == "NACKed" else "",
    )


def _policy(holder: PolicyHolder) -> PolicyView:
    try:
        end = holder.in_force().not_after
    except PolicyError:
        end = None
    problem = "" if holder.last_error is None else str(holder.last_error)
    return PolicyView(
        epoch=holder.epoch, digest=holder.digest.hex(), not_after=end, problem=problem
    )
