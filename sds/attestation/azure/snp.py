"""Azure's confidential VMs on AMD SEV-SNP, as a kind of evidence."""

from __future__ import annotations

from sds.attestation.azure.kind import vtpm_kind
from sds.attestation.snp import kind as hardware

KIND = vtpm_kind(
    "azure-snp-vtpm",
    hardware.KIND,
    "sev-snp",
    "Azure confidential VM, AMD SEV-SNP: a paravisor's report and its vTPM's quote",
)
