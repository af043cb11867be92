"""Returns every field of a TDX quote as text, for policies, records and people.

Owns the names of ``docs/attestation.md``. Invariant: claims say what the quote says, never whether
it is genuine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sds.attestation.tdx.quote import DEBUG_BITS, Quote

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sds.attestation.tdx.pck import Pck
    from sds.attestation.tdx.quote import ServiceTds
    from sds.attestation.tdx.tcb import TcbLevel


def claims_of_quote(
    quote: Quote, pck: Pck | None, levels: Mapping[str, TcbLevel]
) -> dict[str, str]:
    """Return every field of a quote as text, by the names of ``docs/attestation.md``."""
    body = quote.body
    claims = {
        "quote_version": str(quote.version),
        "mrtd": body.mrtd.hex(),
        **{f"rtmr{index}": rtmr.hex() for index, rtmr in enumerate(body.rtmr)},
        "report_data": body.report_data.hex(),
        "td_attributes": f"{body.attributes:#018x}",
        "debug": "true" if body.attributes & DEBUG_BITS else "false",
        "xfam": body.xfam.hex(),
        "mr_config_id": body.mr_config_id.hex(),
        "mr_owner": body.mr_owner.hex(),
        "mr_owner_config": body.mr_owner_config.hex(),
        "mr_seam": body.mr_seam.hex(),
        "tee_tcb_svn": body.tee_tcb_svn.hex(),
        "trailing_bytes": str(quote.trailing),
    }
    if body.tee_tcb_svn_2 is not None:
        claims["tee_tcb_svn_2"] = body.tee_tcb_svn_2.hex()
    if body.mr_service_td is not None:
        claims["mr_service_td"] = body.mr_service_td.hex()
    if body.service_tds is not None:
        claims |= _of_service_tds(body.service_tds)
    if pck is not None:
        claims["fmspc"] = pck.fmspc.hex()
        claims["pce_id"] = pck.pce_id.hex()
        if pck.ppid is not None:
            claims["ppid"] = pck.ppid.hex()
        if pck.platform_instance_id is not None:
            claims["platform_instance_id"] = pck.platform_instance_id.hex()
    for name, level in levels.items():
        claims[f"{name}_tcb_status"] = level.status
        claims[f"{name}_tcb_date"] = level.date
        claims[f"{name}_advisories"] = ",".join(level.advisories)
    return claims


def _of_service_tds(found: ServiceTds) -> dict[str, str]:
    return {
        "vmid": str(found.vmid),
        "td_id": found.td_id.hex(),
        "device_info": found.device_info.hex(),
        "initial_service_td_hash": found.initial_hash.hex(),
        "initial_service_td_attributes": found.initial_attributes.hex(),
        "initial_cpu_svn": found.initial_cpu_svn.hex(),
        "initial_tee_tcb_svn": found.initial_tee_tcb_svn.hex(),
        "initial_fmspc": found.initial_fmspc.hex(),
        "service_td_hash": found.current_hash.hex(),
        "service_td_attributes": found.current_attributes.hex(),
    }
