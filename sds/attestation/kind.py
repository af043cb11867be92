"""The contract of a kind of evidence, which one module for each kind fulfils.

Owns only the contract; :mod:`sds.attestation.registry` lists the modules. Invariant: no code
outside a kind's own module parses, describes or verifies it by its kind.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from sds.attestation.evidence import Verifier
from sds.attestation.registry import kind_module
from sds.errors import EvidenceError

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from sds.attestation.checks import Verdict
    from sds.attestation.collateral.followed_files import InForce
    from sds.attestation.evidence import Attester, Evidence, ReportData
    from sds.attestation.reference_values import ReferenceValues
    from sds.attestation.settings import AttestationSection


class Examiner(Verifier, Protocol):
    """A verifier that can also list every check, for ``sds evidence verify``."""

    def examine(self, evidence: Evidence, *, data: ReportData | None, now: datetime) -> Verdict:
        """Run every check that can run; if ``data`` is None, any report data is accepted."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Demands:
    """The parts from which a verifier of one kind is made.

    Attributes:
        values: the reference values; ``values.others`` has those of this kind alone.
        roots: configured roots of every kind, in DER; each kind takes its own.
        certificates: certificates in DER that evidence may lack; they add no trust.
        files: gives the revocation lists and collateral in force.
        product: the only expected product, by name, or None.
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
        title: the platform in words, for people.
        examiner: makes its verifier; None if another part of the program verifies it. It raises an
            :class:`sds.errors.EvidenceError` if a root cannot be used.
        recognises: says whether raw bytes of a file are of this kind, by their header.
        describe: returns every field of raw bytes as text, unverified. It may raise an
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


def require_usable(values: ReferenceValues) -> None:
    """Check that the values of further kinds are what their modules define.

    Raises:
        EvidenceError: a verifier cannot be made from them.
    """
    for name in values.others:
        make = kind_module(name).examiner
        if make is not None:
            make(Demands(values=values, files=_no_files))


def _no_files() -> InForce:
    raise EvidenceError("no evidence is verified here")
