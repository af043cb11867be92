"""The threshold: how many trusted keys must have signed a policy.

Owns :class:`TrustedKeys` and the check. Invariant: a threshold counts distinct public keys, never
names, key ids or signatures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from securesystemslib.exceptions import UnverifiedSignatureError

from sds.errors import ConfigurationError, PolicyError

if TYPE_CHECKING:
    from sds.policy.envelope import SignedEnvelope
    from sds.policy.keys import VerificationKey


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustedKeys:
    """The keys that may sign; ``threshold`` distinct ones of them must sign."""

    keys: tuple[VerificationKey, ...]
    threshold: int

    def __post_init__(self) -> None:
        """Check that the keys are distinct and that they can reach the threshold.

        Raises:
            ConfigurationError: there is no key, a repeated key, or a threshold out of range.
        """
        if not self.keys:
            raise ConfigurationError(
                "no key is trusted to sign policy", advice="name at least one public key"
            )
        names: dict[str, str] = {}
        for key in self.keys:
            if key.key_id in names:
                raise ConfigurationError(
                    f"the policy keys {names[key.key_id]!r} and {key.name!r} are the same key",
                    advice="name each signer's own key once: a threshold counts distinct keys",
                )
            names[key.key_id] = key.name
        if not 1 <= self.threshold <= len(self.keys):
            raise ConfigurationError(
                f"a threshold of {self.threshold} cannot be reached with {len(self.keys)} keys",
                advice="use a threshold from 1 to the number of keys",
            )


def check_signatures(envelope: SignedEnvelope, trusted: TrustedKeys) -> tuple[str, ...]:
    """Check that enough trusted keys signed, and return the names of those that did, sorted.

    Raises:
        PolicyError: ``policy_unsigned``: no signature by a trusted key is valid.
        PolicyError: ``policy_below_threshold``: fewer distinct trusted keys than the threshold
            signed.
    """
    names, forged = [], False
    encoded = envelope.envelope.pae()
    for key in trusted.keys:
        signature = envelope.envelope.signatures.get(key.key_id)
        if signature is None:
            continue
        try:
            key.key.verify_signature(signature, encoded)
        except UnverifiedSignatureError:
            forged = True
            continue
        names.append(key.name)
    error = None
    if not names:
        error = PolicyError(
            "no signature of the policy is valid under a trusted key "
            f"(it names {', '.join(key_id[:12] for key_id in envelope.key_ids[:8])}; trusted are "
            f"{', '.join(f'{key.name} {key.key_id[:12]}' for key in trusted.keys)})",
            advice="the file was altered, or other keys signed it",
            reason="policy_unsigned",
        )
    elif len(names) < trusted.threshold:
        error = PolicyError(
            f"{len(names)} of {len(trusted.keys)} trusted keys signed the policy "
            f"({', '.join(sorted(names))}), {trusted.threshold} must",
            advice="let the others sign too: `sds policy sign SIGNED.json --key …`",
            reason="policy_below_threshold",
        )
    if error is not None:
        error.forged = forged
        raise error
    return tuple(sorted(names))
