"""The port through which the authority is observed, and an observer that does nothing.

Invariant: an observer wraps ports and is told of results; it decides nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from sds.policy.watcher import PolicyWatcher

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime

    from sds.attestation.build import Verification
    from sds.attestation.evidence import Attester, Verifier
    from sds.errors import PolicyError
    from sds.operations.metrics.port import Port
    from sds.operations.readiness import Readiness
    from sds.policy.holder import PolicyHolder
    from sds.policy.trust import AdmittedPolicy


class AuthorityObserver(PolicyWatcher, Protocol):
    """Measures the authority (metrics)."""

    def attester(self, inner: Attester) -> Attester:
        """Wrap the attester, to measure it."""
        ...

    def verifier(self, inner: Verifier) -> Verifier:
        """Wrap the verifier, to measure it."""
        ...

    def decided(self, reason: str) -> None:
        """Count a certificate that was issued (``issued``) or refused (the reason)."""
        ...

    def answered(self, seconds: float) -> None:
        """Note how long a message on a stream waited for its answer."""
        ...

    def watch_readiness(self, readiness: Callable[[], Readiness]) -> None:
        """Ask ``readiness`` whether the authority is ready, whenever metrics are read."""
        ...

    def watch_policy(self, holder: PolicyHolder) -> None:
        """Show the policy that ``holder`` has in force."""
        ...

    def watch_collateral(self, *sources: Verification) -> None:
        """Show the files by which these verifiers work."""
        ...

    def signs_until(
        self, not_after: Callable[[], datetime | None], remaining: Callable[[], float | None]
    ) -> None:
        """Ask these for the end of the issuing certificate, whenever metrics are read."""
        ...

    def watch_port(self, port: Port) -> None:
        """Show the connections of the authority's port."""
        ...


class SilentObserver:
    """Measures nothing."""

    def attester(self, inner: Attester) -> Attester:
        return inner

    def verifier(self, inner: Verifier) -> Verifier:
        return inner

    def decided(self, reason: str) -> None:
        """Do nothing."""

    def answered(self, seconds: float) -> None:
        """Do nothing."""

    def signs_until(
        self, not_after: Callable[[], datetime | None], remaining: Callable[[], float | None]
    ) -> None:
        """Do nothing."""

    def watch_readiness(self, readiness: Callable[[], Readiness]) -> None:
        """Do nothing."""

    def watch_policy(self, holder: PolicyHolder) -> None:
        """Do nothing."""

    def watch_port(self, port: Port) -> None:
        """Do nothing."""

    def watch_collateral(self, *sources: Verification) -> None:
        """Do nothing."""

    def taken(self, policy: AdmittedPolicy, *, now: datetime) -> None:
        """Do nothing."""

    def refused(self, error: PolicyError) -> None:
        """Do nothing."""

    def ended(self) -> None:
        """Do nothing."""


class TimedContext:
    """A stream's context that reports how long each message waited for its answer.

    Everything else of the context is passed through as it is.
    """

    def __init__(
        self, inner: object, answered: Callable[[float], None], timer: Callable[[], float]
    ) -> None:
        self._inner = inner
        self._answered = answered
        self._timer = timer
        self._arrived = timer()

    def __getattr__(self, name: str) -> object:
        """Return an attribute of the wrapped context that is not timed."""
        return getattr(self._inner, name)

    def __aiter__(self) -> TimedContext:
        """Iterate over the messages."""
        return self

    async def __anext__(self) -> object:
        """Return the next message, and start its time."""
        message = await self._inner.__anext__()  # type: ignore[attr-defined]  # the call
        self._arrived = self._timer()
        return message

    def write(self, message: object) -> Awaitable[None]:
        """Write the answer; its time ends before the caller has read it."""
        self._answered(self._timer() - self._arrived)
        written: Awaitable[None] = self._inner.write(message)  # type: ignore[attr-defined]  # the call
        return written
