"""Runs every check of :mod:`sds.policy.trust` that can run, for people.

Owns the list that ``sds policy verify`` prints. Invariants: enforcement uses the same functions;
a document is parsed only if enough trusted keys signed it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sds.errors import PolicyError
from sds.policy.envelope import parse_envelope
from sds.policy.threshold import TrustedKeys, check_signatures
from sds.policy.trust import (
    Epoch,
    check_floor,
    check_next_signers,
    check_trust_domain,
    check_window,
    make_policy,
)
from sds.policy.yaml_document import parse_payload

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from sds.identity import TrustDomain
    from sds.policy.document import PolicyDocument
    from sds.policy.envelope import SignedEnvelope, SignedPolicy
    from sds.policy.trust import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyCheck:
    """The outcome of one check.

    Attributes:
        name: the name of the check; :func:`examine` gives their order.
        error: why it failed, or None.
        found: what was found, in words.
    """

    name: str
    error: PolicyError | None
    found: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyDemands:
    """The requirements that a signed policy is checked against.

    Attributes:
        trusted: the trusted keys and the threshold.
        trust_domain: the trust domain that it must be for; None means any.
        min_epoch: the lowest epoch that is accepted.
        now: the time of the check, aware.
    """

    trusted: TrustedKeys
    trust_domain: TrustDomain | None
    min_epoch: int
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """The outcomes in order, and the policy only if all of them are good."""

    checks: tuple[PolicyCheck, ...]
    policy: Policy | None

    @property
    def error(self) -> PolicyError | None:
        """Return why the first failed check failed, or None."""
        return next((check.error for check in self.checks if check.error is not None), None)


def examine(signed: SignedPolicy, demands: PolicyDemands) -> Examination:
    """Run every check that can run."""
    checks: list[PolicyCheck] = []
    try:
        envelope = parse_envelope(signed)
    except PolicyError as error:
        return Examination(checks=(PolicyCheck(name="envelope", error=error),), policy=None)
    checks.append(
        PolicyCheck(name="envelope", error=None, found=f"SHA-256 {envelope.digest.hex()}")
    )
    trusted = demands.trusted
    try:
        one = TrustedKeys(keys=trusted.keys, threshold=1)
        names = check_signatures(envelope, one)
        checks.append(PolicyCheck(name="signature", error=None, found=", ".join(names)))
    except PolicyError as error:
        checks.append(PolicyCheck(name="signature", error=error))
        return Examination(checks=tuple(checks), policy=None)
    try:
        check_signatures(envelope, trusted)
        found = f"{len(names)} of {len(trusted.keys)} signed, {trusted.threshold} must"
        checks.append(PolicyCheck(name="threshold", error=None, found=found))
        document = parse_payload(envelope.payload)
        found = f"epoch {document.epoch} of {document.trust_domain}"
        checks.append(PolicyCheck(name="document", error=None, found=found))
    except PolicyError as error:
        name = "document" if checks[-1].name == "threshold" else "threshold"
        checks.append(PolicyCheck(name=name, error=error))
        return Examination(checks=tuple(checks), policy=None)
    checks += [_run(name, check) for name, check in _rest(document, envelope, demands).items()]
    good = all(check.error is None for check in checks)
    policy = make_policy(signed, envelope, document, names) if good else None
    return Examination(checks=tuple(checks), policy=policy)


def _run(name: str, check: Callable[[], str]) -> PolicyCheck:
    try:
        return PolicyCheck(name=name, error=None, found=check())
    except PolicyError as error:
        return PolicyCheck(name=name, error=error)


def _rest(
    document: PolicyDocument, envelope: SignedEnvelope, demands: PolicyDemands
) -> dict[str, Callable[[], str]]:
    """Run the checks that need the document; each can run whatever the others say."""

    def trust_domain() -> str:
        check_trust_domain(document, demands.trust_domain or document.trust_domain)
        return document.trust_domain

    def next_signers() -> str:
        check_next_signers(document, envelope)
        return "unchanged" if document.signers is None else "named, and they signed too"

    def epoch() -> str:
        check_floor(Epoch(number=document.epoch, digest=envelope.digest), demands.min_epoch)
        return str(document.epoch)

    def window() -> str:
        check_window(document.not_before, document.not_after, demands.now)
        return f"{document.not_before.isoformat()} to {document.not_after.isoformat()}"

    return {
        "trust_domain": trust_domain,
        "next_signers": next_signers,
        "epoch": epoch,
        "window": window,
    }
