"""Which identities rules may still give a caller about whom not everything is known.

Owns :class:`PossibleIdentities`. While a fact about a caller cannot be found out, the caller keeps
its identity, because an outage takes nothing away. But the caller itself may be the cause, and
rules may change meanwhile. Invariants: an identity that no rule in force can give is impossible,
whatever the unknown facts are; where that is not certain, it is possible. The answer depends on the
rules of one name and on those with templates, not on all rules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sds.errors import IdentityError
from sds.workload.mapping import may_match, spiffe_id_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sds.errors import WorkloadError
    from sds.identity import Identity, SpiffeId
    from sds.workload.facts import Facts
    from sds.workload.mapping import Defaults, WorkloadRule

_TRUST_DOMAIN = "{trust_domain}"


class PossibleIdentities:
    """The rules by the name that they give."""

    def __init__(self, rules: Iterable[WorkloadRule], defaults: Defaults) -> None:
        self._defaults = defaults
        self._plain: dict[str, list[WorkloadRule]] = {}
        self._templates: list[WorkloadRule] = []
        for rule in rules:
            name = rule.spiffe_id.replace(_TRUST_DOMAIN, str(defaults.trust_domain))
            if "{" in name:
                self._templates.append(rule)
            else:
                self._plain.setdefault(name, []).append(rule)

    def include(self, spiffe_id: SpiffeId, facts: Facts) -> bool:
        """Say whether a rule may give this SPIFFE ID to a caller with these facts."""
        found = facts.by_type()
        return any(
            may_match(rule, facts, found) for rule in self._plain.get(str(spiffe_id), ())
        ) or any(
            may_match(rule, facts, found) and self._may_name(rule, facts, spiffe_id)
            for rule in self._templates
        )

    def _may_name(self, rule: WorkloadRule, facts: Facts, spiffe_id: SpiffeId) -> bool:
        try:
            name = spiffe_id_of(rule, facts, self._defaults)
        except IdentityError:
            return False
        return name is None or name == spiffe_id

    def kept(
        self, identities: tuple[Identity, ...], facts: Facts, why: WorkloadError
    ) -> tuple[Identity, ...]:
        """Return those of a caller's identities that it keeps while nothing can be decided.

        Args:
            identities: those that it has.
            facts: what is known about it now.
            why: why nothing can be decided. If it is none of the unknown facts, the look itself
                failed, and nothing is certain.
        """
        if not any(why is each for each in facts.unknown.values()):
            return identities
        return tuple(each for each in identities if self.include(each.spiffe_id, facts))
