"""What a kind of evidence is to the rest of the program: the contract of one module per kind.

Owns the contract alone; :mod:`sds.attestation.registry` lists who fulfils it. Invariant: nothing
outside a kind's own module asks which kind it is in order to parse, describe or verify it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from sds.attestation.evidence import Verifier

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from sds.attestation.checks import Verdict
    from sds.attestation.evidence import Attester, Evidence, ReportData
    from sds.attestation.files import InForce
    from sds.attestation.reference_values import ReferenceValues
    from sds.attestation.section import AttestationSection


class Examiner(Verifier, Protocol):
    """A verifier that can also list every check, for ``sds evidence verify``."""

    def examine(self, evidence: Evidence, *, data: ReportData | None, now: datetime) -> Verdict:
        """Run every check that can run; ``data`` None demands no report data."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Demands:
    """What a verifier of one kind is made from.

    Attributes:
        values: what is demanded; ``values.others`` has what is demanded of this kind alone.
        roots: DER of configured roots, of every kind; each kind takes its own.
        certificates: DER of certificates that evidence may come without; they add no trust.
        files: revocation lists and collateral that are in force now.
        product: the only product that is expected, by name, or None.
    """

    values: ReferenceValues
    roots: tuple[bytes, ...] = field(default=(), repr=False)
    certificates: tuple[bytes, ...] = field(default=(), repr=False)
    files: Callable[[], InForce]
    product: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KindOfEvidence:
    """One kind of evidence.

    Attributes:
        title: for people: the platform in words.
        examiner: makes its verifier; None if another part of the program verifies it. Raises an
            :class:`sds.errors.EvidenceError` where a root cannot be used.
        recognises: whether raw bytes of a file are of this kind, by their header.
        describe: every field of raw bytes as text; nothing is verified. Raises an
            :class:`sds.errors.EvidenceError`.
        contained: for kinds of configfs-tsm: the report data inside ``outblob``, and the
            certificates that ``outblob`` and ``auxblob`` give. Raises an ``EvidenceError``.
        attester: for kinds with an attester of their own: makes it from the section. Raises a
            :class:`sds.errors.ConfigurationError`.
    """

    title: str
    examiner: Callable[[Demands], Examiner] | None = None
    recognises: Callable[[bytes], bool] = lambda _: False
    describe: Callable[[bytes], dict[str, str]] | None = None
    contained: Callable[[bytes, bytes], tuple[bytes, tuple[bytes, ...]]] | None = None
    attester: Callable[[AttestationSection], Attester] | None = None
