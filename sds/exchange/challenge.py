"""Nonces, and the data that evidence binds.

Owns the table of nonces and the parts of ``report_data`` in all three roles. Invariants: a nonce
is 32 random bytes, belongs to one stream, can be redeemed once whatever the result, and lives no
longer than its stream and ``lifetime``; the table never has more than ``limit`` nonces. Pure:
``now`` is a monotonic time in seconds.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from sds.attestation.evidence import (
    AUTHORITY_LABEL,
    CSR_LABEL,
    REQUEST_LABEL,
    item_digest,
    length_prefixed,
    report_data,
)
from sds.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sds.attestation.evidence import ReportData
    from sds.exchange.item import CertificateItem

NONCE_BYTES: Final = 32
MAX_ITEMS: Final = 1000
"""The most items in one request."""
MAX_COVERED: Final = 256
"""The most Hello nonces that one piece of the authority's evidence covers."""
_REMEMBERED: Final = 8
"""How many spent nonces a stream remembers, to say why one is refused."""
_MAX_PER_STREAM: Final = 16
"""The most live nonces of one stream; an agent has one or two. Even if every stream that strangers
may open has as many, the table still has room for the nonces of agents."""


def new_nonce() -> bytes:
    """Return 32 random bytes."""
    return secrets.token_bytes(NONCE_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorityStatement:
    """What an authority states about itself; its evidence binds this.

    Attributes:
        issuing_chain: DER, the issuing certificate first.
        issuing_key: SHA-256 of the issuing key's SubjectPublicKeyInfo.
        roots: DER, the trust bundle.
        tls_key: SHA-256 of the SubjectPublicKeyInfo of its TLS certificate.
        policy_digest: SHA-256 of its policy in force.
        policy_epoch: that policy's epoch.
    """

    issuing_chain: tuple[bytes, ...] = field(repr=False)
    issuing_key: bytes
    roots: tuple[bytes, ...] = field(repr=False)
    tls_key: bytes
    policy_digest: bytes
    policy_epoch: int


def authority_report_data(statement: AuthorityStatement, nonces: Iterable[bytes]) -> ReportData:
    """Return the report data of an authority's evidence (label ``attested-sds/ca/v1``).

    The parts: TLS key digest, issuing key digest, bundle digest, policy digest, policy epoch
    (8 bytes, big-endian), then every agent's nonce in order.
    """
    return report_data(
        AUTHORITY_LABEL,
        [
            statement.tls_key,
            statement.issuing_key,
            bundle_digest(statement.roots),
            statement.policy_digest,
            statement.policy_epoch.to_bytes(8, "big"),
            *nonces,
        ],
    )


def bundle_digest(roots: Sequence[bytes]) -> bytes:
    """Return the SHA-256 of a bundle: its roots in DER, sorted, each preceded by its length."""
    return hashlib.sha256(length_prefixed(sorted(roots))).digest()


def request_report_data(
    *, nonce: bytes, policy_digest: bytes, digests: Iterable[bytes]
) -> ReportData:
    """Return the report data of an agent's evidence (label ``attested-sds/csr/v1``)."""
    return report_data(REQUEST_LABEL, [nonce, policy_digest, *digests])


def attested_csr_report_data(*, nonce: bytes, key_digest: bytes) -> ReportData:
    """Return the report data of evidence inside a PKCS#10 request (``attested-sds/pkcs10/v1``).

    The parts: the authority's nonce and the SHA-256 of the CSR's SubjectPublicKeyInfo. It cannot
    bind the CSR that contains it; the CSR's own signature, by the bound key, covers its names.
    """
    return report_data(CSR_LABEL, [nonce, key_digest])


def digest_of(item: CertificateItem) -> bytes:
    """Return the digest of an item that we ask for, exactly as it goes on the wire."""
    return item_digest(
        csr=item.csr,
        spiffe_id=str(item.identity.spiffe_id),
        dns_names=item.identity.dns_names,
        lifetime=lifetime_seconds(item),
        signing=item.signing,
    )


def lifetime_seconds(item: CertificateItem) -> int:
    """Return the requested lifetime in whole seconds, at least one."""
    return max(1, int(item.identity.lifetime.total_seconds()))


@dataclass(slots=True)
class StreamNonces:
    """The nonces of one stream: the live ones with their ends, and the last spent ones."""

    living: OrderedDict[bytes, float] = field(default_factory=OrderedDict)
    spent: deque[tuple[bytes, bool]] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))


class NonceTable:
    """All nonces of an authority.

    Args:
        lifetime: the most seconds that a nonce lives; as long as the longest certificate.
        limit: the most nonces in all. If there is no room, the oldest one goes, on any stream.
    """

    def __init__(self, *, lifetime: float, limit: int) -> None:
        self.lifetime = lifetime
        self._limit = limit
        self._all: OrderedDict[bytes, StreamNonces] = OrderedDict()

    def __len__(self) -> int:
        """Return how many nonces are live."""
        return len(self._all)

    def open(self) -> StreamNonces:
        """Return the empty table of a new stream."""
        return StreamNonces()

    def issue(self, stream: StreamNonces, *, now: float) -> bytes:
        """Make a fresh nonce for this stream."""
        self._expire(now)
        if len(stream.living) >= _MAX_PER_STREAM:
            self._spend(next(iter(stream.living)), used=False)
        while len(self._all) >= self._limit:
            self._spend(next(iter(self._all)), used=False)
        nonce = new_nonce()
        stream.living[nonce] = now + self.lifetime
        self._all[nonce] = stream
        return nonce

    def redeem(self, stream: StreamNonces, nonce: bytes, *, now: float) -> None:
        """Use up a nonce.

        Raises:
            RefusedError: ``nonce_used``: this stream used it before.
            RefusedError: ``nonce_expired``: it is too old, or a newer one took its place.
            RefusedError: ``nonce_unknown``: this stream was never given it.
        """
        self._expire(now)
        if nonce in stream.living:
            self._spend(nonce, used=True)
            return
        for spent, used in stream.spent:
            if secrets.compare_digest(spent, nonce):
                if used:
                    raise RefusedError(
                        "this nonce was used before; each serves one request", reason="nonce_used"
                    )
                raise RefusedError(
                    f"this nonce is older than {self.lifetime:g} s, or a newer one took its place",
                    reason="nonce_expired",
                )
        raise RefusedError("this stream was not given this nonce", reason="nonce_unknown")

    def close(self, stream: StreamNonces) -> None:
        """Forget all nonces of a stream that is gone."""
        for nonce in stream.living:
            del self._all[nonce]
        stream.living.clear()
        stream.spent.clear()

    def _expire(self, now: float) -> None:
        # All have the same lifetime, so the oldest come first.
        while self._all:
            nonce, stream = next(iter(self._all.items()))
            if stream.living[nonce] > now:
                return
            self._spend(nonce, used=False)

    def _spend(self, nonce: bytes, *, used: bool) -> None:
        stream = self._all.pop(nonce)
        del stream.living[nonce]
        stream.spent.append((nonce, used))
