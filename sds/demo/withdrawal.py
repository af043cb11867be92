"""Signs the demo's policy: one epoch takes away the client's right, the next gives it back.

Owns :class:`DemoPolicy` (one author, whose key exists in this process only) and :class:`Withdrawal`
(which answers are expected while a new epoch is on its way). Invariant: an answer is a failure
unless the policy that was published last explains it, or the one before it until the first answer
by the new one.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from securesystemslib.signer import CryptoSigner

from sds.demo.events import RightChanged
from sds.policy.envelope import add_signatures, new_envelope
from sds.policy.keys import verification_key

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from pathlib import Path

    from sds.clock import Clock

_WINDOW: Final = timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """The node and the workloads that the policy is about.

    Attributes:
        trust_domain: the trust domain of both workloads.
        measurement: the measurement of the node, lower-case hex.
        spiffe_ids: the SPIFFE IDs of ``client`` and ``server``.
        lifetime_seconds: the lifetime of certificates.
    """

    trust_domain: str
    measurement: str
    spiffe_ids: Mapping[str, str]
    lifetime_seconds: int


class DemoPolicy:
    """Signs one epoch after the other, and writes each to the file that both programs read."""

    def __init__(self, file: Path, mesh: Mesh, *, clock: Clock) -> None:
        """Publish epoch 1, under which the client may talk to the server."""
        private = ed25519.Ed25519PrivateKey.generate()
        public = private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        self._key = verification_key(public.decode(), name="demo")
        self._signer = CryptoSigner(private, self._key.key)
        self._file = file
        self._mesh = mesh
        self._clock = clock
        self.epoch = 0
        self.publish(allowed=True)

    def section(self) -> dict[str, Any]:
        """Return the section ``policy:`` of a configuration that trusts the author."""
        return {"file": str(self._file), "keys": [self._key.pem]}

    def publish(self, *, allowed: bool) -> int:
        """Write the next epoch, as a whole file; return its number."""
        self.epoch += 1
        payload = yaml.safe_dump(self._document(allowed=allowed), sort_keys=False).encode()
        signed = add_signatures(new_envelope(payload), [(self._signer, self._key)])
        beside = self._file.with_suffix(".new")
        beside.write_bytes(signed)
        beside.replace(self._file)
        return self.epoch

    def _document(self, *, allowed: bool) -> dict[str, Any]:
        now = self._clock.now().wall
        names = self._mesh.spiffe_ids
        rule = {
            "from": names["client"],
            "to": names["server"],
            "requests": [{"methods": ["GET"], "paths": ["/"]}],
        }
        return {
            "version": 1,
            "trust_domain": self._mesh.trust_domain,
            "epoch": self.epoch,
            "not_before": (now - timedelta(hours=1)).isoformat(),
            "not_after": (now + _WINDOW).isoformat(),
            "limits": {"max_lifetime": self._mesh.lifetime_seconds},
            "nodes": [
                {
                    "name": "demo",
                    "measurements": [self._mesh.measurement],
                    "grants": [{"spiffe_ids": list(names.values())}],
                }
            ],
            "allow": [rule] if allowed else [],
        }


class Withdrawal:
    """Compares the client's right as published with the right that requests show."""

    def __init__(self, policy: DemoPolicy, *, clock: Clock) -> None:
        """Begin with the client's right granted."""
        self._policy = policy
        self._clock = clock
        self._published_at: datetime = clock.now().wall
        self._allowed = True
        self._shown = True
        self.changes = 0
        """How many changes a request has shown."""

    def toggle(self) -> None:
        """Take away the right, or give it back, by a new epoch."""
        if self._allowed is not self._shown:
            return  # the previous change is still on its way
        self._published_at = self._clock.now().wall
        self._allowed = not self._allowed
        self._policy.publish(allowed=self._allowed)

    def saw(self, *, allowed: bool) -> RightChanged | None:
        """Note that a request was allowed or denied; return the event if a change shows first.

        Raises:
            ValueError: the answer contradicts the policy in force.
        """
        if allowed is self._shown:
            return None
        if allowed is not self._allowed:
            raise ValueError(
                f"the request was {'let through' if allowed else 'denied'} against the policy of "
                f"epoch {self._policy.epoch}"
            )
        self._shown = allowed
        self.changes += 1
        after = self._clock.now().wall - self._published_at
        return RightChanged(
            allowed=allowed,
            epoch=self._policy.epoch,
            seen_after_ms=after.total_seconds() * 1000,
        )
