"""Tables of the ``nodes`` rules: which nodes may ask for which certificates.

Owns :class:`NodeTable` and the types of its question and answer. Invariants: only verified claims
decide, never evidence; the name of a node, which anyone who can write to etcd chooses, never counts
as a measurement, nor a measurement as such a name; one grant must permit a certificate as a whole,
and names of two grants are never combined; if several grants permit it, the first in the document
sets the lifetime; a refusal is that of the closest grant.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from sds.attestation.registry import KINDS
from sds.errors import RefusedError
from sds.policy.allow import members
from sds.rules.glob import Glob, GlobIndex, text_matches
from sds.rules.pattern import dns_parts, format_dns_pattern, spiffe_parts

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from sds.attestation.evidence import Claims
    from sds.identity import KeyType, SpiffeId
    from sds.policy.ruleset import Grant, NodeGroup, RuleSet

_WHERE: Final = "under `nodes` in the policy, or `identities` in the authority's configuration"


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestedCertificate:
    """The certificate that one item asks for; its CSR's signature was verified.

    Attributes:
        spiffe_id: the only URI SAN.
        dns_names: the DNS SANs, which are valid names.
        lifetime: the requested lifetime.
        key_type: the kind of the CSR's key; None if it is unknown.
        signing: whether an authority's certificate is requested.
    """

    spiffe_id: SpiffeId
    dns_names: tuple[str, ...] = ()
    lifetime: timedelta
    key_type: KeyType | None = None
    signing: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Permit:
    """The permission for one requested certificate.

    Attributes:
        group: the node group that allows it.
        lifetime: the requested lifetime, cut to the longest that policy allows.
        path_length: the path length of an authority's certificate; None for a workload's.
    """

    group: str = ""
    lifetime: timedelta
    path_length: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _GrantTable:
    number: int
    group: str
    max_lifetime: timedelta
    key_types: frozenset[KeyType]
    dns_literals: Collection[tuple[str, ...]]
    dns_globs: tuple[Glob, ...]

    def uncovered(self, dns_names: Iterable[str]) -> list[str]:
        """Return the names that no pattern of the grant matches."""
        return [
            name
            for name in dns_names
            if (parts := dns_parts(name)) not in self.dns_literals
            and not any(glob.matches(parts) for glob in self.dns_globs)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class _GroupTable:
    group: NodeGroup
    grants: GlobIndex[_GrantTable] = field(default_factory=GlobIndex)


class NodeTable:
    """The node groups of a rule set, found by measurement and by pattern."""

    def __init__(self, rules: RuleSet) -> None:
        """Make tables from ``rules``, which are not kept."""
        self._groups: dict[str, list[_GroupTable]] = {}
        self._groups_of_any: list[_GroupTable] = []
        self._key_types = frozenset(rules.limits.key_types)
        numbers = itertools.count()
        for group in rules.nodes:
            table = _group_table(group, rules, numbers)
            for measurement in group.measurements:
                self._groups.setdefault(measurement, []).append(table)
            if not group.measurements:
                self._groups_of_any.append(table)

    def permit(self, claims: Claims, wanted: RequestedCertificate) -> Permit:
        """Decide what a node with these claims may have of what it asks for.

        Raises:
            RefusedError: the reason says what is not allowed: the lifetime, the measurement,
                signing, the SPIFFE ID, a DNS name or the kind of key.
        """
        if wanted.lifetime <= timedelta(0):
            raise RefusedError(
                f"a lifetime of {wanted.lifetime.total_seconds():g} s cannot be granted",
                reason="lifetime_not_allowed",
            )
        groups = self._groups_of(claims)
        return self._signing(groups, wanted) if wanted.signing else self._leaf(groups, wanted)

    def _leaf(self, groups: list[_GroupTable], wanted: RequestedCertificate) -> Permit:
        parts = spiffe_parts(wanted.spiffe_id)
        grants = sorted(
            (grant for table in groups for grant in table.grants.find(parts)),
            key=lambda grant: grant.number,
        )
        # X.509-SVID, section 2: a workload's SPIFFE ID has a path.
        if not grants or not wanted.spiffe_id.path:
            raise RefusedError(
                f"nodes of the group {_names(groups)} may not ask for {wanted.spiffe_id}",
                advice=f"grant it {_WHERE}, or ask from another node",
                reason="spiffe_id_not_allowed",
            )
        refusal: RefusedError | None = None
        for grant in grants:
            uncovered = grant.uncovered(wanted.dns_names)
            where = f"on nodes of the group {grant.group}"
            if uncovered:
                refusal = refusal or RefusedError(
                    f"{wanted.spiffe_id} may not have the DNS name {uncovered[0]} {where}",
                    advice="change dns_names of the grant in the policy",
                    reason="dns_name_not_allowed",
                )
            elif wanted.key_type is not None and wanted.key_type not in grant.key_types:
                refusal = RefusedError(
                    f"{wanted.spiffe_id} may not have a key of type {wanted.key_type} {where}",
                    advice=f"use one of {', '.join(sorted(grant.key_types))}",
                    reason="key_type_not_allowed",
                )
            else:
                return Permit(group=grant.group, lifetime=min(wanted.lifetime, grant.max_lifetime))
        assert refusal is not None
        raise refusal

    def _signing(self, groups: list[_GroupTable], wanted: RequestedCertificate) -> Permit:
        # X.509-SVID, section 2: a signing certificate's SPIFFE ID has no path.
        if wanted.spiffe_id.path:
            raise RefusedError(
                f"{wanted.spiffe_id} is not an authority's name", reason="signing_not_allowed"
            )
        grants = [(table, table.group.authority) for table in groups if table.group.authority]
        if not grants:
            raise RefusedError(
                f"no node group of this node may be an authority ({_names(groups)})",
                advice=f"set authority: of its group {_WHERE} (signing:)",
                reason="signing_not_allowed",
            )
        if wanted.dns_names:
            raise RefusedError(
                f"an authority may not have the DNS name {wanted.dns_names[0]}",
                reason="dns_name_not_allowed",
            )
        may: set[KeyType] = set()
        for table, grant in grants:
            allowed = _both(tuple(grant.key_types), tuple(self._key_types))
            may |= allowed
            if wanted.key_type is None or wanted.key_type in allowed:
                return Permit(
                    group=table.group.name,
                    lifetime=min(wanted.lifetime, grant.max_lifetime),
                    path_length=grant.path_length,
                )
        raise RefusedError(
            f"authorities may not have keys of type {wanted.key_type}",
            advice=f"use one of {', '.join(sorted(may))}",
            reason="key_type_not_allowed",
        )

    def _groups_of(self, claims: Claims) -> list[_GroupTable]:
        measured = () if _names_node(claims) else self._groups.get(claims.measurement, ())
        groups = [
            table for table in (*measured, *self._groups_of_any) if _in_group(table.group, claims)
        ]
        if not groups:
            raise RefusedError(
                f"no node group covers a node with {claims.kind} measurement {claims.measurement}",
                advice=f"name the measurement {_WHERE}",
                reason="measurement_not_allowed",
            )
        return groups


def _names(groups: list[_GroupTable]) -> str:
    return ", ".join(table.group.name for table in groups)


def _group_table(group: NodeGroup, rules: RuleSet, numbers: Iterator[int]) -> _GroupTable:
    table = _GroupTable(group=group)
    for grant in group.grants:
        made = _grant_table(next(numbers), group.name, grant, rules)
        for glob in grant.spiffe_ids:
            table.grants.add(glob, made)
    return table


def _grant_table(number: int, group: str, grant: Grant, rules: RuleSet) -> _GrantTable:
    limits = rules.limits
    literals = tuple(glob.parts for glob in grant.dns_names if glob.is_literal)
    longest = grant.max_lifetime or limits.max_lifetime
    return _GrantTable(
        number=number,
        group=group,
        max_lifetime=min(longest, limits.max_lifetime),
        key_types=_both(tuple(grant.key_types), tuple(limits.key_types)),
        dns_literals=members(literals),
        dns_globs=tuple(glob for glob in grant.dns_names if not glob.is_literal),
    )


@functools.cache
def _both(own: tuple[KeyType, ...], limits: tuple[KeyType, ...]) -> frozenset[KeyType]:
    """Return the kinds of key that both the grant and the limits allow; each set is kept once."""
    return frozenset(own or limits) & frozenset(limits)


def _names_node(claims: Claims) -> bool:
    """Say whether ``measurement`` is the name of a node."""
    return KINDS[claims.kind].names_node


def _in_group(group: NodeGroup, claims: Claims) -> bool:
    if group.kinds and claims.kind not in group.kinds:
        return False
    if group.nodes and not (
        _names_node(claims) and any(text_matches(name, claims.measurement) for name in group.nodes)
    ):
        return False
    return all(
        name in claims.attributes
        and any(text_matches(value, claims.attributes[name]) for value in values)
        for name, values in group.attributes.items()
    )


def describe_dns(grant: Grant) -> str:
    """Return the DNS patterns of a grant as people read them."""
    return ", ".join(format_dns_pattern(glob) for glob in grant.dns_names) or "none"
