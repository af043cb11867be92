"""What must be enforced, as an Envoy RBAC filter in JSON: a second way beside the one that serves.

Written from Envoy's documentation of ``envoy.config.rbac.v3`` and from the docstring of
:mod:`sds.policy.authorization`, for tests that compare.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sds.policy.requests import host_regex, path_match
from sds.rules.pattern import format_spiffe_pattern, spiffe_regex

if TYPE_CHECKING:
    from sds.policy.authorized import AuthorizationRule
    from sds.policy.requests import PathMatch, RequestPattern
    from sds.rules.glob import Glob

TYPE = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC"


def http_filter(rules: tuple[AuthorizationRule, ...]) -> dict[str, Any]:
    """The HTTP filter that enforces these rules."""
    policies = {rule.name: policy(rule) for rule in rules}
    config = {"@type": TYPE, "rules": {"action": "ALLOW", "policies": policies}}
    return {"name": "envoy.filters.http.rbac", "typed_config": config}


def policy(rule: AuthorizationRule) -> dict[str, Any]:
    first = {
        "select_expr": {
            "operand": {"ident_expr": {"name": "connection"}},
            "field": "uri_san_peer_certificate",
        }
    }
    domain = {"const_expr": {"string_value": f"spiffe://{rule.trust_domain}/"}}
    return {
        "permissions": [permission(one) for one in rule.requests] or [{"any": True}],
        "principals": [{"authenticated": {"principal_name": name(one)}} for one in rule.principals],
        "condition": {"call_expr": {"function": "startsWith", "target": first, "args": [domain]}},
    }


def name(glob: Glob) -> dict[str, Any]:
    if glob.is_literal:
        return {"exact": format_spiffe_pattern(glob)}
    return {"safe_regex": {"regex": spiffe_regex(glob)}}


def permission(pattern: RequestPattern) -> dict[str, Any]:
    parts = []
    if pattern.methods:
        parts.append(any_of([header(":method", {"exact": one}) for one in pattern.methods]))
    if pattern.paths:
        parts.append(any_of([all_of(list(map(path, path_match(one)))) for one in pattern.paths]))
    if pattern.hosts:
        hosts = [{"safe_regex": {"regex": host_regex(one)}} for one in pattern.hosts]
        parts.append(any_of([header(":authority", one) for one in hosts]))
    if pattern.ports:
        parts.append(any_of([{"destination_port": one} for one in pattern.ports]))
    return all_of(parts)


def path(condition: PathMatch) -> dict[str, Any]:
    value: Any = condition.value
    if condition.kind in {"regex", "not_regex"}:
        value = {"regex": value}
    kind = {"regex": "safe_regex", "not_regex": "safe_regex"}.get(condition.kind, condition.kind)
    rule = {"url_path": {"path": {kind: value}}}
    return {"not_rule": rule} if condition.kind == "not_regex" else rule


def header(what: str, matcher: dict[str, Any]) -> dict[str, Any]:
    return {"header": {"name": what, "string_match": matcher}}


def any_of(rules: list[dict[str, Any]]) -> dict[str, Any]:
    return {"or_rules": {"rules": rules}}


def all_of(rules: list[dict[str, Any]]) -> dict[str, Any]:
    return {"and_rules": {"rules": rules}} if rules else {"any": True}
