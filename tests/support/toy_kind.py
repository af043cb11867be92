"""A kind of evidence that exists only in the tests: all that a new kind needs beside its line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pydantic import BaseModel, ConfigDict, ValidationError

from sds.attestation.checks import Checks, Verdict
from sds.attestation.evidence import Claims, Evidence, EvidenceKind
from sds.attestation.kind import KindOfEvidence
from sds.errors import EvidenceError, EvidenceMalformedError

if TYPE_CHECKING:
    from datetime import datetime

    from sds.attestation.evidence import ReportData
    from sds.attestation.kind import Demands
    from sds.attestation.reference_values import ReferenceValues
    from sds.attestation.settings import AttestationSection

NAME: Final = "toy"
_MAGIC: Final = b"TOY1"


class ToyValues(BaseModel):
    """What ``reference_values.others.toy`` may demand."""

    model_config = ConfigDict(extra="forbid", strict=True)

    colour: str = ""


def make(data: bytes, *, measurement: bytes = b"m" * 48, colour: str = "red") -> bytes:
    """Evidence of a toy."""
    return _MAGIC + data + measurement + colour.encode()


@dataclass(frozen=True, slots=True)
class ToyVerifier:
    """Verifies toys."""

    values: ReferenceValues
    own: ToyValues

    def verify(self, evidence: Evidence, *, data: ReportData, now: datetime) -> Claims:
        """Check, and raise where a check fails."""
        return self.examine(evidence, data=data, now=now).claims_or_raise()

    def examine(self, evidence: Evidence, *, data: ReportData | None, now: datetime) -> Verdict:
        """Run every check."""
        del now
        checks = Checks()
        said = describe(evidence.report)
        if data is not None:
            found = said["report_data"]
            checks.add(
                "report_data",
                "report_data_mismatch",
                ok=found == data.hex(),
                found=found,
                expected=data.hex(),
            )
        checks.among(
            "measurement",
            "measurement",
            found=said["measurement"],
            accepted=self.values.measurements,
        )
        wanted = [self.own.colour] if self.own.colour else []
        checks.among("colour", "guest_identity", found=said["colour"], accepted=wanted)
        return Verdict(
            kind=NAME,
            checks=tuple(checks.done),
            claims=Claims(
                kind=EvidenceKind(NAME),
                measurement=said["measurement"],
                simulated=True,
                attributes=said,
            ),
        )


def describe(raw: bytes) -> dict[str, str]:
    """Every field as text."""
    if len(raw) < len(_MAGIC) + 112 or not raw.startswith(_MAGIC):
        raise EvidenceMalformedError("not a toy")
    body = raw[len(_MAGIC) :]
    return {
        "report_data": body[:64].hex(),
        "measurement": body[64:112].hex(),
        "colour": body[112:].decode("ascii", "replace"),
    }


def _examiner(demands: Demands) -> ToyVerifier:
    try:
        own = ToyValues.model_validate(demands.values.others.get(NAME, {}))
    except ValidationError as error:
        raise EvidenceError(f"others.{NAME}: {error.errors()[0]['msg']}") from error
    return ToyVerifier(demands.values, own)


class ToyAttester:
    """Gives evidence of a toy."""

    async def attest(self, data: ReportData) -> Evidence:
        """Make it."""
        return Evidence(kind=EvidenceKind(NAME), report=make(data))


def _attester(_: AttestationSection) -> ToyAttester:
    return ToyAttester()


KIND = KindOfEvidence(
    title="toy",
    examiner=_examiner,
    recognises=lambda raw: raw.startswith(_MAGIC),
    describe=describe,
    contained=lambda outblob, auxblob: (bytes.fromhex(describe(outblob)["report_data"]), ()),
    attester=_attester,
)
