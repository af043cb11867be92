"""Returns every field of an SEV-SNP report as text, for policies, records and people.

Owns the names of ``docs/attestation.md``. Invariant: claims say what the report says, never whether
it is genuine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sds.attestation.snp.report import CPUID_VERSION, GuestPolicy

if TYPE_CHECKING:
    from sds.attestation.snp.leaf import Leaf
    from sds.attestation.snp.report import Product, Report

_POLICY_FLAGS: Final = tuple((flag.value, str(flag.name).lower()) for flag in GuestPolicy)
KEY_NAMES: Final = {0: "VCEK", 1: "VLEK", 7: "none"}
"""The names of SIGNING_KEY."""


def claims_of(report: Report, leaf: Leaf | None, product: Product | None) -> dict[str, str]:
    """Return every field of a report as text, by the names of ``docs/attestation.md``."""
    claims = {
        "report_version": str(report.version),
        "product": str(product) if product is not None else "",
        "vmpl": str(report.vmpl),
        "guest_svn": str(report.guest_svn),
        "policy": f"{report.policy:#x}",
        "policy_flags": ",".join(name for bit, name in _POLICY_FLAGS if report.policy & bit),
        "debug": _flag(report.policy & GuestPolicy.DEBUG),
        "measurement": report.measurement.hex(),
        "host_data": report.host_data.hex(),
        "report_data": report.report_data.hex(),
        "id_key_digest": report.id_key_digest.hex(),
        "author_key_digest": report.author_key_digest.hex(),
        "author_key_enabled": _flag(report.author_key_enabled),
        "family_id": report.family_id.hex(),
        "image_id": report.image_id.hex(),
        "report_id": report.report_id.hex(),
        "chip_id": report.chip_id.hex(),
        "platform_info": f"{report.platform_info:#x}",
        "signing_key": KEY_NAMES.get(report.signing_key, str(report.signing_key)).lower(),
        "current_tcb": report.current_tcb.raw.hex(),
        "reported_tcb": report.reported_tcb.raw.hex(),
        "committed_tcb": report.committed_tcb.raw.hex(),
        "launch_tcb": report.launch_tcb.raw.hex(),
        "current_firmware": ".".join(map(str, report.current_firmware)),
        "committed_firmware": ".".join(map(str, report.committed_firmware)),
    }
    if report.version >= CPUID_VERSION:
        claims["cpuid"] = (
            f"{report.cpuid_family:#04x}/{report.cpuid_model:#04x}/{report.cpuid_stepping:#04x}"
        )
    if report.launch_mitigation or report.current_mitigation:
        claims["launch_mitigations"] = f"{report.launch_mitigation:#x}"
        claims["current_mitigations"] = f"{report.current_mitigation:#x}"
    if leaf is not None and leaf.csp_id is not None:
        claims["csp_id"] = leaf.csp_id
    return claims


def _flag(value: object) -> str:
    return "true" if value else "false"
