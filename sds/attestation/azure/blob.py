"""Reads the paravisor's blob in the vTPM, and what it says about this machine.

Owns the reading, and the decision whether this is an Azure confidential VM. Invariants: a blob that
the paravisor replaced while it was read is read again; a TPM that cannot be asked now is an error
that says so, and never a "no", because the next start may find another answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sds.attestation.other_formats import parse_hcl
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

    It is read in pieces, and a paravisor may write a new report in between, at most every two
    seconds (OpenHCL, REPORT_TIMER_PERIOD). So it counts once two readings are equal.

    Raises:
        EvidenceError: ``tpm_refused``: there is no blob.
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

    Raises:
        EvidenceUnavailableError: there is a TPM, but it cannot be asked now.
        EvidenceMalformedError: the blob is of an unknown kind of VM.
    """
    try:
        device.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        pass  # opening it says why
    with open_tpm(device) as tpm:
        try:
            raw = read_blob(tpm)
        except EvidenceUnavailableError:
            raise
        except EvidenceError:
            return None  # TPM_RC_HANDLE: no such index
    return _KINDS[parse_hcl(raw).kind]
