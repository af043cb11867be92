"""The events on streams, and the port for the code that counts them.

Owns the names of the events and the port. Invariants: an observer is told of an event after it
happened and cannot change it; no event contains a secret.
"""

from __future__ import annotations

import enum
from typing import Final, Protocol


class Method(enum.StrEnum):
    """The remote calls that serve secrets, by the label that metrics use."""

    STREAM = "stream_secrets"
    DELTA = "delta_secrets"
    FETCH = "fetch_secrets"
    ECDS_STREAM = "stream_extension_configs"
    ECDS_DELTA = "delta_extension_configs"
    ECDS_FETCH = "fetch_extension_configs"
    ADS_STREAM = "ads_stream"
    ADS_DELTA = "ads_delta"


DELTA_METHODS: Final = frozenset({Method.DELTA, Method.ECDS_DELTA, Method.ADS_DELTA})
ADS_METHODS: Final = frozenset({Method.ADS_STREAM, Method.ADS_DELTA})


class Event(enum.StrEnum):
    """The kinds of events, by the label that metrics use."""

    STREAM_OPENED = "stream_opened"
    STREAM_CLOSED = "stream_closed"
    STREAM_REFUSED = "stream_refused"
    """We ended a stream with a status: malformed, wrong type, limit, not recognised, withdrawn."""
    REQUEST = "request"
    RESPONSE = "response"
    SENT = "resource_sent"
    REMOVED = "resource_removed"
    HEARTBEAT = "heartbeat"
    """We sent a response that only extends the lives of what the client has."""
    HELD = "resource_held"
    """We did not send a resource again, because the client kept it from an earlier stream."""
    ACK = "ack"
    NACK = "nack"
    STALE_NONCE = "stale_nonce"
    ABSENT = "absent"
    """The client asked for a name that does not exist for it (yet)."""
    OTHER_TYPE = "other_type"
    """We left a request for another type on the aggregated stream unanswered."""
    LIMIT = "limit"
    MALFORMED = "malformed"
    WRONG_TYPE = "wrong_type"


# What is counted for every push has a name of its own: to find a member in an enumeration takes
# Python as long as to count it.
REQUEST: Final = Event.REQUEST
RESPONSE: Final = Event.RESPONSE
SENT: Final = Event.SENT
ACK: Final = Event.ACK


class ServingObserver(Protocol):
    """Counts events."""

    def count(self, event: Event, method: Method, amount: int = 1) -> None:
        """Count ``amount`` events of this kind."""
        ...

    def nacked(self, words: str) -> None:
        """Note that a client refused a secret; ``words`` are the client's own."""
        ...


class NullObserver:
    """Counts nothing."""

    def count(self, event: Event, method: Method, amount: int = 1) -> None:
        """Forget it."""

    def nacked(self, words: str) -> None:
        """Forget it."""
