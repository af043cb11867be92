"""Logs recognised and refused callers, and tells a caller why it is refused.

Owns :class:`RecognitionLog` and :func:`why_not`. Invariants: an owner that connects again and again
with the same outcome causes one line in an interval, which says how often that happened; callers
that no rule matches cause a bounded number of lines, however many users they come as.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from sds.errors import WorkloadError
from sds.repeats import Repeats

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sds.workload.entitlement import Selector
    from sds.workload.facts import Facts
    from sds.workload.mapping import Decision
    from sds.workload.peer import Peer

_LOG = logging.getLogger("sds.workload.recognition")
_STRANGERS: Final = 64
"""How many owners without an identity are logged apart in an interval."""
_TEXT_SELECTORS: Final = 24
_TEXT_CHARACTERS: Final = 1500


class RecognitionLog:
    """Logs each change of a decision about a caller."""

    def __init__(self) -> None:
        self._said = Repeats()
        self._said_of_strangers = Repeats(keys=_STRANGERS)

    def tell(
        self, peer: Peer, facts: Facts, decision: Decision, before: Decision, *, now: float
    ) -> None:
        """Log a decision that differs from the one ``before``.

        Args:
            peer: the caller that it is about.
            facts: the facts that it rests on.
            decision: the decision.
            before: the last decision about the same connection.
            now: monotonic seconds.
        """
        if decision == before or (decision.undetermined and _same(decision, before)):
            return
        times = self._times(peer.owner, decision, now)
        if times is None and not decision.problems:
            return
        extra = {
            "pid": peer.pid,
            "caller": facts.title,
            "selectors": describe_selectors(facts.selectors),
        }
        if times is not None:
            _tell(decision, {**extra, "owner": peer.owner, "times": times})
        for problem in decision.problems:
            if self._times(problem, decision, now) is not None:
                about = {**extra, "problem": problem}
                _LOG.warning("a workload rule did not give all its names", extra=about)

    def _times(self, about: str, decision: Decision, now: float) -> int | None:
        """Return how often this decision was made since the last log line, if one is due."""
        undetermined = decision.undetermined
        why = decision.granted if undetermined is None else undetermined.reason
        said = self._said if decision.granted else self._said_of_strangers
        return said.due((about, why), now=now)


def _tell(decision: Decision, extra: dict[str, object]) -> None:
    if decision.granted:
        extra["identities"] = [str(identity.spiffe_id) for identity in decision.identities]
        extra["rules"] = [grant.rule for grant in decision.granted]
        _LOG.info("a caller was recognised", extra=extra)
    elif decision.undetermined is not None:
        extra["why"] = decision.undetermined
        _LOG.warning("a caller cannot be recognised yet", extra=extra)
    else:
        _LOG.warning("no workload rule matches a caller", extra=extra)


def _same(one: Decision, other: Decision) -> bool:
    """Say whether both are undetermined for the same reason; each look makes a new error."""
    return str(one.undetermined) == str(other.undetermined) and one.problems == other.problems


def why_not(facts: Facts, decision: Decision, waited: float) -> WorkloadError:
    """Make the error for a caller that has no identity.

    Args:
        facts: what was found about it.
        decision: what was decided.
        waited: the seconds that it waited; 0 for no wait.
    """
    found = describe_selectors(facts.selectors)
    held = f" within {waited:g} s" if waited else ""
    if (why := decision.undetermined) is not None:
        return WorkloadError(
            f"this caller could not be recognised{held}: {why.reason}; found: {found}",
            advice="the agent's log and `sds status` say what it waits for",
            reason="undetermined",
        )
    return WorkloadError(
        "; ".join((f"no workload rule matches this caller{held}", *facts.hints, f"found: {found}")),
        advice="compare with the rules; `sds whoami` shows this at any time",
        reason="no_match",
    )


def describe_selectors(selectors: Iterable[Selector]) -> str:
    """Return selectors as one bounded line, for logs and for the caller itself."""
    texts = sorted(str(selector) for selector in selectors)
    shown = ", ".join(texts[:_TEXT_SELECTORS])
    if len(shown) > _TEXT_CHARACTERS:
        shown = shown[:_TEXT_CHARACTERS] + "…"
    if len(texts) > _TEXT_SELECTORS:
        shown += f" and {len(texts) - _TEXT_SELECTORS} more"
    return shown or "nothing"
