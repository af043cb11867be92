"""A verdict as a list of checks: what was checked, found and required, and what failed.

Owns :class:`Checks` and :class:`Verdict`. Invariants: every check that can run is run and listed,
in the order of the specification; a verdict is accepted only if there is at least one check and
every one passed; :meth:`Verdict.claims_or_raise` is the only way from a verdict to claims. Text
is made only if somebody reads it or a check fails.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from sds.errors import EvidenceError, EvidenceMalformedError, without_frames

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sds.attestation.evidence import Claims

ANY: Final = "any"
"""The text of a requirement that requires nothing."""
_SHOWN: Final = 4


class Check(NamedTuple):
    """One check: what was checked, found and required.

    Verification makes dozens of these for each piece of evidence. A tuple is made in a third of the
    time of a frozen dataclass.

    Attributes:
        name: a stable name in ``snake_case``.
        found: what the evidence says, or a function that returns it.
        expected: what is required, or a function that returns it.
        error: why it failed, or None.
    """

    name: str
    found: object
    expected: object
    error: EvidenceError | None = None

    @property
    def ok(self) -> bool:
        """Say whether the check passed."""
        return self.error is None

    @property
    def found_text(self) -> str:
        """Return what the evidence says, as text."""
        return text(self.found)

    @property
    def expected_text(self) -> str:
        """Return what is required, as text."""
        return text(self.expected)


def text(said: object | Callable[[], object]) -> str:
    """Return a value as text; a function is called for its value."""
    return str(said() if callable(said) else said)


@dataclass(slots=True)
class Checks:
    """Collects checks while evidence is examined."""

    done: list[Check] = field(default_factory=list)

    def add(
        self,
        name: str,
        reason: str,
        *,
        ok: bool,
        found: object,
        expected: object,
        advice: str = "",
    ) -> bool:
        """Record one check, whose error names field, found and expected; return ``ok``.

        ``found`` and ``expected`` are values, or functions that are called when the text is read.
        """
        failure = None
        if not ok:
            failure = EvidenceError(
                f"{name}: found {text(found)}, expected {text(expected)}",
                reason=reason,
                advice=advice,
            )
        self.done.append(Check(name, found, expected, failure))
        return ok

    def attempt(
        self, name: str, error: EvidenceError | None, *, found: object, expected: object
    ) -> bool:
        """Record one check whose error was raised elsewhere, and say whether it passed."""
        self.done.append(Check(name, found, expected, error))
        return error is None

    def among(self, name: str, reason: str, *, found: str, accepted: Iterable[str]) -> bool:
        """Record whether ``found`` is one of ``accepted``; an empty one requires nothing."""
        listed = tuple(accepted)
        return self.add(
            name,
            reason,
            ok=not listed or found in listed,
            found=found,
            expected=lambda: one_of(listed) if listed else ANY,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The outcome of an examination.

    Attributes:
        kind: the kind of the evidence, by its name on the wire.
        checks: all checks that ran, in order.
        claims: what the evidence says; only for display while :attr:`accepted` is False.
    """

    kind: str
    checks: tuple[Check, ...]
    claims: Claims | None

    @property
    def accepted(self) -> bool:
        """Say whether every check passed, and there was at least one."""
        return bool(self.checks) and self.error is None and self.claims is not None

    @property
    def error(self) -> EvidenceError | None:
        """Return the error of the first check that failed."""
        return next((check.error for check in self.checks if check.error is not None), None)

    def claims_or_raise(self) -> Claims:
        """Return the claims of accepted evidence.

        Raises:
            EvidenceError: the error of the first check that failed.
        """
        if self.error is not None:
            raise without_frames(self.error)  # it may be one that every evidence gets
        if not self.checks or self.claims is None:
            raise EvidenceMalformedError("nothing was checked")
        return self.claims


def one_of(values: Iterable[object]) -> str:
    """Return ``a or b or c`` for a message, shortened if there are many."""
    listed = [str(value) for value in values]
    more = f" or {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return " or ".join(listed[:_SHOWN]) + more or "nothing"
