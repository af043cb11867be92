"""Retired keys, which are wiped once no subscriber uses them, or after a bounded time.

Owns the keys between the moment at which they are replaced and the moment at which they are wiped.
Invariant: :data:`RELEASE_SECONDS` after it retired, a key's pages are overwritten, whatever clients
do (decision 0402; copies in output that nobody reads: :mod:`sds.serving.unsent_secrets`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from sds.clock import Instant
    from sds.secrets.key_memory import SecretBytes
    from sds.secrets.store import Svid

RELEASE_SECONDS: Final = 10.0


class RetiredKeys:
    """Keeps the keys that wait to be wiped."""

    def __init__(self) -> None:
        self._waiting: list[tuple[str, SecretBytes, float]] = []

    def add(self, svid: Svid, now: Instant) -> None:
        """Take the key of an SVID that is no longer served."""
        self._waiting.append((svid.key_id, svid.private_key, now.boottime))

    def wipe(self, now: Instant, *, held: Callable[[], Collection[str]]) -> None:
        """Wipe the keys that nobody uses, and those that have waited for long enough.

        Args:
            now: the time.
            held: tells the ids of keys that subscribers may still use: it looks at all of them,
                so it is asked only where a key waits.
        """
        if not self._waiting:
            return
        still, left = held(), []
        for key_id, secret, since in self._waiting:
            if key_id in still and now.boottime - since < RELEASE_SECONDS:
                left.append((key_id, secret, since))
            else:
                secret.wipe()
        self._waiting = left

    def wipe_all(self) -> None:
        """Wipe every key at once, because the agent ends."""
        for _, secret, _ in self._waiting:
            secret.wipe()
        self._waiting.clear()
