"""Appraisal of an authentic SEV-SNP report: reference values in, checks out. Pure.

Owns the decision whether to accept a machine whose report is authentic. Invariants: properties that
weaken the guest are refused by default (debugging, migration agents, other privilege levels,
firmware that is not committed); versions are compared component by component, never as one integer;
every check names the field, what was found and what is required.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sds.attestation.checks import ANY, one_of
from sds.attestation.snp.report import (
    MITIGATION_VERSION,
    NO_MIGRATION_AGENT,
    GuestPolicy,
    PlatformInfo,
    SigningKey,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sds.attestation.checks import Checks
    from sds.attestation.reference_values import ReferenceValues, SnpReferenceValues
    from sds.attestation.snp.report import Product, Report, Tcb


@dataclass(frozen=True, slots=True, kw_only=True)
class Endorsed:
    """What a report's certificate says.

    Attributes:
        product: the product of report and chain; None if neither names it.
        csp_id: the provider of a VLEK, None for a VCEK or without a certificate.
    """

    product: Product | None
    csp_id: str | None = None


def appraise_snp(
    checks: Checks, report: Report, endorsed: Endorsed, values: ReferenceValues
) -> None:
    """Add the checks of AMD 56860's fields against ``values``.

    Args:
        checks: where the outcome goes.
        report: the report, parsed; its authenticity is checked elsewhere.
        endorsed: what its certificate says.
        values: the reference values.
    """
    _guest_policy(checks, report, values.snp)
    _firmware(checks, report, endorsed.product, values.snp)
    _guest(checks, report, values)
    _platform(checks, report, endorsed, values.snp)
    _properties(checks, report, values.snp)


def _guest_policy(checks: Checks, report: Report, snp: SnpReferenceValues) -> None:
    # 1. DEBUG (56860, table 9, bit 19).
    debug = bool(report.policy & GuestPolicy.DEBUG)
    checks.add(
        "policy_debug",
        "debug_allowed",
        ok=not debug or snp.permit_debug,
        found="set" if debug else "clear",
        expected=ANY if snp.permit_debug else "clear",
        advice="start the guest with a policy without DEBUG" if debug else "",
    )
    # 2. Migration agent (table 9, bit 18; REPORT_ID_MA, table 23).
    agent = bool(report.policy & GuestPolicy.MIGRATE_MA)
    associated = report.report_id_ma not in NO_MIGRATION_AGENT
    checks.add(
        "migration_agent",
        "migration_agent",
        ok=not (agent or associated) or snp.permit_migration_agent,
        found=lambda: (
            f"policy.MIGRATE_MA {'set' if agent else 'clear'}, REPORT_ID_MA "
            + (report.report_id_ma.hex() if associated else "none")
        ),
        expected=ANY if snp.permit_migration_agent else "none",
    )
    # 3. VMPL (table 23; a report that the host asked for has 0xFFFFFFFF).
    checks.add(
        "vmpl",
        "vmpl",
        ok=report.vmpl <= snp.maximum_vmpl,
        found=report.vmpl,
        expected=f"at most {snp.maximum_vmpl}",
    )
    # 4. The ABI that the guest demands of its firmware.
    if snp.minimum_policy_abi is not None:
        abi = [(report.policy >> 8) & 0xFF, report.policy & 0xFF]
        checks.add(
            "policy_abi",
            "guest_policy",
            ok=abi >= snp.minimum_policy_abi,
            found=_dotted(abi),
            expected=f"at least {_dotted(snp.minimum_policy_abi)}",
        )


def _firmware(
    checks: Checks, report: Report, product: Product | None, snp: SnpReferenceValues
) -> None:
    # 5. Provisional firmware: what runs is not what was committed (SNP_COMMIT).
    current = (report.current_tcb, report.current_firmware)
    committed = (report.committed_tcb, report.committed_firmware)
    checks.add(
        "firmware_committed",
        "provisional_firmware",
        ok=current == committed or snp.permit_provisional_firmware,
        found=lambda: (
            f"current {current[0].describe(product)} {_dotted(current[1])}, "
            f"committed {committed[0].describe(product)} {_dotted(committed[1])}"
        ),
        expected=ANY if snp.permit_provisional_firmware else "the same",
        advice="" if current == committed else "the host commits its firmware with SNP_COMMIT",
    )
    # 6. The minimum of each component, for every TCB (table 3).
    if product is not None:
        lowest = snp.minimum_tcb.get(product)
        minimum = lowest.model_dump() if lowest is not None else {}
        for name, tcb in (
            ("reported_tcb", report.reported_tcb),
            ("committed_tcb", report.committed_tcb),
            ("current_tcb", report.current_tcb),
            ("launch_tcb", report.launch_tcb),
        ):
            _tcb(checks, name, tcb, product, minimum)
    # 7. Firmware versions.
    if snp.minimum_firmware is not None:
        for name, version in (
            ("current_firmware", report.current_firmware),
            ("committed_firmware", report.committed_firmware),
        ):
            checks.add(
                name,
                "tcb_below_minimum",
                ok=list(version) >= snp.minimum_firmware,
                found=_dotted(version),
                expected=f"at least {_dotted(snp.minimum_firmware)}",
            )
    # 8. Mitigations that were verified at launch and now (reports of version 5 and later).
    if snp.mitigations:
        for name, bits in (
            ("launch_mitigations", report.launch_mitigation),
            ("current_mitigations", report.current_mitigation),
        ):
            present = bits if report.version >= MITIGATION_VERSION else 0
            checks.add(
                name,
                "mitigation_missing",
                ok=present & snp.mitigations == snp.mitigations,
                found=f"{present:#x}",
                expected=f"{snp.mitigations:#x} at least",
            )


def _tcb(checks: Checks, name: str, tcb: Tcb, product: Product, minimum: dict[str, int]) -> None:
    found = tcb.components(product)
    checks.add(
        name,
        "tcb_below_minimum",
        ok=all(version >= minimum.get(component, 0) for component, version in found.items()),
        found=lambda: tcb.describe(product),
        expected=lambda: _least({component: minimum.get(component, 0) for component in found}),
    )


def _least(demanded: dict[str, int]) -> str:
    if not any(demanded.values()):
        return ANY
    return "at least " + " ".join(f"{name}={least}" for name, least in demanded.items())


def _guest(checks: Checks, report: Report, values: ReferenceValues) -> None:
    # 9. Measurement, host data, identity block: where the reference values name any.
    snp = values.snp
    measured = report.measurement.hex()
    checks.among("measurement", "measurement", found=measured, accepted=values.measurements)
    checks.among("host_data", "host_data", found=report.host_data.hex(), accepted=snp.host_data)
    checks.among(
        "id_key_digest", "id_key", found=report.id_key_digest.hex(), accepted=snp.id_key_digests
    )
    enabled = report.author_key_enabled
    checks.among(
        "author_key_digest",
        "author_key",
        found=report.author_key_digest.hex() if enabled else "none (AUTHOR_KEY_EN clear)",
        accepted=snp.author_key_digests,
    )
    checks.among(
        "family_id", "guest_identity", found=report.family_id.hex(), accepted=snp.family_ids
    )
    checks.among("image_id", "guest_identity", found=report.image_id.hex(), accepted=snp.image_ids)
    # 10. GUEST_SVN.
    checks.add(
        "guest_svn",
        "guest_svn_below_minimum",
        ok=report.guest_svn >= snp.minimum_guest_svn,
        found=report.guest_svn,
        expected=f"at least {snp.minimum_guest_svn}",
    )


def _platform(checks: Checks, report: Report, endorsed: Endorsed, snp: SnpReferenceValues) -> None:
    # 11. Product, chip, provider.
    product = endorsed.product
    checks.add(
        "product_accepted",
        "product_refused",
        ok=product is not None and (not snp.products or product in snp.products),
        found=product or "unknown",
        expected=lambda: " or ".join(snp.products) or "a known product",
    )
    chip = report.chip_id.hex()
    checks.among("chip_id_listed", "chip_refused", found=chip, accepted=snp.chip_ids)
    # A report without a chip (VLEK, masked) may come from one that is denied.
    denied = snp.denied_chip_ids
    named = any(report.chip_id)
    checks.add(
        "chip_id_denied",
        "chip_refused",
        ok=not denied or (named and chip not in denied),
        found=chip if named else "no chip",
        expected=f"none of {len(denied)} denied",
        advice="" if named else "to accept it, leave denied_chip_ids empty",
    )
    _endorsement_key(checks, report, endorsed, snp)


def _endorsement_key(
    checks: Checks, report: Report, endorsed: Endorsed, snp: SnpReferenceValues
) -> None:
    # 12. The key that signed: a chip's (VCEK) or a cloud provider's (VLEK), and which provider's.
    if report.signing_key == SigningKey.VLEK:
        checks.add(
            "vlek_permitted",
            "platform",
            ok=snp.permit_vlek,
            found="VLEK",
            expected="VCEK or VLEK" if snp.permit_vlek else "VCEK",
        )
        checks.among("csp_id", "csp_id", found=endorsed.csp_id or "unknown", accepted=snp.csp_ids)
        return
    if snp.permit_vcek is False:
        checks.add("vcek_permitted", "platform", ok=False, found="VCEK", expected="VLEK")
    # A VCEK names a chip and no provider: a list of providers keeps it out.
    elif snp.csp_ids and snp.permit_vcek is None:
        checks.add(
            "csp_id",
            "csp_id",
            ok=False,
            found="none: a VCEK names no provider",
            expected=one_of(snp.csp_ids),
            advice="set permit_vcek to accept chips of any provider beside the listed ones",
        )


def _properties(checks: Checks, report: Report, snp: SnpReferenceValues) -> None:
    # 13. Bits of platform and policy (tables 9 and 24): the reference value, the bit, its value.
    rows: Sequence[tuple[bool, PlatformInfo | GuestPolicy, bool]] = (
        (snp.forbid_smt, GuestPolicy.SMT, False),
        (snp.forbid_smt, PlatformInfo.SMT_EN, False),
        (snp.require_single_socket, GuestPolicy.SINGLE_SOCKET, True),
        (snp.forbid_cxl, GuestPolicy.CXL_ALLOW, False),
        (snp.require_aes_256_xts, GuestPolicy.MEM_AES_256_XTS, True),
        (snp.require_page_swap_disabled, GuestPolicy.PAGE_SWAP_DISABLE, True),
        (snp.require_rapl_disabled, PlatformInfo.RAPL_DIS, True),
        (snp.require_ciphertext_hiding, PlatformInfo.CIPHERTEXT_HIDING_DRAM_EN, True),
        (snp.require_alias_check, PlatformInfo.ALIAS_CHECK_COMPLETE, True),
        (snp.require_tsme, PlatformInfo.TSME_EN, True),
        (snp.require_ecc, PlatformInfo.ECC_EN, True),
        (snp.require_iommu_write_safe, PlatformInfo.IOMMU_WR_SAFE, True),
    )
    for demanded, bit, wanted in rows:
        if not demanded:
            continue
        of_policy = isinstance(bit, GuestPolicy)
        present = bool((report.policy if of_policy else report.platform_info) & bit)
        checks.add(
            f"{'policy' if of_policy else 'platform'}_{str(bit.name).lower()}",
            "guest_policy" if of_policy else "platform",
            ok=present is wanted,
            found="set" if present else "clear",
            expected="set" if wanted else "clear",
        )


def _dotted(version: Sequence[int]) -> str:
    return ".".join(map(str, version))
