"""Says what is wrong with a service-account token, for authorities that only say "no".

Owns one diagnosis. Invariant: it decides nothing: the signature is not checked, the token is sent
whatever it holds, and only after a refusal is the diagnosis put into words. No part of the token
but its audience, subject and times is ever repeated.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import jwt

if TYPE_CHECKING:
    from collections.abc import Mapping

_SERVICE_ACCOUNT_PARTS: Final = 4
"""``system:serviceaccount:<namespace>:<name>`` (Kubernetes, service-account user names)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenProblem:
    """What a refused token shows.

    Attributes:
        text: what is wrong, in words.
        passes: whether it goes away by itself (the kubelet replaces a token that runs out).
    """

    text: str
    passes: bool


def bearer_problem(token: str, *, audience: str, now: datetime) -> TokenProblem | None:
    """Return what is visibly wrong with the token at the time ``now``, or None.

    Claims as RFC 7519, section 4.1, has them; the rules are those of Istio's JWT authenticator.
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
            "is the token volume still refreshed?",
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
