"""Appraisal of an authentic SEV-SNP report against reference values.

Owns the decision whether a machine that is what it says it is, is one that we accept. Pure:
report and reference values in, checks out. Invariant: refuses by default what weakens the guest
(debugging, migration agents, other privilege levels, masked keys, firmware that is not
committed); every check names the field, what was found and what is demanded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sds.attestation.snp_report import SigningKey, parse_tcb
from sds.errors import (
    DebugAllowedError,
    GuestIdentityError,
    MaskedChipKeyError,
    MeasurementError,
    MigrationAgentError,
    PlatformError,
    PrivilegeLevelError,
    ProvisionalFirmwareError,
    TcbBelowMinimumError,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sds.attestation.checks import Checks
    from sds.attestation.reference_values import ReferenceValues, SnpReferenceValues
    from sds.attestation.snp_chain import Leaf
    from sds.attestation.snp_report import Product, SnpReport

_ANY: Final = "any"


def appraise_snp(
    checks: Checks,
    report: SnpReport,
    values: ReferenceValues,
    *,
    product: Product | None,
    leaf: Leaf | None,
) -> None:
    """Add the checks of AMD 56860's fields against ``values``, in the order of the report.

    Args:
        checks: where the outcome goes.
        report: laid out; authenticity is checked elsewhere.
        values: what is demanded.
        product: None where it could not be told: checks that need it are left out.
        leaf: the certificate of the signing key, where it could be read.
    """
    snp = values.snp
    _guest(checks, report, snp)
    _platform(checks, report, snp)
    checks.add(
        "mask_chip_key",
        MaskedChipKeyError,
        ok=not report.mask_chip_key or snp.permit_masked_chip_key,
        found=int(report.mask_chip_key),
        expected=0 if not snp.permit_masked_chip_key else _ANY,
    )
    _among(checks, "measurement", MeasurementError, report.measurement, values.measurements)
    _among(checks, "host_data", GuestIdentityError, report.host_data, snp.host_data)
    _among(checks, "id_key_digest", GuestIdentityError, report.id_key_digest, snp.id_key_digests)
    if snp.author_key_digests:
        checks.add(
            "author_key_enabled",
            GuestIdentityError,
            ok=report.author_key_enabled,
            found=int(report.author_key_enabled),
            expected=1,
        )
    _among(
        checks,
        "author_key_digest",
        GuestIdentityError,
        report.author_key_digest,
        snp.author_key_digests,
    )
    _product(checks, snp, product)
    _chip(checks, report, snp, leaf)
    _firmware(checks, report, snp, product)


def _guest(checks: Checks, report: SnpReport, snp: SnpReferenceValues) -> None:
    policy = report.policy
    checks.add(
        "guest_svn",
        GuestIdentityError,
        ok=report.guest_svn >= snp.minimum_guest_svn,
        found=report.guest_svn,
        expected=f"at least {snp.minimum_guest_svn}",
    )
    checks.add(
        "policy_debug",
        DebugAllowedError,
        ok=not policy.debug or snp.permit_debug,
        found=int(policy.debug),
        expected=_ANY if snp.permit_debug else 0,
        advice="" if not policy.debug else "start the guest with a policy without DEBUG",
    )
    checks.add(
        "policy_migration_agent",
        MigrationAgentError,
        ok=not policy.migration_agent or snp.permit_migration_agent,
        found=int(policy.migration_agent),
        expected=_ANY if snp.permit_migration_agent else 0,
    )
    for name, found, demanded in (
        ("policy_smt", not policy.smt, snp.forbid_smt),
        ("policy_single_socket", policy.single_socket, snp.require_single_socket),
        ("policy_cxl", not policy.cxl, snp.forbid_cxl),
        ("policy_rapl_disabled", policy.rapl_disabled, snp.require_rapl_disabled),
        ("policy_ciphertext_hiding", policy.ciphertext_hiding, snp.require_ciphertext_hiding),
    ):
        _demand(checks, name, holds=found, demanded=demanded)
    _among(checks, "family_id", GuestIdentityError, report.family_id, snp.family_ids)
    _among(checks, "image_id", GuestIdentityError, report.image_id, snp.image_ids)
    checks.add(
        "vmpl",
        PrivilegeLevelError,
        ok=report.vmpl <= snp.maximum_vmpl,
        found=report.vmpl,
        expected=f"at most {snp.maximum_vmpl}",
    )


def _platform(checks: Checks, report: SnpReport, snp: SnpReferenceValues) -> None:
    platform = report.platform_info
    for name, found, demanded in (
        ("platform_smt", not platform.smt, snp.forbid_smt),
        ("platform_rapl_disabled", platform.rapl_disabled, snp.require_rapl_disabled),
        (
            "platform_ciphertext_hiding",
            platform.ciphertext_hiding,
            snp.require_ciphertext_hiding,
        ),
        ("platform_alias_check", platform.alias_check, snp.require_alias_check),
    ):
        _demand(checks, name, holds=found, demanded=demanded)


def _product(checks: Checks, snp: SnpReferenceValues, product: Product | None) -> None:
    checks.add(
        "product_accepted",
        PlatformError,
        ok=product is not None and (not snp.products or product in snp.products),
        found=product or "unknown",
        expected=", ".join(snp.products) or "a known product",
    )


def _chip(checks: Checks, report: SnpReport, snp: SnpReferenceValues, leaf: Leaf | None) -> None:
    chip = report.chip_id.hex()
    _among(checks, "chip_id", PlatformError, report.chip_id, snp.chip_ids)
    checks.add(
        "chip_id_denied",
        PlatformError,
        ok=chip not in snp.denied_chip_ids,
        found=chip,
        expected=f"none of {len(snp.denied_chip_ids)} denied",
    )
    if report.signing_key != SigningKey.VLEK:
        return
    checks.add(
        "vlek_permitted",
        PlatformError,
        ok=snp.permit_vlek,
        found="VLEK",
        expected="VCEK or VLEK" if snp.permit_vlek else "VCEK",
    )
    if leaf is not None:
        checks.add(
            "csp_id",
            PlatformError,
            ok=not snp.csp_ids or leaf.csp_id in snp.csp_ids,
            found=leaf.csp_id,
            expected=", ".join(snp.csp_ids) or _ANY,
        )


def _firmware(
    checks: Checks, report: SnpReport, snp: SnpReferenceValues, product: Product | None
) -> None:
    """Versions and TCBs; provisional: what runs is not what was committed (SNP_COMMIT)."""
    committed = report.current_tcb == report.committed_tcb and (
        report.current_version == report.committed_version
    )
    checks.add(
        "firmware_committed",
        ProvisionalFirmwareError,
        ok=committed or snp.permit_provisional_firmware,
        found=f"current {report.current_tcb.hex()} {_dotted(report.current_version)}, "
        f"committed {report.committed_tcb.hex()} {_dotted(report.committed_version)}",
        expected=_ANY if snp.permit_provisional_firmware else "the same",
    )
    if snp.minimum_firmware is not None:
        for name, version in (
            ("current_version", report.current_version),
            ("committed_version", report.committed_version),
        ):
            checks.add(
                name,
                TcbBelowMinimumError,
                ok=version >= tuple(snp.minimum_firmware),
                found=_dotted(version),
                expected=f"at least {_dotted(snp.minimum_firmware)}",
            )
    if product is None:
        return
    minimum = snp.minimum_tcb.get(product)
    for name, raw in (
        ("reported_tcb", report.reported_tcb),
        ("committed_tcb", report.committed_tcb),
        ("current_tcb", report.current_tcb),
    ):
        found = parse_tcb(raw, product).components()
        demanded = (
            {}
            if minimum is None
            else {component: getattr(minimum, component) for component in found}
        )
        checks.add(
            name,
            TcbBelowMinimumError,
            ok=all(found[component] >= least for component, least in demanded.items()),
            found=_listed(found),
            expected=f"at least {_listed(demanded)}" if demanded else _ANY,
            advice="",
        )


def _demand(checks: Checks, name: str, *, holds: bool, demanded: bool) -> None:
    checks.add(
        name,
        PlatformError,
        ok=holds or not demanded,
        found="holds" if holds else "does not hold",
        expected="holds" if demanded else _ANY,
    )


def _among(
    checks: Checks,
    name: str,
    error: type[MeasurementError | GuestIdentityError | PlatformError],
    found: bytes,
    accepted: Sequence[str],
) -> None:
    checks.add(
        name,
        error,
        ok=not accepted or found.hex() in accepted,
        found=found.hex(),
        expected=_ANY if not accepted else " or ".join(accepted[:3]) + _more(len(accepted) - 3),
    )


def _more(count: int) -> str:
    return f" or {count} more" if count > 0 else ""


def _dotted(version: Sequence[int]) -> str:
    return ".".join(str(part) for part in version)


def _listed(components: dict[str, int]) -> str:
    return ",".join(f"{name}={value}" for name, value in components.items())
