"""A status page as an agent with trouble would show it."""

from __future__ import annotations

import datetime as dt

from sds.operations.readiness import Readiness
from sds.operations.state import (
    AgentState,
    BundleState,
    ClientState,
    IdentityState,
    PastError,
    PolicyState,
    SubscriptionState,
)

NOW = dt.datetime(2030, 1, 1, 12, 0, 0, tzinfo=dt.UTC)


def identity(name: str, *, left: float, error: str = "") -> IdentityState:
    """An identity whose hour-long SVID has this part of its life left; none where negative."""
    reason = "authority_unavailable" if error else ""
    base = f"spiffe://shop.example/ns/prod/sa/{name}"
    if left < 0:
        return IdentityState(spiffe_id=base, workloads=(name,), reason=reason, message=error)
    return IdentityState(
        spiffe_id=base,
        dns_names=(f"{name}.prod.svc.cluster.local",),
        workloads=(name,),
        serial="7f3a9c0d5e1b42886f0912ab34cd56ef",
        received_at=NOW - dt.timedelta(hours=1 - left),
        not_after=NOW + dt.timedelta(hours=left),
        renew_at=NOW + dt.timedelta(minutes=max(0.1, left * 60 - 30)),
        reason=reason,
        message=error,
    )


def troubled() -> AgentState:
    """Every state once, and names that try to be markup."""
    down = "the authority at ca.shop.example:8443 does not answer: connection refused"
    return AgentState(
        now=NOW,
        version="0.1.0",
        trust_domain="shop.example",
        started=NOW - dt.timedelta(days=3, hours=4, minutes=5),
        pid=4711,
        readiness=Readiness(("no certificate yet: spiffe://shop.example/ns/prod/sa/new",)),
        draining=False,
        authority="ca.shop.example:8443",
        warnings=("SIMULATED attestation: the evidence of this node proves nothing.",),
        identities=(
            identity("web", left=0.92),
            identity("orders", left=0.55),
            identity("payments", left=0.3, error=down),
            identity("mail", left=0.08, error=down),
            identity("reports", left=-1, error="spiffe_id_not_allowed: no rule for this image"),
            identity("new", left=-1),
            identity("<script>alert(1)</script>", left=0.8),
        ),
        clients=(
            ClientState(
                node="web-7c9d",
                workload="web",
                method="delta_secrets",
                subscriptions=(
                    SubscriptionState(name="default", version="4f2a11-18", state="ACKed"),
                    SubscriptionState(name="ROOTCA", version="4f2a11-2", state="ACKed"),
                ),
            ),
            ClientState(
                node="orders-5d1f",
                workload="orders",
                method="stream_secrets",
                subscriptions=(
                    SubscriptionState(
                        name="default",
                        version="4f2a11-17",
                        state="NACKed",
                        error="Failed to load certificate chain from <inline>",
                    ),
                    SubscriptionState(name="outbound:mail", state="waiting"),
                ),
            ),
        ),
        bundles=(
            BundleState(trust_domain="shop.example", roots=("a1", "b2")),
            BundleState(trust_domain="partner.example", roots=("c3",)),
        ),
        policy=PolicyState(
            epoch=41,
            digest="9b74c9897bac770ffc029102a200c5de9b74c9897bac770ffc029102a200c5de",
            not_after=NOW + dt.timedelta(days=6),
            problem="epoch 40 is lower than 41, which is in force",
        ),
        errors=(
            PastError(at=NOW, about="mail", reason="authority_unavailable", words=down),
            PastError(
                at=NOW - dt.timedelta(minutes=9),
                about="reports",
                reason="spiffe_id_not_allowed",
                words="no rule lets this measurement ask for spiffe://shop.example/…/reports",
            ),
        ),
    )
