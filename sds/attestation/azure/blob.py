"""The paravisor's blob in the vTPM: how it is read, and what it says of the machine that we run in.

Owns reading it, and the question whether this is an Azure confidential VM. Invariants: a blob that
the paravisor replaced while it was read is read again; a TPM that cannot be asked now is an error
that says so, and never a "no": the next start may find another answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sds.attestation.foreign import parse_hcl
from sds.attestation.tpm import commands
from sds.attestation.tpm.device import open_tpm
from sds.errors import EvidenceError, EvidenceUnavailableError

if TYPE_CHECKING:
    from pathlib import Path

    from sds.attestation.tpm.device import Tpm

NV_INDEX: Final = 0x0140_0001
"""Where the paravisor keeps its blob (OpenHCL, TPM_NV_INDEX_ATTESTATION_REPORT)."""
_READINGS: Final = 4
_KINDS: Final = {"sev-snp": "azure-snp-vtpm", "tdx": "azure-tdx-vtpm"}


def read_blob(tpm: Tpm) -> bytes:
    """Read the paravisor's blob, all of it as of one moment. It blocks.

    It is read in pieces, and a paravisor may put a new report there in between: at most every two
    seconds (OpenHCL, REPORT_TIMER_PERIOD). So it counts once two readings give the same.

    Raises:
        EvidenceError: ``tpm_refused``: there is none.
        EvidenceUnavailableError: it changed during every reading.
    """
    before = commands.nv_read(tpm, NV_INDEX)
    for _ in range(_READINGS):
        after = commands.nv_read(tpm, NV_INDEX)
        if after == before:
            return after
        before = after
    raise EvidenceUnavailableError("the paravisor's blob changes faster than it can be read")


def azure_kind(device: Path) -> str | None:
    """Return the kind of evidence of this machine, or None if its TPM has no paravisor's blob.

    It blocks.

    Args:
        device: the TPM.

    Raises:
        EvidenceUnavailableError: the TPM is there, and cannot be asked now.
        EvidenceMalformedError: the blob is of a kind of VM that is not known here.
    """
    if not device.exists():
        return None
    with open_tpm(device) as tpm:
        try:
            raw = read_blob(tpm)
        except EvidenceUnavailableError:
            raise
        except EvidenceError:
            return None  # TPM_RC_HANDLE: no such index
    return _KINDS[parse_hcl(raw).kind]
