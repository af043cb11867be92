"""Azure's confidential VMs on Intel TDX, as a kind of evidence."""

from __future__ import annotations

from sds.attestation.azure.kind import vtpm_kind
from sds.attestation.tdx import kind as hardware

KIND = vtpm_kind(
    "azure-tdx-vtpm",
    hardware.KIND,
    "tdx",
    "Azure confidential VM, Intel TDX: a paravisor's quote and its vTPM's quote",
)
