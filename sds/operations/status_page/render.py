"""The page as HTML (pure functions).

Invariants: every value is escaped; lists are bounded and say what was left out; nothing is loaded
and no script runs (the page says so to the browser in its Content-Security-Policy); meaning is
never carried by colour alone.
"""

from __future__ import annotations

from datetime import timedelta
from html import escape
from typing import TYPE_CHECKING, Final

from sds.operations.status_page.style import STYLE
from sds.operations.status_page.view import Health

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from sds.operations.status_page.view import (
        ClientView,
        ErrorView,
        IdentityView,
        PageView,
        PolicyView,
        SubscriptionView,
    )

MAX_ROWS: Final = 500
_WORDS: Final = {
    Health.GOOD: ("good", "✓"),
    Health.LATE: ("late", "!"),
    Health.BAD: ("bad", "✗"),
    Health.WAITING: ("waiting", "…"),
}
_STATES: Final = {"ACKed": "good", "sent": "late", "NACKed": "bad", "waiting": "waiting"}


def page(view: PageView, *, nonce: str, refresh_seconds: int = 5) -> str:
    """The whole document; ``nonce`` admits our style sheet to the page's own policy."""
    state = ("good", "ready") if view.ready else ("bad", "not ready")
    counts = [
        ("identities", str(len(view.identities))),
        ("without an SVID", str(sum(i.not_after is None for i in view.identities))),
        ("subscribers", str(len(view.clients))),
        ("policy epoch", "none" if view.policy is None else str(view.policy.epoch)),
    ]
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="refresh" content="{refresh_seconds}">
<meta name="color-scheme" content="light dark">
<title>{escape(view.trust_domain)}: {state[1]}</title>
<style nonce="{escape(nonce)}">{STYLE}</style></head><body>
<header><h1>attested-sds <span class="domain">{escape(view.trust_domain)}</span></h1>
<p class="chip {state[0]}" id="readiness">{state[1]}</p>
<p class="quiet">version {escape(view.version)} · up {duration(view.uptime)} ·
authority {escape(view.authority)} · {view.now:%Y-%m-%d %H:%M:%S} UTC</p></header>
<main>{_notices(view.notices)}
<section class="tiles">{"".join(_tile(*count) for count in counts)}</section>
{_identities(view.identities, view.now)}
{_clients(view.clients)}
{_policy(view.policy, view.bundles, view.now)}
{_errors(view.errors)}
</main></body></html>
"""


def duration(value: timedelta) -> str:
    """A length of time for people: the two largest units, ``0 s`` where it is over."""
    seconds = int(value.total_seconds())
    if seconds <= 0:
        return "0 s"
    parts = []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        number, seconds = divmod(seconds, size)
        if number:
            parts.append(f"{number} {unit}")
    return " ".join(parts[:2])


def _tile(label: str, value: str) -> str:
    return f'<div class="tile"><b>{escape(value)}</b><span>{escape(label)}</span></div>'


def _notices(notices: Iterable[str]) -> str:
    return "".join(f'<p class="notice">{escape(notice)}</p>' for notice in notices)


def _table(title: str, head: Sequence[str], rows: Sequence[str], *, empty: str, anchor: str) -> str:
    if not rows:
        body = f'<p class="quiet">{escape(empty)}</p>'
    else:
        cells = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
        body = f"<div class=scroll><table><thead><tr>{cells}</tr></thead>"
        body += f"<tbody>{''.join(rows[:MAX_ROWS])}</tbody></table></div>"
        if len(rows) > MAX_ROWS:
            body += f'<p class="quiet">{len(rows) - MAX_ROWS} more are not shown.</p>'
    return f'<section id="{anchor}"><h2>{escape(title)}</h2>{body}</section>'


def _identities(identities: Sequence[IdentityView], now: datetime) -> str:
    ordered = sorted(identities, key=lambda i: (i.remaining(now), i.spiffe_id))
    return _table(
        "Identities",
        ("SPIFFE ID", "workloads", "life left", "", "serial", "next"),
        [_identity(identity, now) for identity in ordered],
        empty="No identity is configured or connected.",
        anchor="identities",
    )


def _identity(identity: IdentityView, now: datetime) -> str:
    health = identity.health(now)
    word, sign = _WORDS[health]
    left = duration(identity.not_after - now) if identity.not_after else "no SVID"
    names = "".join(f"<br><small>{escape(name)}</small>" for name in identity.dns_names)
    error = f'<br><small class="words">{escape(identity.error)}</small>' if identity.error else ""
    soon = duration(identity.next_attempt - now) if identity.next_attempt else ""
    return (
        f'<tr><td><span class="name">{escape(identity.spiffe_id)}</span>{names}{error}</td>'
        f"<td>{escape(', '.join(identity.workloads))}</td>"
        f"<td>{_bar(identity.remaining(now), health)}</td>"
        f'<td class="number"><span class="chip {word}">{sign} {escape(left)}</span></td>'
        f'<td><code title="{escape(identity.serial)}">{escape(identity.serial[:16])}</code></td>'
        f'<td class="number">{"in " + soon if soon else ""}</td></tr>'
    )


def _bar(part: float, health: Health) -> str:
    percent = round(part * 100)
    return (
        f'<svg class="bar {health.value}" viewBox="0 0 100 8" preserveAspectRatio="none" '
        f'role="img" aria-label="{percent} percent of its life left">'
        f'<rect class="track" width="100" height="8" rx="2"/>'
        f'<rect class="left" width="{percent}" height="8" rx="2"/></svg>'
    )


def _clients(clients: Sequence[ClientView]) -> str:
    rows = [
        _subscription(client, subscription, first=index == 0)
        for client in sorted(clients, key=lambda c: (c.workload, c.node))
        for index, subscription in enumerate(client.subscriptions)
    ]
    return _table(
        "Subscribers",
        ("workload", "node", "secret", "version", "state"),
        rows,
        empty="No proxy is connected.",
        anchor="subscribers",
    )


def _subscription(client: ClientView, subscription: SubscriptionView, *, first: bool) -> str:
    error = (
        f'<br><small class="words">{escape(subscription.error)}</small>'
        if subscription.error
        else ""
    )
    who = (client.workload, client.node) if first else ("", "")
    kind = _STATES.get(subscription.state, "waiting")
    return (
        f"<tr><td>{escape(who[0])}</td><td>{escape(who[1])}</td>"
        f'<td><span class="name">{escape(subscription.name)}</span>{error}</td>'
        f"<td><code>{escape(subscription.version)}</code></td>"
        f'<td><span class="chip {kind}">{escape(subscription.state)}</span></td></tr>'
    )


def _policy(policy: PolicyView | None, bundles: Sequence[tuple[str, int]], now: datetime) -> str:
    rows = []
    if policy is not None:
        ends = "does not end" if policy.not_after is None else _ends(policy.not_after - now)
        rows += [
            _fact("epoch in force", str(policy.epoch)),
            _fact("digest", policy.digest),
            _fact("ends", ends),
        ]
        if policy.problem:
            rows.append(_fact("refused", policy.problem))
    rows += [
        _fact(f"bundle of {name}", f"{count} root{'s' if count != 1 else ''}")
        for name, count in bundles
    ]
    return _table(
        "Policy and bundles", ("", ""), rows, empty="No policy is configured.", anchor="policy"
    )


def _ends(left: timedelta) -> str:
    return f"in {duration(left)}" if left > timedelta(0) else "expired"


def _fact(name: str, value: str) -> str:
    return f'<tr><td>{escape(name)}</td><td class="name">{escape(value)}</td></tr>'


def _errors(errors: Sequence[ErrorView]) -> str:
    rows = [
        f'<tr><td class="number">{error.at:%H:%M:%S}</td><td>{escape(error.about)}</td>'
        f"<td><code>{escape(error.reason)}</code></td>"
        f'<td class="words">{escape(error.words)}</td></tr>'
        for error in sorted(errors, key=lambda e: e.at, reverse=True)
    ]
    return _table(
        "Last errors",
        ("at", "about", "reason", "what happened"),
        rows,
        empty="None since the agent started.",
        anchor="errors",
    )
