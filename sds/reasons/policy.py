"""Reasons of errors of signed policy."""

from __future__ import annotations

from typing import Final

from sds.reasons.row import Reason

POLICY: Final[dict[str, Reason]] = {
    "policy": Reason("A general reason: the message says what is wrong."),
    "policy_unreadable": Reason(
        "The policy's file or directory is missing or cannot be read; what is in force stays. Put "
        "it back, and check its permissions."
    ),
    "policy_malformed": Reason(
        "The file is damaged or is not the signed document. Sign the policy again, and distribute "
        "the `.json` file.",
    ),
    "policy_unsigned": Reason("Sign it with a key whose public half the parties trust."),
    "policy_below_threshold": Reason(
        "Collect the missing signatures; `sds policy verify` says which keys signed."
    ),
    "policy_trust_domain": Reason(
        "This policy belongs to another trust domain; distribute the right one."
    ),
    "policy_not_yet_valid": Reason(
        "Wait until `not_before`, or check the clock.",
        retriable=True,
    ),
    "policy_expired": Reason("Sign and distribute a new epoch."),
    "policy_epoch_lower": Reason(
        "Somebody put an older policy back. Distribute the newest one, and find out who did it.",
    ),
    "policy_epoch_conflict": Reason(
        "Two documents have the same epoch. Raise the epoch of the one that you want in force, and "
        "sign it.",
    ),
    "policy_absent": Reason(
        "Distribute a signed policy; until then nothing is issued or served.",
        retriable=True,
    ),
    "policy_signing": Reason("Check the key file, or the output of the external signer."),
}
