"""What happens on the streams, for those who count it.

Owns the names of the events and the port. Invariant: an observer hears of an event after it
happened and cannot change it; no event carries a secret.
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
    """What can happen, by the label that metrics use."""

    STREAM_OPENED = "stream_opened"
    STREAM_CLOSED = "stream_closed"
    STREAM_REFUSED = "stream_refused"
    """Ended by us with a status: malformed, wrong type, limit, not recognised, withdrawn."""
    REQUEST = "request"
    RESPONSE = "response"
    SENT = "resource_sent"
    REMOVED = "resource_removed"
    HEARTBEAT = "heartbeat"
    """A response that only extends the lives of what the client has."""
    HELD = "resource_held"
    """Not sent again: the client had kept it from an earlier stream."""
    ACK = "ack"
    NACK = "nack"
    STALE_NONCE = "stale_nonce"
    ABSENT = "absent"
    """A name was asked for that does not exist for this caller (yet)."""
    OTHER_TYPE = "other_type"
    """A request of another type on the aggregated stream, left unanswered."""
    LIMIT = "limit"
    MALFORMED = "malformed"
    WRONG_TYPE = "wrong_type"


class ServingObserver(Protocol):
    """The port: counts events."""

    def count(self, event: Event, method: Method, amount: int = 1) -> None:
        """``amount`` of these happened."""
        ...

    def nacked(self, words: str) -> None:
        """A client refused a secret, in these words of its own."""
        ...


class NullObserver:
    """Counts nothing."""

    def count(self, event: Event, method: Method, amount: int = 1) -> None:
        """Forget it."""

    def nacked(self, words: str) -> None:
        """Forget it."""
