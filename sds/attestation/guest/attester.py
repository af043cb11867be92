"""Chooses the interface of this guest that gives evidence.

Owns the choice: configfs-tsm if a driver is behind it, else ``/dev/sev-guest``. Invariant: it never
gives evidence of another kind than the configured one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sds.attestation.evidence import EvidenceKind
from sds.attestation.guest.sev_guest import DEVICE, SevGuestAttester
from sds.attestation.guest.tsm import TsmAttester, directory_of_reports, has_provider
from sds.errors import EvidenceError

if TYPE_CHECKING:
    from pathlib import Path

    from sds.attestation.evidence import Attester, Evidence, ReportData
    from sds.clock import Clock


class OneKindAttester:
    """An attester of one kind only."""

    def __init__(self, inner: Attester, kind: EvidenceKind) -> None:
        """Wrap ``inner``, which must give evidence of this kind."""
        self._inner = inner
        self._kind = kind

    async def attest(self, data: ReportData) -> Evidence:
        """Return the inner attester's evidence, if it is of this kind.

        Raises:
            EvidenceError: ``evidence_unsupported``: it is evidence of another kind.
        """
        evidence = await self._inner.attest(data)
        if evidence.kind is not self._kind:
            raise EvidenceError(
                f"this machine gives {evidence.kind} evidence, configured is {self._kind}",
                advice="set attestation.kind to auto, or to what the machine is",
                reason="evidence_unsupported",
            )
        return evidence


def guest_attester(
    clock: Clock,
    *,
    kind: EvidenceKind | None = None,
    privilege_level: int | None = None,
    reports: Path | None = None,
    device: Path = DEVICE,
) -> Attester:
    """Make the attester of this machine; it looks at the interfaces now, and uses them later.

    Args:
        clock: makes the pauses between attempts.
        kind: the required kind; None means any.
        privilege_level: the VMPL to ask for.
        reports: configfs-tsm's directory; None means where this machine has it.
        device: the device of kernels without it.

    Raises:
        EvidenceError: ``evidence_unsupported``: this machine has neither interface.
    """
    attester: Attester
    reports = directory_of_reports() if reports is None else reports
    if has_provider(reports):
        attester = TsmAttester(clock, reports=reports, privilege_level=privilege_level)
    elif device.exists() and kind is not EvidenceKind.TDX:
        attester = SevGuestAttester(clock, device=device, privilege_level=privilege_level or 0)
    else:
        idle = " (no driver is behind it)" if reports.is_dir() else ""
        other = "" if kind is EvidenceKind.TDX else f", nor {device}"
        raise EvidenceError(
            f"this machine has no {reports}{idle}{other}",
            advice="run in an SEV-SNP or TDX guest with configfs mounted, or set the kind to "
            "azure-snp-vtpm or azure-tdx-vtpm on Azure; to try out agent and authority here, put "
            "`sds simulate --` before their command",
            reason="evidence_unsupported",
        )
    return attester if kind is None else OneKindAttester(attester, kind)
