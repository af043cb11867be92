"""Evidence, claims, and how evidence binds a request (RATS, RFC 9334).

Owns the types that every kind of evidence shares and the two ports: an :class:`Attester`
produces evidence, a :class:`Verifier` turns it into :class:`Claims`. Invariant: only a verifier
makes ``Claims``; code that decides takes ``Claims`` and never :class:`Evidence`.

The binding (``report_data``) is 64 bytes: SHA-512 over parts, each preceded by its length as
eight bytes, big-endian, so that no two different lists of parts give the same input.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Final, NewType, Protocol, Self, runtime_checkable

from pydantic_core import core_schema

from sds.attestation.registry import KINDS
from sds.errors import EvidenceError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
    from pydantic_core import CoreSchema

ReportData = NewType("ReportData", bytes)
"""Exactly 64 bytes, made by :func:`report_data`."""

REQUEST_LABEL: Final = b"attested-sds/csr/v1"
"""The role label of evidence that an agent, or an authority that asks upstream, gives with CSRs."""
AUTHORITY_LABEL: Final = b"attested-sds/ca/v1"
"""The role label of the evidence by which an authority proves itself."""
CSR_LABEL: Final = b"attested-sds/pkcs10/v1"
"""The role label of evidence inside a PKCS#10 request that travels alone (``attestation.csr``)."""

REPORT_DATA_BYTES: Final = 64


class EvidenceKind(str):
    """The name of a kind of evidence, as it is written on the wire, in policy and in metrics.

    There is one object for each name, so ``is`` compares kinds. Names are those of
    :data:`sds.attestation.registry.KINDS`; any other raises ``ValueError``.
    """

    __slots__ = ()
    _made: ClassVar[dict[str, EvidenceKind]] = {}
    SEV_SNP: ClassVar[EvidenceKind]
    TDX: ClassVar[EvidenceKind]
    KUBERNETES_TOKEN: ClassVar[EvidenceKind]

    def __new__(cls, name: str) -> Self:
        if name not in KINDS:
            raise ValueError(f"{name!r} is not a kind of evidence; known are {', '.join(KINDS)}")
        found = cls._made.get(name)
        if not isinstance(found, cls):
            found = cls._made[name] = super().__new__(cls, name)
        return found

    @property
    def value(self) -> str:
        """Return the name as a plain ``str``."""
        return str.__str__(self)

    @classmethod
    def all(cls) -> tuple[Self, ...]:
        """Return every kind, in the order of the registry."""
        return tuple(map(cls, KINDS))

    @classmethod
    def _validated(cls, value: object) -> Self:
        if not isinstance(value, str):
            raise ValueError("the name of a kind of evidence is a text")  # noqa: TRY004  pydantic
        return cls(value)

    @classmethod
    def __get_pydantic_core_schema__(  # noqa: D105
        cls, source: type[object], handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls._validated,
            serialization=core_schema.plain_serializer_function_ser_schema(str.__str__),
        )

    @classmethod
    def __get_pydantic_json_schema__(  # noqa: D105
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, object]:
        return {"type": "string", "enum": list(KINDS)}


EvidenceKind.SEV_SNP = EvidenceKind("sev-snp")
EvidenceKind.TDX = EvidenceKind("tdx")
EvidenceKind.KUBERNETES_TOKEN = EvidenceKind("kubernetes-token")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeProof:
    """A proof that the holder of the measured exchange key made evidence; not checked yet.

    Attributes:
        public_key: the exchange key's SubjectPublicKeyInfo, DER.
        events: the digests that were extended into the runtime register, in order.
        signature: the key's signature over the evidence's report data
            (:mod:`sds.attestation.exchange_key.events`).
    """

    public_key: bytes = field(repr=False)
    events: tuple[bytes, ...] = field(repr=False)
    signature: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Evidence as it travels: nothing in it has been checked.

    Attributes:
        kind: the kind of ``report``.
        report: the raw bytes: an SNP attestation report, a TDX quote, a token.
        certificates: DER certificates that help to verify it (leaf first); they add no trust.
        proof: shows that the holder of the measured exchange key made it, on platforms with runtime
            registers.
    """

    kind: EvidenceKind
    report: bytes = field(repr=False)
    certificates: tuple[bytes, ...] = field(default=(), repr=False)
    proof: ExchangeProof | None = None

    @property
    def digest(self) -> str:
        """Return the SHA-256 of the report in hex; it names this evidence in logs and records."""
        return hashlib.sha256(self.report).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What verified and appraised evidence says about the attester.

    Attributes:
        kind: the kind of evidence.
        measurement: the launch measurement (SNP MEASUREMENT, TDX MRTD) in lower-case hex; for kinds
            without one, the node's name.
        simulated: whether the chain ends in a configured root that is not the manufacturer's.
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


@runtime_checkable
class ChallengedAttester(Protocol):
    """An attester that can prove more if it is asked in a second round."""

    async def answer_challenge(self, challenge: bytes) -> None:
        """Compute the answer, which all later evidence contains.

        Raises:
            EvidenceError: the challenge cannot be answered.
        """
        ...


async def answer_challenge(attester: object, challenge: bytes) -> None:
    """Let an attester answer.

    Raises:
        EvidenceError: ``evidence_unsupported``: its kind answers no challenges; else the attester's
            error.
    """
    if not isinstance(attester, ChallengedAttester):
        raise EvidenceError(
            "the other side asks for a proof that this machine cannot give",
            reason="evidence_unsupported",
        )
    await attester.answer_challenge(challenge)


class Verifier(Protocol):
    """Verifies and appraises evidence of one kind or of several."""

    def verify(self, evidence: Evidence, *, data: ReportData, now: datetime) -> Claims:
        """Check authenticity, binding to ``data`` and the reference values, at the time ``now``.

        Raises:
            EvidenceError: the reason names the first check that failed.
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
    """Return the SHA-256 of one item of a request.

    Its parts are CSR (DER), SPIFFE ID, lifetime in seconds (8 bytes), number of DNS names (8
    bytes), the DNS names in order, and the word ``signing`` if an authority's certificate is
    requested.
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
    """Return the 64 bytes that evidence must contain: SHA-512 over the label and the parts.

    For :data:`REQUEST_LABEL` the parts are: nonce, policy digest, then one
    :func:`item_digest` per item in the order of the request. For :data:`AUTHORITY_LABEL` and
    :data:`CSR_LABEL` ``docs/exchange.md`` lists them; ``sds.exchange.challenge`` makes them.
    """
    return ReportData(hashlib.sha512(length_prefixed([label, *parts])).digest())
