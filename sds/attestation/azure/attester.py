"""Evidence of an Azure confidential VM, through its paravisor's vTPM.

Owns one attempt: the paravisor's blob from NV, the vTPM's quote over our data, and what only the
host can give: certificates or a TDX quote, which are kept for as long as they belong to the
hardware report. Invariants: the evidence binds the requested data and the key that the blob names;
a blob that the paravisor replaced while it was read is read again; nothing blocks the event loop;
the number of attempts is bounded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sds import threads
from sds.attestation.attempts import attempted
from sds.attestation.azure.blob import read_blob
from sds.attestation.azure.metadata import MetadataService
from sds.attestation.azure.runtime import parse_runtime
from sds.attestation.checks import Checks
from sds.attestation.evidence import Evidence, EvidenceKind
from sds.attestation.other_formats import HclBlob, parse_hcl
from sds.attestation.snp.endorsements import endorsements_of
from sds.attestation.snp.report import Report
from sds.attestation.snp.sources import first_found, fits_report
from sds.attestation.tpm import commands
from sds.attestation.tpm.attest import SHA256_BANK
from sds.attestation.tpm.device import RESOURCE_MANAGER, open_tpm
from sds.attestation.tpm.parcel import Piece, pack, parts_of
from sds.attestation.tpm.quote import SignedQuote, check_quote, qualifying_data
from sds.backoff import Backoff
from sds.clock import SystemClock
from sds.errors import EndorsementUnavailableError, EvidenceError, EvidenceUnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sds.attestation.evidence import ReportData
    from sds.attestation.settings import AttestationSection
    from sds.attestation.snp.sources import Endorsements
    from sds.clock import Clock

KEY: Final = 0x8100_0003
"""The attestation key's persistent handle (OpenHCL, TPM_AZURE_AIK_HANDLE)."""
ATTEMPTS: Final = 6
_BACKOFF: Final = Backoff(first=0.1, longest=2.0)


class VtpmAttester:
    """Evidence through a paravisor's vTPM.

    Args:
        kind: ``azure-snp-vtpm`` or ``azure-tdx-vtpm``.
        device: the vTPM.
        service: the instance metadata service.
        sources: the sources of the VCEK, in order.
        clock: makes the pauses between attempts.
    """

    def __init__(
        self,
        kind: EvidenceKind,
        *,
        device: Path,
        service: MetadataService,
        sources: Sequence[Endorsements],
        clock: Clock,
    ) -> None:
        self._kind = kind
        self._device = device
        self._service = service
        self._sources = tuple(sources)
        self._clock = clock
        # A paravisor signs a new report for every reader, but the certificates stay the same. A
        # TDREPORT is the same until the TD changes, and so is its quote.
        self._certified: tuple[bytes, ...] = ()
        self._quoted = (b"", b"")

    async def attest(self, data: ReportData) -> Evidence:
        """Collect evidence whose quote binds ``data``; try again if that can help.

        Raises:
            EvidenceError: ``evidence_unsupported``: this is another machine; ``tpm_refused``.
            EvidenceUnavailableError: the vTPM was busy or its PCRs changed at every attempt.
            EndorsementUnavailableError: neither the host nor a source has the certificates or the
                quote.
        """
        raw, blob, quote = await attempted(
            lambda: threads.EVIDENCE.run(_collect, self._device, data),
            most=ATTEMPTS,
            pauses=_BACKOFF,
            clock=self._clock,
        )
        if f"azure-{'snp' if blob.kind == 'sev-snp' else blob.kind}-vtpm" != self._kind:
            raise EvidenceError(
                f"this machine's paravisor reports {blob.kind}, configured is {self._kind}",
                advice="set attestation.kind to what the machine is",
                reason="evidence_unsupported",
            )
        parts = {**parts_of(quote), Piece.HCL: raw}
        if blob.kind == "tdx":
            parts[Piece.TD_QUOTE] = await self._td_quote(blob.report)
            return Evidence(kind=self._kind, report=pack(parts))
        report = Report.parse(blob.report)
        if not self._certified or not fits_report(self._certified[0], report):
            found, failure = await first_found(report, self._sources)
            if not found:
                raise failure or EndorsementUnavailableError(
                    "no source has the certificate of this chip and TCB",
                    advice="put the VCEK into attestation.certificates, or set "
                    "attestation.certificate_server",
                )
            self._certified = found
        return Evidence(kind=self._kind, report=pack(parts), certificates=self._certified)

    async def _td_quote(self, report: bytes) -> bytes:
        if self._quoted[0] != report:
            self._quoted = (report, await self._service.td_quote(report))
        return self._quoted[1]


def _collect(device: Path, data: ReportData) -> tuple[bytes, HclBlob, SignedQuote]:
    """Make one attempt. It blocks."""
    with open_tpm(device) as tpm:
        raw = read_blob(tpm)
        blob = parse_hcl(raw)
        quote = commands.quote(tpm, KEY, qualifying_data(data), SHA256_BANK)
    checks = Checks()
    if check_quote(checks, quote, parse_runtime(blob.runtime).key, data) is None:
        wrong = next(check.error for check in checks.done if check.error is not None)
        raise EvidenceUnavailableError(f"the vTPM's quote does not fit the request: {wrong}")
    return raw, blob, quote


def azure_attester(section: AttestationSection, kind: EvidenceKind) -> VtpmAttester:
    """Make the attester that a section describes; nothing is opened yet."""
    clock = SystemClock()
    service = MetadataService(section.metadata_server, clock)
    return VtpmAttester(
        kind,
        device=section.tpm_device or RESOURCE_MANAGER,
        service=service,
        sources=endorsements_of(section, clock, host=service),
        clock=clock,
    )
