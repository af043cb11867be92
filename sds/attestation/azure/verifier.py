"""Verification of evidence through an Azure paravisor's vTPM.

Owns the order of the checks: first the hardware report (by the verifier of its own kind), then that
it vouches for the runtime data, then the vTPM's quote by the key in that data, then the reference
values of PCRs and configuration. Invariants: claims are made only if every check of every part
passed; the measurement is the paravisor's, and the PCRs count only under the key that it reported.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Final

from pydantic import Field, StrictBool

from sds.attestation.azure.runtime import RuntimeData, parse_runtime, report_data_of
from sds.attestation.evidence import Claims, Evidence, EvidenceKind
from sds.attestation.examiner import KindExaminer
from sds.attestation.other_formats import HclBlob, parse_hcl
from sds.attestation.reference_values import Hex48  # noqa: TC001  pydantic reads annotations
from sds.attestation.snp.report import Report
from sds.attestation.tdx.quote import parse_quote
from sds.attestation.tpm.parcel import Piece, quote_of, unpack
from sds.attestation.tpm.quote import check_quote
from sds.attestation.tpm.values import (
    PcrValues,
    appraise_exchange_key,
    appraise_pcrs,
    claims_of_quote,
)
from sds.errors import EvidenceError, EvidenceMalformedError

if TYPE_CHECKING:
    from datetime import datetime

    from sds.attestation.checks import Checks
    from sds.attestation.evidence import ReportData
    from sds.attestation.kind import Examiner

_PARCEL: Final = "a paravisor's blob and its vTPM's quote"
_RUNTIME: Final = "JSON with one RSA attestation key"
VmId = Annotated[str, Field(min_length=1, max_length=64)]


class AzureValues(PcrValues):
    """The reference values of a vTPM kind under ``others``.

    Attributes:
        measurements: accepted paravisors, hex, in place of ``measurements`` above it: a guest
            without a paravisor can make up a vTPM, so its measurement must not count here.
        require_secure_boot: whether the paravisor must say that Secure Boot is on.
        vm_ids: accepted ``vmUniqueId``, in upper or lower case.
    """

    measurements: list[Hex48] = Field(default=[])
    require_secure_boot: StrictBool = False
    vm_ids: list[VmId] = Field(default=[])


class VtpmVerifier(KindExaminer):
    """Verifies and appraises evidence through a vTPM.

    Args:
        kind: the kind's name.
        hardware: the kind of the hardware report: ``sev-snp`` or ``tdx``.
        examiner: verifies the hardware report.
        values: the reference values beside those of the hardware report.
    """

    def __init__(
        self, kind: EvidenceKind, hardware: EvidenceKind, examiner: Examiner, values: AzureValues
    ) -> None:
        super().__init__(kind)
        self._hardware = hardware
        self._examiner = examiner
        self._values = values

    def _check(
        self, checks: Checks, evidence: Evidence, data: ReportData | None, now: datetime
    ) -> Claims | None:
        # 1. Layout of the parcel and of the blob (OpenHCL, AttestationReport).
        try:
            parts = unpack(evidence.report)
            quote = quote_of(parts)
            blob = parse_hcl(parts.get(Piece.HCL, b""))
            report = hardware_report(blob, parts.get(Piece.TD_QUOTE))
            said = reported_data(blob, report)
        except EvidenceError as error:
            checks.attempt("vtpm_evidence", error, found=error.message, expected=_PARCEL)
            return None
        if not checks.add(
            "vtpm_evidence",
            "evidence_kind",
            ok=blob.kind == self._hardware,
            found=blob.kind,
            expected=self._hardware,
        ):
            return None
        # 2. The hardware report, by every check of its own kind.
        # The proof is about the vTPM's register, not about the hardware's.
        hardware = replace(evidence, kind=self._hardware, report=report, proof=None)
        inner = self._examiner.examine(hardware, data=None, now=now)
        checks.done += [check for check in inner.checks if check.name != "kind"]
        # 3. - 4. The report vouches for the runtime data, which names the vTPM's key.
        runtime = _check_runtime(checks, blob, said)
        # 5. - 8. The quote by that key, over our data and the PCRs.
        key = runtime.key if runtime is not None else None
        verified = check_quote(checks, quote, key, data)
        # 9. The reference values.
        appraise_pcrs(checks, verified, self._values)
        keyed = appraise_exchange_key(
            checks, verified, self._values, proof=evidence.proof, data=data
        )
        if runtime is not None:
            self._appraise(checks, runtime)
        if inner.claims is None:
            return None
        configuration = runtime.configuration if runtime is not None else {}
        return Claims(
            kind=self._kind,
            measurement=inner.claims.measurement,
            simulated=inner.claims.simulated,
            attributes={
                **inner.claims.attributes,
                **{f"vm_{name}": value for name, value in configuration.items()},
                **claims_of_quote(verified),
                **keyed,
            },
        )

    def _appraise(self, checks: Checks, runtime: RuntimeData) -> None:
        secure = runtime.configuration.get("secure_boot", "not said")
        if self._values.require_secure_boot:
            checks.add(
                "secure_boot", "guest_policy", ok=secure == "true", found=secure, expected="true"
            )
        checks.among(
            "vm_id",
            "guest_identity",
            found=runtime.configuration.get("vmuniqueid", "not said").lower(),
            # The paravisor writes upper case, and Azure's command line lower case (RFC 9562, 4).
            accepted=map(str.lower, self._values.vm_ids),
        )


def _check_runtime(checks: Checks, blob: HclBlob, said: bytes) -> RuntimeData | None:
    try:
        expected = report_data_of(blob.runtime, blob.hash_type)
        runtime = parse_runtime(blob.runtime)
    except EvidenceError as error:
        checks.attempt("runtime_data", error, found=error.message, expected=_RUNTIME)
        return None
    held = checks.add(
        "runtime_data",
        "vtpm_unbound",
        ok=said == expected,
        found=said.hex,
        expected=lambda: f"{expected.hex()}, the hash of the runtime data",
    )
    return runtime if held else None


def hardware_report(blob: HclBlob, td_quote: bytes | None) -> bytes:
    """Return what the manufacturer vouches for: the SNP report, or the quote of the TDREPORT.

    Raises:
        EvidenceMalformedError: there is no quote beside a TDREPORT, or one beside an SNP report.
    """
    if (blob.kind == "tdx") != (td_quote is not None):
        raise EvidenceMalformedError(
            f"a paravisor's blob with {blob.kind}, and {'a' if td_quote else 'no'} TDX quote",
            advice="the instance metadata service makes a quote of a TDREPORT",
        )
    return blob.report if td_quote is None else td_quote


def reported_data(blob: HclBlob, report: bytes) -> bytes:
    """Return the report data of a hardware report.

    Raises:
        EvidenceError: it cannot be parsed.
    """
    if blob.kind == "tdx":
        return parse_quote(report).body.report_data
    return Report.parse(report).report_data
