"""DNS names that a pod gets from the Kubernetes Services that select it.

Owns which names a Service has and which of them go into a certificate. Invariant: the Services only
propose names; the rule's patterns decide which of them are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sds.errors import IdentityError
from sds.identity import parse_dns_name
from sds.rules.pattern import dns_parts, parse_dns_pattern

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sds.rules.glob import Glob


def service_dns_names(
    services: Iterable[tuple[str, str]], *, cluster_domain: str
) -> frozenset[str]:
    """Return the names by which pods reach these ``(namespace, name)`` Services.

    Kubernetes, "DNS for Services and Pods": the full name and its shorter forms. The bare name is
    proposed too, although its meaning depends on who resolves it; patterns decide what is used.
    """
    names: set[str] = set()
    for namespace, name in services:
        names |= {
            f"{name}.{namespace}.svc.{cluster_domain}",
            f"{name}.{namespace}.svc",
            f"{name}.{namespace}",
            name,
        }
    return frozenset(names)


def bounded_names(
    services: Iterable[tuple[str, str]], *, cluster_domain: str, patterns: Iterable[str]
) -> frozenset[str]:
    """Return those of the Services' names that match a pattern and that a certificate can have.

    Others are left out: whoever names a Service must not take the identity of its pods.

    Args:
        services: ``(namespace, name)``.
        cluster_domain: the last labels of a Service's full name.
        patterns: filled patterns of DNS names; text that is not a pattern matches no name.
    """
    globs = _parsed(patterns)
    return frozenset(
        name
        for name in service_dns_names(services, cluster_domain=cluster_domain)
        if any(glob.matches(dns_parts(name)) for glob in globs) and _is_dns_name(name)
    )


def _is_dns_name(name: str) -> bool:
    try:
        parse_dns_name(name)
    except IdentityError:  # such as one of more than 253 characters, with a long cluster domain
        return False
    return True


def wildcards(templates: Iterable[str]) -> tuple[str, ...]:
    """Return those templates of patterns that leave open which Service is meant."""
    return tuple(one for one in templates if "*" in one or "{" in one.split(".")[0])


def _parsed(patterns: Iterable[str]) -> Sequence[Glob]:
    globs = []
    for pattern in patterns:
        try:
            globs.append(parse_dns_pattern(pattern))
        except IdentityError:
            # A label of the pod has a value that no DNS name can contain, so nothing matches it.
            continue
    return globs
