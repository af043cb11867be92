"""Counts what happens on xDS streams: the observer that serving reports to.

Invariant: labels come from fixed sets; a client's words are sorted into a few reasons and never
become a label.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sds.serving.observer import Event, Method

if TYPE_CHECKING:
    from sds.operations.metrics.families import AgentFamilies

OTHER_REASON: Final = "other"
# What Envoy 1.36 to 1.40 write into error_detail, in lower case; the first that occurs counts.
_WORDS: Final = (
    ("does not match", "key_mismatch"),
    ("private key", "private_key"),
    ("trusted ca", "trusted_ca"),
    ("trust bundle", "trusted_ca"),
    ("certificate chain", "certificate_chain"),
    ("san matcher", "matchers"),
    ("subject_alt_names", "matchers"),
    ("unexpected sds secret name", "name"),
    ("validation", "malformed"),
)
NACK_REASONS: Final = (*dict.fromkeys(reason for _, reason in _WORDS), OTHER_REASON)


def nack_reason(words: str) -> str:
    """Return the reason label for what a client wrote when it refused a secret."""
    lowered = words.lower()
    return next((reason for word, reason in _WORDS if word in lowered), OTHER_REASON)


class CountingObserver:
    """An :class:`sds.serving.observer.ServingObserver` that counts into metric families."""

    def __init__(self, families: AgentFamilies) -> None:
        """Export every label value from the start, at 0."""
        self._families = families
        self._events = {
            (event, method): families.events.labels(event.value, method.value)
            for event in Event
            for method in Method
        }
        self._nacks = {reason: families.nacks.labels(reason) for reason in NACK_REASONS}
        self._streams = {method: families.streams.labels(method.value) for method in Method}

    def count(self, event: Event, method: Method, amount: int = 1) -> None:
        self._events[event, method].inc(amount)
        if event is Event.STREAM_OPENED:
            self._streams[method].inc(amount)
        elif event is Event.STREAM_CLOSED:
            self._streams[method].dec(amount)

    def nacked(self, words: str) -> None:
        self._nacks[nack_reason(words)].inc()
