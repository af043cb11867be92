"""The common part of both kinds of evidence of Azure's confidential VMs.

Owns how each kind is made from the kind of its hardware report. The registry names
``sds.attestation.azure.snp`` and ``sds.attestation.azure.tdx``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from sds.attestation.azure.verifier import AzureValues, VtpmVerifier, hardware_report
from sds.attestation.evidence import EvidenceKind
from sds.attestation.kind import KindOfEvidence
from sds.attestation.other_formats import parse_hcl
from sds.attestation.tpm.parcel import MARK, Piece, quote_of, unpack
from sds.attestation.tpm.quote import describe_quote
from sds.attestation.tpm.values import own_values
from sds.errors import EvidenceError

if TYPE_CHECKING:
    from sds.attestation.evidence import Attester
    from sds.attestation.kind import Demands
    from sds.attestation.settings import AttestationSection

_PARAVISORS_VMPL: Final = 0


def vtpm_kind(
    name: str, hardware: KindOfEvidence, hardware_name: str, title: str
) -> KindOfEvidence:
    """Make the kind of evidence through a vTPM around one kind of hardware report."""

    def examiner(demands: Demands) -> VtpmVerifier:
        own = own_values(name, AzureValues, demands.values)
        values = demands.values
        # Reports of the guest below have the paravisor's measurement too, and data that it chose.
        snp = values.snp.model_copy(update={"maximum_vmpl": _PARAVISORS_VMPL})
        values = values.model_copy(update={"snp": snp})
        if own.measurements:
            values = values.model_copy(update={"measurements": own.measurements})
        if own.exchange_key_pcr is not None and own.measurements:
            # The key is in the vTPM's register, so what is required of RTMR3 is required of that:
            # of a paravisor's vTPM, because any process of another TD can make one up.
            tdx = values.tdx.model_copy(update={"require_exchange_key": False})
            values = values.model_copy(update={"tdx": tdx})
        assert hardware.examiner is not None
        inner = hardware.examiner(replace(demands, values=values))
        return VtpmVerifier(EvidenceKind(name), EvidenceKind(hardware_name), inner, own)

    def recognises(raw: bytes) -> bool:
        if not raw.startswith(MARK):
            return False
        try:
            return parse_hcl(unpack(raw).get(Piece.HCL, b"")).kind == hardware_name
        except EvidenceError:
            return False

    def describe(raw: bytes) -> dict[str, str]:
        parts = unpack(raw)
        blob = parse_hcl(parts.get(Piece.HCL, b""))
        assert hardware.describe is not None
        return {
            **hardware.describe(hardware_report(blob, parts.get(Piece.TD_QUOTE))),
            "runtime_data": blob.runtime.decode("ascii", "replace"),
            **describe_quote(quote_of(parts)),
        }

    def attester(section: AttestationSection) -> Attester:
        # This loads an HTTP client, so only machines of this kind import it.
        from sds.attestation.azure.attester import azure_attester  # noqa: PLC0415  see above

        return azure_attester(section, EvidenceKind(name))

    return KindOfEvidence(
        title=title,
        examiner=examiner,
        recognises=recognises,
        describe=describe,
        attester=attester,
    )
