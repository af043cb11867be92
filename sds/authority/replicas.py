"""Several replicas of one authority: which is asked, in which order, and what its failure means.

Owns these decisions; :mod:`sds.authority.attested` connects. Invariants: agents that start together
do not all go to the same replica; one that failed is asked after all others; a replica that cannot
serve does not keep an agent from the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sds.authority.channel import VerifiedTls
from sds.errors import (
    AuthorityAnswerError,
    AuthorityError,
    AuthorityRefusedError,
    AuthorityUnavailableError,
    EvidenceError,
)
from sds.reasons.authority import NO_ANSWER

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sds.authority.attested import AuthoritySettings
    from sds.errors import SdsError
    from sds.exchange.item import IssuedChain

CONNECT_ANEW: Final = frozenset({"authority_evidence"})
"""Failures of a Challenge on a good stream after which a new connection is verified anew."""
ASK_ANOTHER: Final = frozenset({"authority_not_ready", "policy_absent", "policy_expired"})
"""Refusals that another replica may not share; even one address may stand for several."""


def is_better_asked_elsewhere(outcome: IssuedChain | AuthorityError) -> bool:
    """Say whether this replica lacks something that another one may have."""
    return isinstance(outcome, AuthorityRefusedError) and outcome.wire_reason in ASK_ANOTHER


def may_be_the_streams(error: SdsError) -> bool:
    """Say whether a failure on an open stream may not occur on a new one."""
    if isinstance(error, AuthorityRefusedError):
        return error.wire_reason in ASK_ANOTHER
    if isinstance(error, EvidenceError):
        # Its key, its TLS key or its evidence may have changed under this connection.
        return error.reason in CONNECT_ANEW
    # An idle stream may have died unnoticed: its failure must not cost this address.
    return isinstance(error, AuthorityUnavailableError | AuthorityAnswerError)


def most_telling(failures: Sequence[SdsError]) -> SdsError:
    """Choose one error for all: what a person must mend goes before a replica that is down."""
    proofs = [one for one in failures if isinstance(one, EvidenceError)]
    refusals = [one for one in failures if isinstance(one, AuthorityRefusedError)]
    final = [one for one in refusals if not one.retriable]
    if proofs or final or len(failures) == 1:
        return (*proofs, *final, *failures)[0]
    return AuthorityUnavailableError(
        "no authority could be asked: " + "; ".join(failure.message for failure in failures),
        reason=NO_ANSWER if all(one.reason == NO_ANSWER for one in failures) else None,
    )


class ReplicaOrder:
    """The order in which replicas are asked.

    Args:
        settings: has the addresses.
        shuffle: puts the replicas into an order at first.
    """

    def __init__(
        self, settings: AuthoritySettings, shuffle: Callable[[list[tuple[str, ...]]], None]
    ) -> None:
        self._places = _places_of(settings)
        shuffle(self._places)

    def now(self) -> tuple[tuple[str, ...], ...]:
        """Return the addresses to connect to, one after the other; each may have several."""
        return tuple(self._places)

    def failed(self, place: tuple[str, ...]) -> None:
        """Ask this one after all others from now on."""
        self._places.remove(place)
        self._places.append(place)


def _places_of(settings: AuthoritySettings) -> list[tuple[str, ...]]:
    """Return the addresses to connect to, one after the other.

    With attested TLS, each replica stands alone. With verified TLS, all replicas stand together, as
    often as there are replicas: gRPC chooses anew each time, and never one that it knows to be
    down.
    """
    if isinstance(settings.tls, VerifiedTls):
        return [settings.addresses] * len(settings.addresses)
    return [(address,) for address in settings.addresses]
