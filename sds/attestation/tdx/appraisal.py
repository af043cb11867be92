"""Appraisal of an authentic TDX quote: reference values in, checks out. Pure.

Owns the decision whether to accept a TD whose quote is authentic. Invariant: properties that weaken
the TD are refused by default: debugging, migration, and service TDs, which may move it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sds.attestation.checks import ANY
from sds.attestation.tdx.quote import DEBUG_BITS, MIGRATABLE, SEPT_VE_DISABLE, Quote

if TYPE_CHECKING:
    from sds.attestation.checks import Checks
    from sds.attestation.reference_values import ReferenceValues, TdxReferenceValues
    from sds.attestation.tdx.pck import Pck
    from sds.attestation.tdx.quote import TdReport


def appraise_td(checks: Checks, quote: Quote, values: ReferenceValues) -> None:
    """Add checks 9 to 12: attributes, measurements, configuration, service TDs of the TD."""
    tdx, body = values.tdx, quote.body
    # 9. Attributes of the TD (TDX module ABI, ATTRIBUTES).
    debug = bool(body.attributes & DEBUG_BITS)
    checks.add(
        "td_debug",
        "debug_allowed",
        ok=not debug or tdx.permit_debug,
        found="set" if debug else "clear",
        expected=ANY if tdx.permit_debug else "clear",
    )
    migratable = bool(body.attributes & MIGRATABLE)
    checks.add(
        "td_migratable",
        "migration_agent",
        ok=not migratable or tdx.permit_migratable,
        found="set" if migratable else "clear",
        expected=ANY if tdx.permit_migratable else "clear",
    )
    disabled = bool(body.attributes & SEPT_VE_DISABLE)
    checks.add(
        "sept_ve_disable",
        "td_attributes",
        ok=disabled or not tdx.require_sept_ve_disable,
        found="set" if disabled else "clear",
        expected="set" if tdx.require_sept_ve_disable else ANY,
    )
    # 10. Measurements.
    checks.among("mrtd", "measurement", found=body.mrtd.hex(), accepted=values.measurements)
    for index, rtmr in enumerate(body.rtmr):
        checks.among(
            f"rtmr{index}",
            "measurement",
            found=rtmr.hex(),
            accepted=getattr(tdx, f"rtmr{index}"),
        )
    # 11. Configuration, owner, module.
    for name, value, accepted in (
        ("mr_config_id", body.mr_config_id, tdx.mr_config_id),
        ("mr_owner", body.mr_owner, tdx.mr_owner),
        ("mr_owner_config", body.mr_owner_config, tdx.mr_owner_config),
    ):
        checks.among(name, "guest_identity", found=value.hex(), accepted=accepted)
    checks.among("mr_seam", "tdx_module", found=body.mr_seam.hex(), accepted=tdx.mr_seam)
    # 12. Service TDs: bound ones may read and move the TD (MRSERVICETD and a body of type 4).
    _service_td(checks, body, values)


def _service_td(checks: Checks, body: TdReport, values: ReferenceValues) -> None:
    tdx = values.tdx
    if tdx.mr_service_td:
        measured = body.mr_service_td
        checks.among(
            "mr_service_td",
            "guest_identity",
            found=measured.hex() if measured is not None else "none",
            accepted=tdx.mr_service_td,
        )
        return
    bound = body.bound_service_td
    checks.add(
        "mr_service_td",
        "migration_agent",
        ok=bound is None or tdx.permit_service_td,
        found=bound.hex() if bound is not None else "none",
        expected=ANY if tdx.permit_service_td else "none",
        advice="" if bound is None else "name it in tdx.mr_service_td, if it is one of yours",
    )


def appraise_platform(checks: Checks, pck: Pck, values: TdxReferenceValues) -> None:
    """Add check 13: the platform is one of those that the reference values list, if any."""
    for name, found, accepted in (
        ("fmspc", pck.fmspc, values.fmspcs),
        ("ppid", pck.ppid, values.ppids),
        ("platform_instance_id", pck.platform_instance_id, values.platform_instance_ids),
    ):
        checks.among(
            name,
            "chip_refused",
            found=found.hex() if found is not None else "none",
            accepted=accepted,
        )
