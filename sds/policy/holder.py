"""Holds the policy that one process has in force, takes offers, and tells listeners.

Owns the one mutable reference to :class:`sds.policy.succession.PolicySuccession`. Invariants: only
:func:`sds.policy.succession.offer` changes it; listeners are told after every change of what is in
force, also when the last good policy ends; every refusal is logged once for each offered content,
and counted each time. Everything runs on one event loop.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from sds.backoff import sleep_unless
from sds.errors import PolicyError, PolicyNotInForceError
from sds.faults import report
from sds.listeners import Listeners
from sds.policy.difference import differences
from sds.policy.envelope import parse_envelope
from sds.policy.peer_comparison import NO_POLICY_DIGEST
from sds.policy.succession import MOST_OFFERED_BYTES, OfferOutcome, PolicySuccession, offer, split
from sds.policy.yaml_document import parse_payload

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from sds.clock import Clock
    from sds.policy.envelope import SignedPolicy
    from sds.policy.succession import VerifiedBefore
    from sds.policy.trust import AdmittedPolicy
    from sds.policy.watcher import PolicyWatcher

_LOGGER = logging.getLogger(__name__)
_MOST_LINES: Final = 50
"""How many lines of a change are logged; `sds policy diff` shows all of them."""
_WARN_BEFORE_END: Final = 0.2
"""The last part of the policy's validity period, in which its end is announced."""
_MOST_BYTES_OF_STRANGERS: Final = 4 * 1024 * 1024
"""The most unpacked bytes of signed policies that a caller sends: about 30,000 rules."""
_MOST_REMEMBERED: Final = 256
"""How many documents that were read are remembered by their digest."""
_LONGEST_SLEEP: Final = 60.0
"""The most seconds between two looks at the wall clock, which may be stepped."""


class PolicyHolder:
    """The policy in force; serves an agent as :class:`sds.authority.policy_peer.PolicyPeer`.

    Args:
        start: the configured trust domain, signers and lowest epoch.
        clock: time.
        watcher: is told of what happens.

    Attributes:
        follows: that it takes later policies.
    """

    follows = True

    def __init__(
        self, start: PolicySuccession, *, clock: Clock, watcher: PolicyWatcher | None = None
    ) -> None:
        self._state = start
        self._clock = clock
        self._watcher = watcher
        self._listeners: Listeners[[]] = Listeners("policy listener")
        self._said: set[tuple[str, bytes]] = set()
        self._verified: OrderedDict[bytes, VerifiedBefore] = OrderedDict()
        """What was offered here and signed by trusted keys, by the digest of the document."""
        self._ended = self._said_over = False
        """Whether listeners were told that the policy is over, and whether one who asked was."""
        self._woken = asyncio.Event()
        self._last_error: PolicyError | None = None
        self._refused_from: set[str] = set()
        """The origins (files, or the authority) whose last offer was refused."""

    # --- what is in force -----------------------------------------------------------------------

    def in_force(self) -> AdmittedPolicy:
        """Return the policy in force now.

        Raises:
            PolicyNotInForceError: ``policy_absent``: none was ever in force.
            PolicyNotInForceError: ``policy_expired``: the last good one has expired.
        """
        # What one who asks is told, all must hear, and also that it changes again: the clock may be
        # ahead for a moment that is too short for :meth:`run` to notice by itself.
        try:
            found = self._state.in_force(self._clock.now().wall)
        except PolicyNotInForceError:
            if self._state.policy is not None and not self._ended:
                self._said_over = True
                self._woken.set()
            raise
        if self._ended:
            self._woken.set()
        return found

    def require_in_force(self) -> None:
        """Do what :meth:`in_force` does, for those who read no policy."""
        self.in_force()

    @property
    def current(self) -> AdmittedPolicy | None:
        """Return the policy in force now, or None."""
        try:
            return self.in_force()
        except PolicyNotInForceError:
            return None

    @property
    def newest(self) -> AdmittedPolicy | None:
        """Return the policy that is in force, or was until it expired; None if none ever was."""
        return self._state.policy

    @property
    def absence(self) -> str:
        """Return why no policy is in force; empty while one is."""
        try:
            self.in_force()
        except PolicyNotInForceError as error:
            return str(error)
        return ""

    @property
    def digest(self) -> bytes:
        return NO_POLICY_DIGEST if self._state.seen is None else self._state.seen.digest

    @property
    def epoch(self) -> int:
        return 0 if self._state.seen is None else self._state.seen.number

    @property
    def document(self) -> bytes:
        """Return what another party needs to take our policy; nothing if there is none."""
        return self._state.handover

    @property
    def last_error(self) -> PolicyError | None:
        """Return why the last offer was not (wholly) good or not to be had; None if it was."""
        return self._last_error

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call ``listener`` whenever what is in force changed, until the result is called.

        It runs on the event loop, right after the change, so it must be short. If it raises, the
        error is reported and other listeners are still told.
        """
        return self._listeners.add(listener)

    # --- offers ---------------------------------------------------------------------------------

    async def offer(self, document: bytes) -> bool:
        """Take what a peer hands over, and say whether it is in force now (see :meth:`take`)."""
        return self.take(document, origin="authority", patient=False).refusal is None

    def take(self, document: bytes, *, origin: str, patient: bool = True) -> OfferOutcome:
        """Take the best of one or more signed policies into force.

        Args:
            document: signed policies, one after the other.
            origin: where they come from, for the log.
            patient: whether to look at those after one with a forged signature too.
        """
        outcome = self._take(document, origin, most_bytes=MOST_OFFERED_BYTES, patient=patient)
        self._last_error = outcome.refusal
        if outcome.refusal is not None:
            self._refused_from.add(origin)
            self._say_refused(outcome.refusal, document, origin)
        elif origin in self._refused_from:
            self._refused_from.discard(origin)
            if outcome.taken is None:  # otherwise a line says what is in force now
                _LOGGER.info(
                    "policy from %s is good again; epoch %d stays",
                    origin,
                    self.epoch,
                    extra={"origin": origin, "policy_epoch": self.epoch},
                )
        return outcome

    def missed(self, error: PolicyError) -> None:
        """Note that the operator's files cannot be read; status and metrics say so.

        What is in force stays.
        """
        self._last_error = error
        if self._watcher is not None:
            self._watcher.refused(error)

    def take_from_stranger(self, document: bytes) -> OfferOutcome:
        """Do what :meth:`take` does for a caller that has proven nothing; only signatures count.

        The size limit is lower than for an operator. A refusal is told to the caller and not logged
        here. A document that was read before is not read again if it can have no effect, and
        nothing after a forged signature is looked at.
        """
        return self._take(
            document, "agent", most_bytes=_MOST_BYTES_OF_STRANGERS, patient=False, again=False
        )

    def _take(
        self, document: bytes, origin: str, *, most_bytes: int, patient: bool, again: bool = True
    ) -> OfferOutcome:
        now = self._clock.now().wall
        state = self._state
        try:
            parts = split(document, most_bytes=most_bytes)
            useless = [] if again else self._useless(parts, now)
            fresh = [part for part in parts if part not in dict(useless)]
            if useless and not fresh:
                max((one for _, one in useless), key=lambda one: one.epoch.number).check(state, now)
                return OfferOutcome()
            state, outcome = offer(state, fresh, now=now, patient=patient)
        except PolicyError as error:
            outcome = OfferOutcome(refusal=error)
        except Exception as error:  # noqa: BLE001  the boundary between one offer and the process
            report("policy offer", error, origin=origin)
            refusal = PolicyError(
                f"the policy cannot be used: {type(error).__name__}", reason="policy_malformed"
            )
            outcome = OfferOutcome(refusal=refusal)
        self._remember(outcome.verified)
        before, self._state = self._state, state
        if outcome.taken is not None:
            self._ended = self._said_over = False
            self._listeners.tell()  # first of all: the right of others may end with it
            self._woken.set()
            self._say_taken(before, outcome.taken, origin, now)
        return outcome

    def _useless(
        self, parts: Sequence[SignedPolicy], now: datetime
    ) -> list[tuple[SignedPolicy, VerifiedBefore]]:
        """Return those that were read before and can have no effect."""
        found = []
        for part in parts:
            try:
                known = self._verified.get(parse_envelope(part).digest)
            except PolicyError:
                continue  # offering it says what is wrong
            if known is not None and known.is_useless(self._state, now):
                found.append((part, known))
        return found

    def _remember(self, verified: Sequence[VerifiedBefore]) -> None:
        for one in verified:
            self._verified[one.epoch.digest] = one
            self._verified.move_to_end(one.epoch.digest)
        while len(self._verified) > _MOST_REMEMBERED:
            self._verified.popitem(last=False)

    def _say_refused(self, error: PolicyError, document: bytes, origin: str) -> None:
        if self._watcher is not None:
            self._watcher.refused(error)
        key = (error.reason, hashlib.sha256(document).digest())
        if key in self._said:
            return
        if len(self._said) > 1000:  # noqa: PLR2004  a bound on memory, not a rule
            self._said.clear()
        self._said.add(key)
        in_force = self.epoch
        _LOGGER.warning(
            "policy from %s refused: %s; %s",
            origin,
            error,
            f"epoch {in_force} stays" if in_force else "there is none",
            extra={"reason": error.reason, "origin": origin, "policy_epoch": in_force},
        )

    def _say_taken(
        self, before: PolicySuccession, policy: AdmittedPolicy, origin: str, now: datetime
    ) -> None:
        if self._watcher is not None:
            self._watcher.taken(policy, now=now)
        fields = {
            "policy_epoch": policy.epoch.number,
            "policy_digest": policy.epoch.digest.hex(),
            "origin": origin,
        }
        _LOGGER.info(
            "policy of epoch %d is in force until %s, signed by %s",
            policy.epoch.number,
            policy.not_after.isoformat(),
            ", ".join(policy.signed_by),
            extra=fields,
        )
        if before.policy is None:
            return
        old, new = (
            parse_payload(parse_envelope(one.signed).payload) for one in (before.policy, policy)
        )
        lines = differences(old, new)
        for line in lines[:_MOST_LINES]:
            _LOGGER.info("policy change: %s", line, extra=fields)
        if len(lines) > _MOST_LINES:
            _LOGGER.info(
                "policy change: and %d more (sds policy diff shows all)",
                len(lines) - _MOST_LINES,
                extra=fields,
            )

    # --- time -----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Announce the end of the policy in force, and tell listeners when it has come."""
        announced: bytes | None = None
        while True:
            self._woken.clear()
            now = self._clock.now().wall
            policy = self._state.policy
            wait = _LONGEST_SLEEP
            left = 0.0 if policy is None else (policy.not_after - now).total_seconds()
            if policy is not None and left <= 0 and not self._ended:
                self._end(policy)
            elif policy is not None and left > 0:
                if self._ended or self._said_over:
                    self._resume(policy, now)
                whole = (policy.not_after - policy.not_before).total_seconds()
                if left < whole * _WARN_BEFORE_END and announced != policy.epoch.digest:
                    announced = policy.epoch.digest
                    _LOGGER.warning(
                        "the policy of epoch %d ends at %s; then nothing is allowed: "
                        "distribute the next epoch",
                        policy.epoch.number,
                        policy.not_after.isoformat(),
                        extra={"policy_epoch": policy.epoch.number},
                    )
                wait = min(wait, left)
            await sleep_unless(self._woken, self._clock, wait)

    def _end(self, policy: AdmittedPolicy) -> None:
        self._ended, self._said_over = True, False
        if self._watcher is not None:
            self._watcher.ended()
        _LOGGER.error(
            "the policy of epoch %d expired at %s: nothing is allowed until a newer one comes",
            policy.epoch.number,
            policy.not_after.isoformat(),
            extra={"policy_epoch": policy.epoch.number, "reason": "policy_expired"},
        )
        self._listeners.tell()

    def _resume(self, policy: AdmittedPolicy, now: datetime) -> None:
        """Put a policy that had ended into force again, because the wall clock was set back."""
        self._ended = self._said_over = False
        if self._watcher is not None:
            self._watcher.taken(policy, now=now)
        _LOGGER.warning(
            "the wall clock was set back, so the policy of epoch %d is in force again until %s",
            policy.epoch.number,
            policy.not_after.isoformat(),
            extra={"policy_epoch": policy.epoch.number},
        )
        self._listeners.tell()
