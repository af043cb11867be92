"""The port through which the authority is observed, and an observer that does nothing.

Invariant: an observer wraps ports and hears of results; it decides nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from sds.policy.watcher import PolicyWatcher

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from sds.attestation.evidence import Attester, Verifier
    from sds.errors import PolicyError
    from sds.operations.metrics.collateral import CollateralSource
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
        """One certificate was issued (``issued``) or refused (why)."""
        ...

    def answered(self, seconds: float) -> None:
        """A message on a stream was answered after so long."""
        ...

    def watch_readiness(self, readiness: Callable[[], Readiness]) -> None:
        """Ask ``readiness`` whether the authority is ready, whenever that is shown."""
        ...

    def watch_policy(self, holder: PolicyHolder) -> None:
        """Show the policy that ``holder`` has in force."""
        ...

    def watch_collateral(self, *sources: CollateralSource) -> None:
        """These judge evidence by files."""
        ...

    def signs_until(self, not_after: Callable[[], datetime | None]) -> None:
        """This tells the end of the issuing certificate, whenever it is asked."""
        ...


class SilentObserver:
    """Measures nothing."""

    def attester(self, inner: Attester) -> Attester:
        """As it is."""
        return inner

    def verifier(self, inner: Verifier) -> Verifier:
        """As it is."""
        return inner

    def decided(self, reason: str) -> None:
        """Forget it."""

    def answered(self, seconds: float) -> None:
        """Forget it."""

    def signs_until(self, not_after: Callable[[], datetime | None]) -> None:
        """Forget it."""

    def watch_readiness(self, readiness: Callable[[], Readiness]) -> None:
        """Forget it."""

    def watch_policy(self, holder: PolicyHolder) -> None:
        """Forget it."""

    def watch_collateral(self, *sources: CollateralSource) -> None:
        """Forget them."""

    def taken(self, policy: AdmittedPolicy, *, now: datetime) -> None:
        """Forget it."""

    def refused(self, error: PolicyError) -> None:
        """Forget it."""

    def ended(self) -> None:
        """Forget it."""


class TimedContext:
    """A stream's context that tells how long each message waited for its answer.

    Everything else of the context is passed through as it is.
    """

    def __init__(
        self, inner: object, answered: Callable[[float], None], timer: Callable[[], float]
    ) -> None:
        """``inner``: gRPC's context."""
        self._inner = inner
        self._answered = answered
        self._timer = timer
        self._arrived = timer()

    def __getattr__(self, name: str) -> object:
        """Return an attribute of the wrapped context that is not timed."""
        return getattr(self._inner, name)

    async def read(self) -> object:
        """Return the next message, and start its time."""
        message = await self._inner.read()  # type: ignore[attr-defined]  # gRPC's context
        self._arrived = self._timer()
        return message

    async def write(self, message: object) -> None:
        """Write the answer; its time ends before the caller has read it."""
        self._answered(self._timer() - self._arrived)
        await self._inner.write(message)  # type: ignore[attr-defined]  # gRPC's context
