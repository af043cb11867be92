"""The keys that sign a cluster's service-account tokens, followed as the cluster rotates them.

Owns when the key set is read: at the start, every minute, and at once (but at most every few
seconds) after a token named a key that is not in it. Invariant: a key counts as missing only if the
set was read after the key was first asked for; until then, its tokens are refused with a retriable
reason, so that an agent asks again in a moment and not after the next minute.

Source: RFC 7517; Kubernetes, "Service account issuer discovery" (``/openid/v1/jwks``).
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from sds import threads
from sds.attestation.kubernetes.token import JwksKeys
from sds.backoff import Backoff, Retry, sleep_unless
from sds.errors import (
    EvidenceError,
    EvidenceMalformedError,
    KubernetesError,
    RefusedError,
    without_frames,
)
from sds.files import read_file
from sds.untrusted_input import words_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    import jwt

    from sds.clock import Clock
    from sds.workload.kubernetes.api import ApiClient

_LOGGER = logging.getLogger(__name__)
_PATH: Final = "/openid/v1/jwks"
_EVERY_SECONDS: Final = 60.0
_SHORTEST_SECONDS: Final = 3.0
"""The least seconds between two reads that tokens cause: anybody can send such a token."""
_ANSWER_SECONDS: Final = 30.0
_RETRY: Final = Backoff(first=0.5, longest=5.0)
_MAX_BYTES: Final = 1024 * 1024
_MOST_MISSED: Final = 64
"""How many missing key IDs are remembered; a cluster has two or three keys."""


def key_reader(file: Path | None, api: ApiClient) -> Callable[[], Awaitable[bytes]]:
    """Make a function that reads the key set from ``file``, or without one from the API server."""

    async def read() -> bytes:
        if file is not None:
            return await threads.TOKEN_KEYS.run(read_file, file, max_bytes=_MAX_BYTES)
        return await api.get(_PATH)

    return read


class TokenKeys:
    """A :class:`sds.attestation.kubernetes.token.KeySet` that is read at intervals."""

    def __init__(self, read: Callable[[], Awaitable[bytes]], *, clock: Clock) -> None:
        """Begin without keys; :meth:`run` reads the set."""
        self._read = read
        self._clock = clock
        self._keys = JwksKeys()
        self._missed: dict[str, None] = {}
        """Missing keys that were asked for since the last read began."""
        self._absent: frozenset[str] = frozenset()
        """Missing keys that were asked for before the last read began."""
        self._wanted = asyncio.Event()

    def key(self, key_id: str) -> jwt.PyJWK:
        """Return the key with this ID.

        Raises:
            RefusedError: ``authority_not_ready``: it is unknown, and the set is read again now.
            EvidenceError: ``signature_invalid``: it is not in the cluster's key set.
        """
        try:
            return self._keys.key(key_id)
        except EvidenceError:
            if key_id in self._absent:
                raise
            if len(self._missed) < _MOST_MISSED:
                self._missed[key_id] = None
            self._wanted.set()
            raise RefusedError(
                "the token is signed with a key that this authority does not know; it reads the "
                "cluster's keys again now",
                reason="authority_not_ready",
            ) from None

    async def run(self) -> None:
        """Read the set, again and again, until cancelled."""
        retry = Retry(self._clock, _RETRY)
        said = ""
        while True:
            asked = frozenset(self._missed)
            self._missed.clear()
            self._wanted.clear()
            try:
                async with asyncio.timeout(_ANSWER_SECONDS):
                    document = await self._read()
                self._keys.replace(document)
            except (KubernetesError, EvidenceMalformedError, OSError) as error:
                why = words_of(error)
                if why != said:
                    said = why
                    _LOGGER.warning(
                        "the keys of service-account tokens cannot be read", extra={"why": said}
                    )
                without_frames(error)  # some of them have the token of this attempt
                if isinstance(error, KubernetesError):
                    await self._clock.sleep(min(error.later, _EVERY_SECONDS))
                await retry.pause()
                continue
            if said:
                said = ""
                _LOGGER.info("the keys of service-account tokens can be read again")
            retry.succeeded()
            self._absent = asked
            await self._clock.sleep(_SHORTEST_SECONDS)
            await sleep_unless(self._wanted, self._clock, _EVERY_SECONDS - _SHORTEST_SECONDS)
