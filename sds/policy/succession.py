"""Decides which policy is in force: a pure state machine over what was offered so far.

Owns :class:`PolicySuccession` (the state) and :func:`offer` (the only step). Invariants:

* the epoch in force never goes down, and two policies of one epoch never follow each other;
* a refused policy changes nothing: the last good policy stays in force until its own end;
* only two kinds of policy change who may sign: one that comes into force, and an earlier one on the
  way to it that names the next signers and whose ``not_before`` has passed. These apply in the
  order of their epochs, as TUF's root does (TUF specification 1.0.33, section 5.3).

``seen`` is kept in memory only. After a restart it follows from the files and the peers: see
docs/policy.md, "Rollback". Only ``sds admission`` remembers it, and with it who signs
(:func:`resumed`).
"""

from __future__ import annotations

import functools
import gzip
import json
import re
import zlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from sds.errors import PolicyError, PolicyNotInForceError
from sds.policy.envelope import MAX_SIGNED_BYTES, SignedPolicy
from sds.policy.trust import admit, authenticate, check_epoch, check_floor, check_window

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from sds.identity import TrustDomain
    from sds.policy.threshold import TrustedKeys
    from sds.policy.trust import AdmittedPolicy, Epoch, Policy

MAX_OFFERED: Final = 64
"""The most signed policies in one offer; a chain of key changes is far shorter."""

_PLAIN_BYTES: Final = 64 * 1024
_GZIP: Final = b"\x1f\x8b"
MOST_OFFERED_BYTES: Final = 2 * MAX_SIGNED_BYTES
_MOST_GROWTH: Final = 64
"""The highest factor by which compressed policies may grow; 100,000 equal rules grow tenfold."""
_STRUCTURE: Final = (b"{", b"[", b",", b":")
_MOST_STRUCTURE: Final = 16_384
"""The most of these characters in all envelopes; 64 envelopes with 50 signatures have fewer."""
_NOT_SPACE: Final = re.compile(r"\S")


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySuccession:
    """What an agent or authority knows about policy.

    Attributes:
        trust_domain: the only one whose policy counts.
        trusted: who may sign the next epoch.
        trusted_since: the last epoch that named them; 0 if only the configuration did.
        line: the signed policies that led from the configured signers to ``trusted``.
        seen: the highest epoch that was in force here.
        policy: the policy of that epoch.
        min_epoch: lower epochs are never accepted, whatever was seen.
    """

    trust_domain: TrustDomain
    trusted: TrustedKeys
    trusted_since: int = 0
    line: tuple[SignedPolicy, ...] = ()
    seen: Epoch | None = None
    policy: AdmittedPolicy | None = None
    min_epoch: int = 0

    def in_force(self, now: datetime) -> AdmittedPolicy:
        """Return the policy in force at this moment.

        Raises:
            PolicyNotInForceError: ``policy_absent``: none ever was.
            PolicyNotInForceError: ``policy_expired``: the last good one is over.
        """
        if self.policy is None:
            raise PolicyNotInForceError(
                "no policy is in force, so nothing is allowed",
                advice="give a valid signed policy; the log says why others were refused",
                reason="policy_absent",
            )
        if now >= self.policy.not_after:
            raise PolicyNotInForceError(
                f"the policy of epoch {self.policy.epoch.number} expired at "
                f"{self.policy.not_after:%Y-%m-%dT%H:%M:%SZ}, so nothing is allowed",
                advice="sign and distribute a new epoch with a later not_after",
                reason="policy_expired",
            )
        return self.policy

    @property
    def handover(self) -> bytes:
        """Return what another party needs to take this policy: the chain and the policy itself.

        A large result is compressed (gzip, RFC 1952), so that it fits into one message.
        """
        if self.policy is None:
            return b""
        parts = dict.fromkeys((*self.line, self.policy.signed))
        return _packed(tuple(parts))


@functools.lru_cache(maxsize=1)
def _packed(parts: tuple[SignedPolicy, ...]) -> bytes:
    """Join policies; once for all agents that are behind after a change."""
    plain = b"".join(part if part.endswith(b"\n") else part + b"\n" for part in parts)
    return plain if len(plain) <= _PLAIN_BYTES else gzip.compress(plain, mtime=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedBefore:
    """What is known of a policy whose signatures were valid: whether it is worth another look.

    Anybody who has an old policy can send it again and again, in an envelope that differs by a
    space, and reading its document is expensive.

    Attributes:
        epoch: its epoch.
        not_before: as in the document.
        not_after: as in the document.
        successors: who must sign later epochs, if it says so.
    """

    epoch: Epoch
    not_before: datetime
    not_after: datetime
    successors: TrustedKeys | None = field(repr=False)

    def is_useless(self, state: PolicySuccession, now: datetime) -> bool:
        """Say whether a policy can neither be taken now nor lead to other signers."""
        leads_on = self.successors is not None and self.successors != state.trusted
        if leads_on and self.epoch.number > state.trusted_since:
            return False
        lowest = max(state.min_epoch, 0 if state.seen is None else state.seen.number + 1)
        return self.epoch.number < lowest or not self.not_before <= now < self.not_after

    def check(self, state: PolicySuccession, now: datetime) -> None:
        """Check whether offering the policy again can have an effect.

        Raises:
            PolicyError: it would be refused; the error is that of an offer.
        """
        check_floor(self.epoch, state.min_epoch)
        check_epoch(self.epoch, state.seen)
        check_window(self.not_before, self.not_after, now)


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferOutcome:
    """The result of one offer.

    Attributes:
        taken: the policy that came into force, or None.
        refusal: why there is nothing better than the policy in force, if something was wrong.
        retry_at: the moment at which a policy that is not yet valid can be offered again.
        retry_before: an expired policy can be offered again if the clock is set back before this
            moment.
        verified: the offered policies that trusted keys signed.
    """

    taken: AdmittedPolicy | None = None
    refusal: PolicyError | None = None
    retry_at: datetime | None = None
    retry_before: datetime | None = None
    verified: tuple[VerifiedBefore, ...] = ()

    def is_worth_another_offer(self, now: datetime) -> bool:
        """Say whether a policy that was refused for its time may be taken now."""
        return (self.retry_at is not None and now >= self.retry_at) or (
            self.retry_before is not None and now < self.retry_before
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    policy: Policy
    state: PolicySuccession


def split(data: bytes, *, most_bytes: int = MOST_OFFERED_BYTES) -> list[SignedPolicy]:
    """Split a file or a message into the signed policies in it: JSON objects one after the other.

    The cost is bounded before signatures are checked. Compressed data may not grow beyond
    ``most_bytes``, nor by a higher factor than policy does. Characters of JSON's structure are
    counted: an envelope has few of them, because it is a few fields around text in base64.

    Args:
        data: the bytes, plain or compressed with gzip.
        most_bytes: the most bytes of the plain data.

    Raises:
        PolicyError: ``policy_malformed``: it is not JSON, is too large, or has more than
            :data:`MAX_OFFERED` policies.
    """
    try:
        plain = _unpacked(data, most_bytes)
        if sum(map(plain.count, _STRUCTURE)) > _MOST_STRUCTURE:
            raise _malformed(
                "this is not a signed policy: it has more fields than envelopes have",
                advice="sign the document with `sds policy sign`",
            )
        text = plain.decode("utf-8")
        del plain
        decoder = json.JSONDecoder()
        found: list[SignedPolicy] = []
        position = _past_space(text, 0)
        while position < len(text):
            if text[position] != "{":
                # Parsing the envelope reports what it is.
                found.append(SignedPolicy(text[position:].encode()))
                break
            try:
                _, end = decoder.raw_decode(text, position)
            except (ValueError, RecursionError):
                if not found:
                    raise
                # What is whole counts, and offering the rest says what is wrong with it.
                found.append(SignedPolicy(text[position:].encode()))
                break
            found.append(SignedPolicy(text[position:end].encode() + b"\n"))
            position = _past_space(text, end)
            if len(found) > MAX_OFFERED:
                raise _malformed(f"more than {MAX_OFFERED} signed policies at once")
    except (ValueError, RecursionError, zlib.error) as error:
        raise _malformed(
            f"this is not a signed policy: {error}",
            advice="sign the document with `sds policy sign`",
        ) from error
    return found


def _malformed(message: str, *, advice: str = "") -> PolicyError:
    return PolicyError(message, reason="policy_malformed", advice=advice)


def _past_space(text: str, position: int) -> int:
    found = _NOT_SPACE.search(text, position)
    return len(text) if found is None else found.start()


def _unpacked(data: bytes, most_bytes: int) -> bytes:
    if not data.startswith(_GZIP):
        if len(data) > most_bytes:
            raise _malformed(f"the signed policies have {len(data)} bytes, more than {most_bytes}")
        return data
    most = min(most_bytes, _PLAIN_BYTES + _MOST_GROWTH * len(data))
    unpacker = zlib.decompressobj(wbits=31)
    plain = unpacker.decompress(data, most)
    if not unpacker.eof or unpacker.unused_data:
        raise _malformed("the compressed policies are cut off, or too large")
    return plain


def offer(
    state: PolicySuccession,
    offered: Iterable[SignedPolicy],
    *,
    now: datetime,
    patient: bool = True,
) -> tuple[PolicySuccession, OfferOutcome]:
    """Take the highest offered epoch that may be in force now; offers may come in any order.

    Unless it is ``patient``, it looks at none after one with a forged signature: anybody can send
    many of these, and each takes as long as evidence.

    Returns:
        The new state (the old one if nothing was taken), and the result.
    """
    known = set(state.line) - {_newest(state)}
    pool = [signed for signed in dict.fromkeys(offered) if signed not in known]
    if not pool:
        refusal: PolicyError = PolicyNotInForceError(
            "no signed policy was offered", reason="policy_absent"
        )
        return state, OfferOutcome(refusal=refusal)
    if len(pool) > MAX_OFFERED:
        refusal = PolicyError(
            f"more than {MAX_OFFERED} signed policies at once", reason="policy_malformed"
        )
        return state, OfferOutcome(refusal=refusal)
    candidates, errors = _candidates(state, pool, now, patient=patient)
    verified = tuple(_remembered(one.policy) for one in candidates)
    candidates.sort(key=lambda one: one.policy.epoch.number, reverse=True)
    refusals: list[PolicyError] = []
    retry_at: datetime | None = None
    retry_before: datetime | None = None
    taken: AdmittedPolicy | None = None
    for candidate in candidates:
        policy = candidate.policy
        if state.policy is not None and policy.epoch == state.policy.epoch:
            # The policy in force is among them, so a lower one is old and not an error.
            break
        try:
            _check_alone(policy, candidates)
            floor = max(state.min_epoch, candidate.state.trusted_since)
            taken = admit(policy, seen=state.seen, now=now, min_epoch=floor)
        except PolicyError as error:
            refusals.append(error)
            if error.retriable and (retry_at is None or policy.not_before < retry_at):
                retry_at = policy.not_before
            if error.reason == "policy_expired":
                retry_before = max(policy.not_after, retry_before or policy.not_after)
            continue
        state = replace(candidate.state, seen=policy.epoch, policy=taken)
        if policy.successors is not None:
            # It may name the present signers again; earlier links to others are then over.
            state = replace(state, trusted_since=policy.epoch.number)
        break
    return state, OfferOutcome(
        taken=taken,
        refusal=next(iter([*refusals, *errors]), None),
        retry_at=retry_at,
        retry_before=retry_before,
        verified=verified,
    )


def resumed(
    start: PolicySuccession, remembered: Iterable[SignedPolicy], *, seen: Epoch | None
) -> PolicySuccession:
    """Return the state of a party that restarts with what it remembers: an epoch, and who signs.

    The signers count whether or not the remembered policy may still be in force, as they would
    without the restart. An offer decides whether it is in force again.

    Args:
        start: the configured state.
        remembered: the chain and the policy of the epoch, as :attr:`PolicySuccession.handover`.
        seen: the epoch.
    """
    if seen is None:
        return start
    state = start
    for signed in remembered:
        try:
            policy = _authenticated(signed, state)
        except PolicyError:
            break  # the configuration has other keys now
        if policy.epoch.number > seen.number:
            break
        state = _after(state, policy)
        if policy.epoch == seen and policy.successors is not None:
            state = replace(state, trusted_since=seen.number)
    return replace(state, seen=seen)


def _newest(state: PolicySuccession) -> SignedPolicy | None:
    """Return the policy of the highest epoch seen, or the last link, which may be that policy."""
    if state.policy is not None:
        return state.policy.signed
    return state.line[-1] if state.line else None


def _remembered(policy: Policy) -> VerifiedBefore:
    return VerifiedBefore(
        epoch=policy.epoch,
        not_before=policy.not_before,
        not_after=policy.not_after,
        successors=policy.successors,
    )


def _check_alone(policy: Policy, candidates: Sequence[_Candidate]) -> None:
    """Refuse two different policies of one epoch: neither may come into force."""
    if any(
        other.policy.epoch.number == policy.epoch.number
        and other.policy.epoch.digest != policy.epoch.digest
        for other in candidates
    ):
        raise PolicyError(
            f"two different policies of epoch {policy.epoch.number} were offered together",
            advice="give every change a higher epoch",
            reason="policy_epoch_conflict",
        )


def _candidates(
    state: PolicySuccession, pool: list[SignedPolicy], now: datetime, *, patient: bool
) -> tuple[list[_Candidate], list[PolicyError]]:
    """Return every policy that authenticates, under today's signers or under those of a later link.

    Each candidate comes with the state that it would lead to; ``seen`` and ``policy`` are filled in
    when it is taken.
    """
    candidates: list[_Candidate] = []
    errors: list[PolicyError] = []
    remaining = pool
    here = state
    while True:
        links: list[_Candidate] = []
        failed: list[SignedPolicy] = []
        errors = []
        for signed in remaining:
            try:
                policy = _authenticated(signed, here)
            except PolicyError as error:
                errors.append(error)
                if error.forged and not patient:
                    return candidates, errors
                failed.append(signed)
                continue
            candidate = _Candidate(policy=policy, state=_after(here, policy))
            candidates.append(candidate)
            if candidate.state is not here and policy.not_before <= now:
                links.append(candidate)
        if not links:
            return candidates, errors
        link = min(links, key=lambda one: one.policy.epoch.number)
        # From that epoch on, the former signers no longer count.
        late = [one for one in candidates if one.policy.epoch.number > link.policy.epoch.number]
        candidates = [one for one in candidates if one not in late]
        here = link.state
        remaining = [*failed, *(one.policy.signed for one in late)]


def _authenticated(signed: SignedPolicy, state: PolicySuccession) -> Policy:
    # The policy in force was parsed before, so a reload that brings it again costs nothing.
    if state.policy is not None and state.policy.signed == signed:
        return state.policy
    return authenticate(signed, trusted=state.trusted, trust_domain=state.trust_domain)


def _after(state: PolicySuccession, policy: Policy) -> PolicySuccession:
    """Return the state after this policy, as far as signers are concerned."""
    successors = policy.successors
    if successors is None or policy.epoch.number <= state.trusted_since:
        return state
    if successors == state.trusted:
        return state
    return replace(
        state,
        trusted=successors,
        trusted_since=policy.epoch.number,
        line=(*state.line, policy.signed),
    )
