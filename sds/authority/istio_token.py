"""Explains what is wrong with a service-account token, for authorities that only say "no".

Owns one diagnosis. Invariants: it decides nothing: it does not check the signature, the token is
sent whatever its content, and the diagnosis is used only after a refusal; it repeats no part of the
token except its audience, subject and times.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import jwt

if TYPE_CHECKING:
    from collections.abc import Mapping

_SERVICE_ACCOUNT_PARTS: Final = 4
"""The parts of ``system:serviceaccount:<namespace>:<name>`` (Kubernetes' user names)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenProblem:
    """A visible fault of a refused token.

    Attributes:
        text: what is wrong, in words.
        passes: whether it passes by itself (the kubelet replaces a token that expires).
    """

    text: str
    passes: bool


def bearer_problem(token: str, *, audience: str, now: datetime) -> TokenProblem | None:
    """Return what is visibly wrong with the token at the time ``now``, or None.

    The claims are those of RFC 7519, section 4.1, and the rules those of Istio's JWT authenticator.
    """
    try:
        claims = jwt.decode(
            token,
            options={
                "verify_signature": False,
                "verify_exp": False,
                "verify_nbf": False,
                "verify_iat": False,
                "verify_aud": False,
            },
        )
    except (jwt.InvalidTokenError, ValueError, TypeError, RecursionError):
        return TokenProblem(text="the token file does not contain a JWT", passes=False)
    return _out_of_time(claims, now) or _wrong_audience(claims, audience) or _no_account(claims)


def _out_of_time(claims: Mapping[str, object], now: datetime) -> TokenProblem | None:
    expires, begins = _time(claims.get("exp")), _time(claims.get("nbf"))
    if expires is not None and expires <= now:
        return TokenProblem(
            text=f"the token expired at {expires:%Y-%m-%dT%H:%M:%SZ}; "
            "check that the token volume is still refreshed",
            passes=True,
        )
    if begins is not None and begins > now:
        return TokenProblem(
            text=f"the token is not valid before {begins:%Y-%m-%dT%H:%M:%SZ}; compare the clocks",
            passes=True,
        )
    return None


def _wrong_audience(claims: Mapping[str, object], audience: str) -> TokenProblem | None:
    found = claims.get("aud")
    if not isinstance(found, list):
        return TokenProblem(text="the token's audience is not a list", passes=False)
    if audience not in found:
        return TokenProblem(
            text=f"the token is for audience {', '.join(map(repr, found))}, not {audience!r}; "
            "set serviceAccountToken.audience of the projected volume",
            passes=False,
        )
    return None


def _no_account(claims: Mapping[str, object]) -> TokenProblem | None:
    subject = str(claims.get("sub", ""))
    parts = subject.split(":")
    if parts[:2] == ["system", "serviceaccount"] and len(parts) == _SERVICE_ACCOUNT_PARTS:
        return None
    return TokenProblem(
        text=f"the token's subject {subject!r} is not a service account", passes=False
    )


def _time(value: object) -> datetime | None:
    """Convert a NumericDate (seconds since the epoch) to a time."""
    if not isinstance(value, int | float):
        return None
    try:
        return datetime.fromtimestamp(value, UTC)
    except (OverflowError, ValueError, OSError):
        return None
