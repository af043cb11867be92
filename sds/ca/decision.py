"""Who may ask for what: the decision that stands between verified evidence and a certificate.

Owns the port to issuance policy and the rules of the configuration, which implement it.
Invariants: deciding is pure; only :class:`Claims` (never evidence) decide; what no rule allows is
refused, and the refusal says which part of the wish was too much. A rule grants as a whole: names
of one rule are never mixed with those of another.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Protocol

from sds.errors import RefusedError
from sds.identity import KeyType, SpiffeId
from sds.policy.pattern import dns_parts, spiffe_parts

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sds.attestation.evidence import Claims
    from sds.policy.pattern import Glob

NO_POLICY_DIGEST: Final = hashlib.sha256(b"").digest()
"""The policy digest where there is no policy file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What one item asks for, parsed; its CSR's signature was verified.

    Attributes:
        spiffe_id: the only URI SAN.
        dns_names: DNS SANs, valid names.
        lifetime: positive.
        key_type: kind of the CSR's key.
        signing: an authority's certificate is asked for.
    """

    spiffe_id: SpiffeId
    dns_names: tuple[str, ...]
    lifetime: timedelta
    key_type: KeyType
    signing: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What is granted of a wish: its names as they are, and these bounds.

    Attributes:
        lifetime: at most what was asked for.
        path_length: CAs allowed below, for a signing wish; None for a workload's.
    """

    lifetime: timedelta
    path_length: int | None = None


class IssuancePolicy(Protocol):
    """Decides which measured machine may have which certificate.

    Attributes:
        digest: SHA-256 of the policy in force (of the empty string where there is none).
        epoch: its epoch; 0 where there is none.
        document: the signed policy that is handed to an agent that is behind, or nothing.
    """

    @property
    def digest(self) -> bytes: ...

    @property
    def epoch(self) -> int: ...

    @property
    def document(self) -> bytes: ...

    def admit(self, *, digest: bytes, epoch: int, document: bytes) -> None:
        """Check the policy that the asking agent has in force, before anything is issued.

        Args:
            digest: SHA-256 of the agent's policy; its evidence covers it.
            epoch: the epoch that the agent says it has.
            document: the agent's signed policy, where it says that it is ahead of us.

        Raises:
            RefusedError: ``policy_behind``: the agent must take ours first.
        """
        ...

    def decide(self, claims: Claims, wish: Wish, *, now: datetime) -> Grant:
        """Grant a wish, or raise.

        Raises:
            RefusedError: a subclass that names what is not allowed.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What one measurement may ask for; see ``docs/exchange.md`` for the configuration's form.

    Attributes:
        measurement: lower-case hex, as in :attr:`Claims.measurement`.
        spiffe_ids: patterns of SPIFFE IDs.
        dns_names: patterns of DNS names that may stand beside them.
        max_lifetime: longer wishes are clamped to it.
        key_types: kinds of key that are allowed.
        signing_path_length: CAs that may stand below an authority of this measurement; None where
            it may not be an authority at all.
    """

    measurement: str
    spiffe_ids: tuple[Glob, ...]
    dns_names: tuple[Glob, ...] = ()
    max_lifetime: timedelta = timedelta(hours=1)
    key_types: frozenset[KeyType] = frozenset(KeyType)
    signing_path_length: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfiguredRules:
    """Issuance policy from the configuration file: no signature, no epoch."""

    rules: tuple[Rule, ...]
    digest: bytes = NO_POLICY_DIGEST
    epoch: int = 0
    document: bytes = field(default=b"", repr=False)

    def admit(self, *, digest: bytes, epoch: int, document: bytes) -> None:
        """Any agent: without a signed policy there is none to be behind of."""

    def decide(self, claims: Claims, wish: Wish, *, now: datetime) -> Grant:
        """The first rule that grants the whole wish; see :class:`IssuancePolicy`."""
        del now
        return decide_by_rules(self.rules, claims, wish)


def decide_by_rules(rules: Sequence[Rule], claims: Claims, wish: Wish) -> Grant:
    """Grant by the first rule that allows all of ``wish``; the refusal is the nearest rule's.

    Raises:
        RefusedError: no rule does.
    """
    if wish.lifetime <= timedelta(0):
        raise RefusedError(
            f"a lifetime of {wish.lifetime} cannot be granted", reason="lifetime_not_allowed"
        )
    nearest: tuple[int, RefusedError] = (
        0,
        RefusedError(
            f"no rule names the measurement {claims.measurement}",
            advice="name it under 'identities' of the authority, if this code may have identities",
            reason="measurement_not_allowed",
        ),
    )
    for rule in rules:
        if rule.measurement != claims.measurement:
            continue
        step, refusal = _try(rule, wish)
        if refusal is None:
            return Grant(
                lifetime=min(wish.lifetime, rule.max_lifetime),
                path_length=rule.signing_path_length if wish.signing else None,
            )
        if step > nearest[0]:
            nearest = (step, refusal)
    raise nearest[1]


def _try(rule: Rule, wish: Wish) -> tuple[int, RefusedError | None]:
    """How far ``wish`` gets under ``rule``: the number of the check that fails, and why.

    1. signing, 2. SPIFFE ID, 3. DNS names, 4. kind of key.
    """
    # X.509-SVID, section 2: a workload's SPIFFE ID has a path, a signing certificate's has none.
    if wish.signing and (rule.signing_path_length is None or wish.spiffe_id.path):
        return 1, RefusedError(
            f"this measurement may not be an authority as {wish.spiffe_id}",
            reason="signing_not_allowed",
        )
    if not wish.signing:
        name = spiffe_parts(wish.spiffe_id)
        if not wish.spiffe_id.path or not any(glob.matches(name) for glob in rule.spiffe_ids):
            return 2, RefusedError(
                f"this measurement may not ask for {wish.spiffe_id}", reason="spiffe_id_not_allowed"
            )
    for dns_name in wish.dns_names:
        if wish.signing or not any(glob.matches(dns_parts(dns_name)) for glob in rule.dns_names):
            return 3, RefusedError(
                f"this measurement may not ask for the DNS name {dns_name!r} as {wish.spiffe_id}",
                reason="dns_name_not_allowed",
            )
    if wish.key_type not in rule.key_types:
        return 4, RefusedError(
            f"keys of the kind {wish.key_type} are not allowed for {wish.spiffe_id}",
            advice=f"use one of {', '.join(sorted(rule.key_types))}",
            reason="key_type_not_allowed",
        )
    return 5, None
