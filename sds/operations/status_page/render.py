"""Renders the page as HTML by Jinja2 with autoescape, and gives the words of the template.

Invariants: every value is escaped, its control characters too; lists are bounded and say how many
entries they leave out; nothing is loaded and no script runs (the page says so to the browser in its
Content-Security-Policy); meaning is never carried by colour alone.
"""

from __future__ import annotations

from datetime import timedelta
from importlib.resources import files
from typing import TYPE_CHECKING, Final

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from sds.operations.state import IdentityHealth
from sds.operations.status_page.style import STYLE
from sds.printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sds.operations.state import AgentState

MAX_ROWS: Final = 500
_SIGNS: Final = {
    IdentityHealth.GOOD: "✓",
    IdentityHealth.LATE: "!",
    IdentityHealth.BAD: "✗",
    IdentityHealth.WAITING: "…",
}
_KINDS: Final = {"ACKed": "good", "sent": "late", "NACKed": "bad", "waiting": "waiting"}


def _shown(value: object) -> object:
    """Return a value as it is shown: what others say turns no text and controls no terminal."""
    return printable(value) if type(value) is str else value  # not Markup, which is our own


_TEMPLATE: Final = Environment(
    autoescape=True, undefined=StrictUndefined, finalize=_shown
).from_string(files(__package__).joinpath("page.html").read_text(encoding="utf-8"))


def page(state: AgentState, *, nonce: str) -> str:
    """Render the whole document; ``nonce`` admits our style sheet to the page's own policy."""
    identities = sorted(state.identities, key=lambda i: (i.remaining(state.now), i.spiffe_id))
    clients = sorted(state.clients, key=lambda c: (c.workload, c.node))
    return _TEMPLATE.render(
        state=state,
        nonce=nonce,
        style=Markup(STYLE),  # noqa: S704  our own constant
        readiness="ready" if state.readiness.ready else "not ready",
        tiles=(
            ("identities", len(state.identities)),
            (
                "without an SVID",
                sum(one.wanted and one.not_after is None for one in state.identities),
            ),
            ("subscribers", len(state.clients) + state.unlisted),
            ("policy epoch", "none" if state.policy is None else state.policy.epoch),
        ),
        identities=identities[:MAX_ROWS],
        clients=clients[:MAX_ROWS],
        facts=list(_facts(state)),
        errors=sorted(state.errors, key=lambda error: error.at, reverse=True)[:MAX_ROWS],
        max_rows=MAX_ROWS,
        signs=_SIGNS,
        kinds=_KINDS,
        duration=duration,
    )


def duration(value: timedelta) -> str:
    """Return a length of time for people: the two largest units, ``0 s`` if it is over."""
    seconds = int(value.total_seconds())
    if seconds <= 0:
        return "0 s"
    parts = []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        number, seconds = divmod(seconds, size)
        if number:
            parts.append(f"{number} {unit}")
    return " ".join(parts[:2])


def _facts(state: AgentState) -> Iterator[tuple[str, str]]:
    """Return facts about policy and bundles, as names and values."""
    policy = state.policy
    if policy is not None:
        yield "epoch", str(policy.epoch) if policy.epoch else "none was in force"
        yield "digest", policy.digest
        yield "in force", "no" if policy.not_after is None else _ends(policy.not_after - state.now)
        if policy.problem:
            yield "refused", policy.problem
    for bundle in state.bundles:
        number = len(bundle.roots)
        yield f"bundle of {bundle.trust_domain}", f"{number} root{'s' if number != 1 else ''}"


def _ends(left: timedelta) -> str:
    return f"ends in {duration(left)}" if left > timedelta(0) else "expired"
