"""The policy as an Envoy RBAC filter, for rules at the level of HTTP requests.

Owns the mapping from who may talk to an identity to ``envoy.extensions.filters.http.rbac.v3.RBAC``
(Envoy documentation, "Role Based Access Control"). Invariant: an empty list of peers gives a
filter that denies every request: with action ALLOW a request that no policy matches is denied.

``principal_name`` is compared with the peer's URI SAN first (Envoy's
``config.rbac.v3.Principal.Authenticated``); where TLS does not authenticate the peer it matches
nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sds.rules.pattern import format_spiffe_pattern, spiffe_regex

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sds.rules.glob import Glob

_TYPE: Final = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC"
NOBODY_REGEX: Final = r"[^\x00-\x{10FFFF}]"
"""RE2 for one character outside all of Unicode: a matcher that cannot match."""


def http_filter(peers: Sequence[Glob]) -> dict[str, Any]:
    """The HTTP filter, in the JSON form of Envoy's API, that lets in exactly these peers."""
    rules: dict[str, Any] = {"action": "ALLOW", "policies": {}}
    if peers:
        rules["policies"]["attested-sds"] = {
            "permissions": [{"any": True}],
            "principals": [
                {"authenticated": {"principal_name": string_matcher(glob)}} for glob in peers
            ],
        }
    return {
        "name": "envoy.filters.http.rbac",
        "typed_config": {"@type": _TYPE, "rules": rules},
    }


def string_matcher(glob: Glob) -> dict[str, Any]:
    """The pattern as ``envoy.type.matcher.v3.StringMatcher`` in its JSON form."""
    if glob.is_literal:
        return {"exact": format_spiffe_pattern(glob)}
    return {"safe_regex": {"regex": spiffe_regex(glob)}}
