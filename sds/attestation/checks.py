"""A verdict as a list of checks.

Owns :class:`Check` and :class:`Verdict`. Invariant: every check that can run is run and listed,
in the order of the specification; a verdict is accepted only where there is at least one check
and every one held. :meth:`Verdict.claims_or_raise` is the only way from a verdict to claims.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sds.errors import EvidenceError, EvidenceMalformedError

if TYPE_CHECKING:
    from sds.attestation.evidence import Claims


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check: what was looked at, found and demanded.

    Attributes:
        name: stable, ``snake_case``.
        found: what the evidence says.
        expected: what is demanded.
        error: why it does not hold, or None.
    """

    name: str
    found: str
    expected: str
    error: EvidenceError | None = None

    @property
    def ok(self) -> bool:
        """Whether it held."""
        return self.error is None


@dataclass(slots=True)
class Checks:
    """Collects checks while evidence is examined."""

    done: list[Check] = field(default_factory=list)

    def add(
        self,
        name: str,
        error: type[EvidenceError],
        *,
        ok: bool,
        found: object,
        expected: object,
        advice: str = "",
    ) -> bool:
        """Record one check; the error says field, found and expected. Returns ``ok``."""
        failure = None
        if not ok:
            failure = error(f"{name}: found {found}, expected {expected}", advice=advice)
        self.done.append(Check(name=name, found=str(found), expected=str(expected), error=failure))
        return ok

    def attempt(self, name: str, error: EvidenceError | None, *, found: str, expected: str) -> bool:
        """Record one check whose error was raised elsewhere. Returns whether it held."""
        self.done.append(Check(name=name, found=found, expected=expected, error=error))
        return error is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The outcome of an examination.

    Attributes:
        kind: kind of the evidence, by its name on the wire.
        checks: all checks that ran, in order.
        claims: what the evidence says; only for display while :attr:`accepted` is False.
    """

    kind: str
    checks: tuple[Check, ...]
    claims: Claims | None

    @property
    def accepted(self) -> bool:
        """Whether every check held, and there was at least one."""
        return bool(self.checks) and self.error is None and self.claims is not None

    @property
    def error(self) -> EvidenceError | None:
        """The error of the first check that failed."""
        return next((check.error for check in self.checks if check.error is not None), None)

    def claims_or_raise(self) -> Claims:
        """The claims of accepted evidence.

        Raises:
            EvidenceError: the error of the first check that failed.
        """
        if self.error is not None:
            raise self.error
        if not self.checks or self.claims is None:
            raise EvidenceMalformedError("nothing was checked")
        return self.claims
