"""Evidence, claims, and the binding of both to what is asked for (RATS, RFC 9334).

Owns the types that every kind of evidence shares and the two ports: an :class:`Attester`
produces evidence, a :class:`Verifier` turns it into :class:`Claims`. Invariant: only a verifier
makes ``Claims``; code that decides takes ``Claims`` and never :class:`Evidence`.

The binding (``report_data``) is 64 bytes: SHA-512 over parts, each preceded by its length as
eight bytes, big-endian, so that no two different lists of parts give the same input.
"""

from __future__ import annotations

import enum
import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NewType, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

ReportData = NewType("ReportData", bytes)
"""Exactly 64 bytes, made by :func:`report_data`."""

REQUEST_LABEL: Final = b"attested-sds/csr/v1"
"""Role label of evidence that an agent (or an authority asking upstream) gives with CSRs."""
AUTHORITY_LABEL: Final = b"attested-sds/ca/v1"
"""Role label of the evidence by which an authority proves itself."""
CSR_LABEL: Final = b"attested-sds/pkcs10/v1"
"""Role label of evidence inside a PKCS#10 request that travels alone (``attestation.csr``)."""

REPORT_DATA_BYTES: Final = 64


class EvidenceKind(enum.StrEnum):
    """Kinds of evidence, by the name that stands on the wire, in policy and in metrics."""

    SEV_SNP = "sev-snp"
    TDX = "tdx"
    KUBERNETES_TOKEN = "kubernetes-token"  # noqa: S105  a name, not a secret


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Evidence as it travels: nothing in it has been checked.

    Attributes:
        kind: what ``report`` is.
        report: the raw bytes: an SNP attestation report, a TDX quote, a token.
        certificates: DER certificates that help to verify it (leaf first); they add no trust.
    """

    kind: EvidenceKind
    report: bytes = field(repr=False)
    certificates: tuple[bytes, ...] = field(default=(), repr=False)

    @property
    def digest(self) -> str:
        """SHA-256 of the report in hex: names this evidence in logs and records."""
        return hashlib.sha256(self.report).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What verified and appraised evidence says about the attester.

    Attributes:
        kind: the kind of evidence.
        measurement: launch measurement (SNP MEASUREMENT, TDX MRTD) in lower-case hex; the node's
            name for kinds without a measurement.
        simulated: the chain ends in a configured root that is not the manufacturer's.
        attributes: every other claim, by the names that ``docs/attestation.md`` lists.
    """

    kind: EvidenceKind
    measurement: str
    simulated: bool
    attributes: Mapping[str, str] = field(default_factory=dict)


class Attester(Protocol):
    """Produces evidence about the machine that we run on."""

    async def attest(self, data: ReportData) -> Evidence:
        """Collect evidence that contains ``data`` as its report data.

        Raises:
            EvidenceError: it cannot be collected; ``retriable`` says whether to try again.
        """
        ...


class Verifier(Protocol):
    """Verifies and appraises evidence of one kind or of several."""

    def verify(self, evidence: Evidence, *, data: ReportData, now: datetime) -> Claims:
        """Check authenticity, binding to ``data`` and the reference values, at the time ``now``.

        Raises:
            EvidenceError: a subclass that names the first check that failed.
        """
        ...


def length_prefixed(parts: Iterable[bytes]) -> bytes:
    """Join parts, each preceded by its length in bytes as an 8-byte big-endian integer."""
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)


def item_digest(
    *,
    csr: bytes,
    spiffe_id: str,
    dns_names: tuple[str, ...],
    lifetime: int,
    signing: bool = False,
) -> bytes:
    """SHA-256 of one item of a request.

    Its parts: CSR (DER), SPIFFE ID, lifetime in seconds (8 bytes), number of DNS names (8 bytes),
    the DNS names in order, and ``signing`` as one more part where an authority's certificate is
    asked for.
    """
    parts = [
        csr,
        spiffe_id.encode(),
        lifetime.to_bytes(8, "big"),
        len(dns_names).to_bytes(8, "big"),
        *(name.encode() for name in dns_names),
        *([b"signing"] if signing else []),
    ]
    return hashlib.sha256(length_prefixed(parts)).digest()


def report_data(label: bytes, parts: Iterable[bytes]) -> ReportData:
    """The 64 bytes that evidence must contain: SHA-512 over the label and the parts.

    For :data:`REQUEST_LABEL` the parts are: nonce, policy digest, then one
    :func:`item_digest` per item in the order of the request. For :data:`AUTHORITY_LABEL` and
    :data:`CSR_LABEL` ``docs/exchange.md`` lists them; ``sds.exchange.challenge`` makes them.
    """
    return ReportData(hashlib.sha512(length_prefixed([label, *parts])).digest())
