"""Encodes what an Envoy must enforce as RBAC filters.

Owns the encoding of :class:`sds.policy.authorized.Authorization` as
``envoy.extensions.filters.http.rbac.v3.RBAC`` and ``envoy.extensions.filters.network.rbac.v3.RBAC``
in a ``envoy.config.core.v3.TypedExtensionConfig``. Invariants: ``rules`` is always present, because
an RBAC filter without rules allows everything while one with empty rules denies everything; a
network filter allows nothing that depends on methods, paths or hosts, because it cannot see them;
equal authorizations give equal bytes.

Sources: Envoy's "Role Based Access Control" for both filters and ``envoy/config/rbac/v3``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from envoy.config.core.v3 import extension_pb2
from envoy.config.rbac.v3 import rbac_pb2
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2 as http_rbac_pb2
from envoy.extensions.filters.network.rbac.v3 import rbac_pb2 as network_rbac_pb2

from sds.policy.requests import host_regex, path_match
from sds.rules.pattern import format_spiffe_pattern, spiffe_regex
from sds.serving.encode import set_regex

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sds.policy.authorized import Authorization, AuthorizationRule
    from sds.policy.requests import PathMatch, RequestPattern
    from sds.rules.glob import Glob

EXTENSION_TYPE: Final = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig"
TCP_STATISTICS: Final = "authorization."


def http_filter(name: str, authorization: Authorization) -> bytes:
    """Encode the HTTP filter as a TypedExtensionConfig under this name."""
    config = http_rbac_pb2.RBAC()
    _fill(config, authorization, _http_permissions)
    return _extension(name, config)


def tcp_filter(name: str, authorization: Authorization) -> bytes:
    """Encode the network filter as a TypedExtensionConfig under this name."""
    config = network_rbac_pb2.RBAC(stat_prefix=TCP_STATISTICS)
    _fill(config, authorization, _tcp_permissions)
    return _extension(name, config)


def _extension(name: str, config: Any) -> bytes:
    extension = extension_pb2.TypedExtensionConfig(name=name)
    extension.typed_config.Pack(config, deterministic=True)
    encoded: bytes = extension.SerializeToString(deterministic=True)
    return encoded


def _fill(config: Any, authorization: Authorization, permissions: Any) -> None:
    config.rules.SetInParent()  # empty denies all; absent would allow all
    _add_rules(config.rules, authorization.enforced, permissions)
    if authorization.shadow is not None:
        config.shadow_rules.SetInParent()
        _add_rules(config.shadow_rules, authorization.shadow, permissions)


def _add_rules(
    rules: rbac_pb2.RBAC, allowed: Iterable[AuthorizationRule], permissions: Any
) -> None:
    rules.action = rbac_pb2.RBAC.ALLOW
    for rule in allowed:
        granted = permissions(rule.requests)
        if not granted:
            continue
        policy = rules.policies[rule.name]
        policy.permissions.extend(granted)
        policy.principals.extend(_principal(glob) for glob in rule.principals)
        _first_san_is_of(policy.condition, rule.trust_domain)


def _principal(glob: Glob) -> rbac_pb2.Principal:
    """Match any URI SAN of the verified certificate, never a header."""
    principal = rbac_pb2.Principal()
    if glob.is_literal:
        principal.authenticated.principal_name.exact = format_spiffe_pattern(glob)
    else:
        set_regex(principal.authenticated.principal_name.safe_regex, spiffe_regex(glob))
    return principal


def _first_san_is_of(condition: Any, trust_domain: str) -> None:
    """Set ``connection.uri_san_peer_certificate.startsWith("spiffe://<trust domain>/")`` in CEL."""
    call = condition.call_expr
    call.function = "startsWith"
    call.target.select_expr.operand.ident_expr.name = "connection"
    call.target.select_expr.field = "uri_san_peer_certificate"
    call.args.add().const_expr.string_value = f"spiffe://{trust_domain}/"


# --- HTTP ---------------------------------------------------------------------------------------


def _http_permissions(requests: tuple[RequestPattern, ...]) -> list[rbac_pb2.Permission]:
    if not requests:
        return [rbac_pb2.Permission(any=True)]
    return [_all_of(_http_conditions(request)) for request in requests]


def _http_conditions(request: RequestPattern) -> list[rbac_pb2.Permission]:
    conditions = []
    if request.methods:
        conditions.append(_any_of(_header(":method", exact=one) for one in request.methods))
    if request.paths:
        conditions.append(
            _any_of(_all_of([_path(one) for one in path_match(glob)]) for glob in request.paths)
        )
    if request.hosts:
        conditions.append(
            _any_of(_header(":authority", regex=host_regex(glob)) for glob in request.hosts)
        )
    if request.ports:
        conditions.append(_any_of(_port(port) for port in request.ports))
    return conditions


def _header(name: str, *, exact: str = "", regex: str = "") -> rbac_pb2.Permission:
    permission = rbac_pb2.Permission()
    permission.header.name = name
    if exact:
        permission.header.string_match.exact = exact
    else:
        permission.header.string_match.safe_regex.regex = regex
    return permission


def _path(condition: PathMatch) -> rbac_pb2.Permission:
    permission = rbac_pb2.Permission()
    target = permission.not_rule if condition.kind == "not_regex" else permission
    path = target.url_path.path
    match condition.kind:
        case "exact":
            path.exact = condition.value
        case "prefix":
            path.prefix = condition.value
        case _:
            path.safe_regex.regex = condition.value
    return permission


# --- TCP ----------------------------------------------------------------------------------------


def _tcp_permissions(requests: tuple[RequestPattern, ...]) -> list[rbac_pb2.Permission]:
    if not requests:
        return [rbac_pb2.Permission(any=True)]
    granted = []
    for request in requests:
        if request.is_http:
            continue  # a network filter cannot see it
        if not request.ports:
            return [rbac_pb2.Permission(any=True)]
        granted += [_port(port) for port in request.ports]
    return granted


def _port(port: int) -> rbac_pb2.Permission:
    return rbac_pb2.Permission(destination_port=port)


# --- combinations -------------------------------------------------------------------------------


def _all_of(conditions: list[rbac_pb2.Permission]) -> rbac_pb2.Permission:
    if not conditions:
        return rbac_pb2.Permission(any=True)
    if len(conditions) == 1:
        return conditions[0]
    permission = rbac_pb2.Permission()
    permission.and_rules.rules.extend(conditions)
    return permission


def _any_of(alternatives: Iterable[rbac_pb2.Permission]) -> rbac_pb2.Permission:
    listed = list(alternatives)
    if len(listed) == 1:
        return listed[0]
    permission = rbac_pb2.Permission()
    permission.or_rules.rules.extend(listed)
    return permission
