"""Turns a signed policy's bytes into a policy that may be enforced.

Owns the checks and their order, and the types that say how far a policy has come:

``SignedPolicy`` (bytes, nothing checked) → :func:`authenticate` → :class:`Policy` (checks 1 to 6:
trusted people signed exactly this, for us) → :func:`admit` → :class:`AdmittedPolicy` (checks 7 and
8: it may be in force at this moment, given the epoch that was seen). Invariant: no other code makes
the last two types, so code that has one need not check again.

Example: a policy file that one of two trusted keys signed, for a party that has seen epoch 6::

    trusted = TrustedKeys(keys=(alice, bob), threshold=1)
    policy = authenticate(SignedPolicy(file), trusted=trusted, trust_domain=example_org)
    policy.signed_by            # ("alice",): checks 1 to 6 passed, whatever the time
    admitted = admit(policy, seen=Epoch(number=6, digest=...), now=now)
    admitted.decisions.may_talk(web, db)

If the same file is offered on another day, after epoch 8 was in force, ``authenticate`` returns it
as before and ``admit`` raises ``policy_epoch_lower``. If one byte of it was changed,
``authenticate`` raises ``policy_unsigned``, and nothing of the document is parsed; the same happens
if only Carol signed it. A party that keeps state from one offer to the next uses
:func:`sds.policy.succession.offer`, which calls both.

The checks, in this order:

1. the file is a DSSE envelope of our payload type, in canonical form, of bounded size;
2. at least one signature by a trusted key is valid;
3. at least as many distinct trusted keys signed as the threshold demands;
4. the payload is a policy document;
5. it is for our trust domain;
6. if it names the signers of later epochs, enough of those signed it too, so that keys that nobody
   has cannot lock everyone out (as TUF's root role does, TUF specification 1.0.33, section 5.3.4);
7. its epoch is not lower than the highest seen, and not equal to it with other content;
8. now is not before ``not_before``, and before ``not_after``.
"""

from __future__ import annotations

import contextlib
import gc
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NewType

from sds.errors import PolicyError, PolicyNotInForceError
from sds.policy.decision import Decisions
from sds.policy.envelope import SignedPolicy, parse_envelope
from sds.policy.threshold import TrustedKeys, check_signatures
from sds.policy.yaml_document import parse_payload

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from sds.identity import TrustDomain
    from sds.policy.document import PolicyDocument, RoleReferenceValues
    from sds.policy.envelope import SignedEnvelope
    from sds.policy.federated import FederatedDomain
    from sds.workload.cri.settings import PodContents


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """One epoch with its content, which parties compare.

    Attributes:
        number: the document's epoch.
        digest: the SHA-256 of the document, 32 bytes.
    """

    number: int
    digest: bytes

    def __str__(self) -> str:
        """Return the number and the start of the digest."""
        return f"{self.number} ({self.digest.hex()[:12]})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A policy that enough trusted keys signed for our trust domain (checks 1 to 6).

    Attributes:
        trust_domain: the trust domain that it is for.
        epoch: its number and digest.
        not_before: the beginning of its validity period, aware, UTC.
        not_after: the end of its validity period, aware, UTC.
        signed: the signed file's bytes, to hand on.
        signed_by: the names of the trusted keys that signed.
        successors: who must sign later epochs, if it says so.
        reference_values: which evidence is acceptable, by role.
        federation: other trust domains.
        pods: what runtimes may start.
        decisions: decide what it allows.
    """

    trust_domain: TrustDomain
    epoch: Epoch
    not_before: datetime
    not_after: datetime
    signed: SignedPolicy = field(repr=False)
    signed_by: tuple[str, ...]
    successors: TrustedKeys | None = field(repr=False)
    reference_values: RoleReferenceValues = field(repr=False)
    federation: tuple[FederatedDomain, ...] = field(repr=False)
    pods: tuple[PodContents, ...] = field(repr=False)
    decisions: Decisions = field(repr=False, compare=False)


AdmittedPolicy = NewType("AdmittedPolicy", Policy)
"""A policy that passed all checks at one moment; :func:`admit` made it."""


def authenticate(
    signed: SignedPolicy, *, trusted: TrustedKeys, trust_domain: TrustDomain
) -> Policy:
    """Run checks 1 to 6.

    Raises:
        PolicyError: the reason names the first check that failed.
    """
    envelope = parse_envelope(signed)  # 1
    signed_by = check_signatures(envelope, trusted)  # 2, 3
    with _no_collections():
        document = parse_payload(envelope.payload)  # 4
        check_trust_domain(document, trust_domain)  # 5
        check_next_signers(document, envelope)  # 6
        return make_policy(signed, envelope, document, signed_by)


@contextlib.contextmanager
def _no_collections() -> Iterator[None]:
    """Keep the garbage collector from walking over and over what is being built.

    With 10,000 rules, that took a third of the time. Nothing that is built here is cyclic.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def admit(
    policy: Policy, *, seen: Epoch | None, now: datetime, min_epoch: int = 0
) -> AdmittedPolicy:
    """Run checks 7 and 8.

    Args:
        policy: what :func:`authenticate` returned.
        seen: the highest epoch seen so far, with its content.
        now: the present time, aware.
        min_epoch: the lowest epoch that is accepted, whatever was seen.

    Raises:
        PolicyError: ``policy_epoch_lower``: its epoch is lower than the highest seen.
        PolicyError: ``policy_epoch_conflict``: it is another policy of the highest epoch seen.
        PolicyError: ``policy_not_yet_valid``: ``not_before`` has not come.
        PolicyNotInForceError: ``policy_expired``: ``not_after`` has passed.
    """
    check_floor(policy.epoch, min_epoch)  # 7
    check_epoch(policy.epoch, seen)  # 7
    check_window(policy.not_before, policy.not_after, now)  # 8
    return AdmittedPolicy(policy)


def check_epoch(offered: Epoch, seen: Epoch | None) -> None:
    """Check 7: see :func:`admit`."""
    if seen is None:
        return
    if offered.number < seen.number:
        raise PolicyError(
            f"the policy is of epoch {offered.number}, but epoch {seen.number} was already seen",
            advice="somebody offers an old policy; distribute the newest one",
            reason="policy_epoch_lower",
        )
    if offered.number == seen.number and offered.digest != seen.digest:
        raise PolicyError(
            f"the policy has epoch {offered.number} like the one in force, but other content "
            f"({offered.digest.hex()[:12]}, not {seen.digest.hex()[:12]})",
            advice="give every change a higher epoch",
            reason="policy_epoch_conflict",
        )


def check_floor(offered: Epoch, min_epoch: int) -> None:
    """Run check 7 against a number that an operator gave.

    Raises:
        PolicyError: ``policy_epoch_lower``: the epoch is lower.
    """
    if offered.number < min_epoch:
        raise PolicyError(
            f"the policy has epoch {offered.number}, and min_epoch is {min_epoch}",
            advice="distribute the newest policy",
            reason="policy_epoch_lower",
        )


def check_window(not_before: datetime, not_after: datetime, now: datetime) -> None:
    """Check 8: see :func:`admit`."""
    if now < not_before:
        raise PolicyError(
            f"the policy is not valid before {not_before:%Y-%m-%dT%H:%M:%SZ}",
            advice="wait, or check the clock",
            reason="policy_not_yet_valid",
        )
    if now >= not_after:
        raise PolicyNotInForceError(
            f"the policy expired at {not_after:%Y-%m-%dT%H:%M:%SZ}",
            advice="sign and distribute a new epoch with a later not_after",
            reason="policy_expired",
        )


def check_trust_domain(document: PolicyDocument, trust_domain: TrustDomain) -> None:
    """Run check 5."""
    if document.trust_domain != trust_domain:
        raise PolicyError(
            f"the policy is for the trust domain {document.trust_domain}, not {trust_domain}",
            advice="distribute the policy of this trust domain",
            reason="policy_trust_domain",
        )


def check_next_signers(document: PolicyDocument, envelope: SignedEnvelope) -> None:
    """Run check 6."""
    if document.signers is None:
        return
    try:
        check_signatures(envelope, document.signers.trusted())
    except PolicyError as error:
        if error.reason not in {"policy_unsigned", "policy_below_threshold"}:
            raise
        raise PolicyError(
            f"the signers that the policy names for later epochs did not sign it: {error.message}",
            advice="let as many of them as their threshold sign too, to show that they can",
            reason="policy_below_threshold",
        ) from error


def make_policy(
    signed: SignedPolicy,
    envelope: SignedEnvelope,
    document: PolicyDocument,
    signed_by: tuple[str, ...],
) -> Policy:
    """Make the policy of these parts; only for callers that ran checks 1 to 6."""
    return Policy(
        trust_domain=document.trust_domain,
        epoch=Epoch(number=document.epoch, digest=envelope.digest),
        not_before=document.not_before,
        not_after=document.not_after,
        signed=signed,
        signed_by=signed_by,
        successors=None if document.signers is None else document.signers.trusted(),
        reference_values=document.reference_values,
        federation=tuple(document.federation),
        pods=tuple(document.pods),
        decisions=Decisions(document),
    )
