"""Checks a quote against Intel's collateral (PCCS API 4; QVL, section 4.1.2.5).

Owns which signed document counts for a platform and what its levels decide. Invariant: a document
is used only after its signature is verified under the TCB signing chain, and only while it is
current.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sds.attestation.tdx.collateral import signed_document
from sds.attestation.tdx.tcb import (
    TcbInfo,
    TcbLevel,
    enclave_level,
    module_level,
    platform_level,
    read_enclave_identity,
    read_tcb_info,
    same_under_mask,
    with_relaunch_advised,
)
from sds.errors import EvidenceError

if TYPE_CHECKING:
    from datetime import datetime

    from sds.attestation.checks import Checks
    from sds.attestation.reference_values import TdxReferenceValues
    from sds.attestation.tdx.chain import IntelChain
    from sds.attestation.tdx.collateral import Collateral
    from sds.attestation.tdx.pck import Pck
    from sds.attestation.tdx.quote import Quote
    from sds.attestation.tdx.tcb import EnclaveIdentity

_UP_TO_DATE: Final = "UpToDate"
_RELAUNCH: Final = "TDRelaunchAdvised"
_OUT_OF_DATE: Final = "OutOfDate"
_CURRENT: Final = "signed and current"
_KNOWN_TCB_TYPE: Final = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """A quote, and what it is checked against.

    Attributes:
        quote: parsed.
        pck: the PCK of the quote's chain.
        signer: the TCB signing chain, already verified.
        values: the reference values.
        now: the time at which documents must be valid.
    """

    quote: Quote
    pck: Pck
    signer: IntelChain
    values: TdxReferenceValues
    now: datetime


def check_collateral(
    checks: Checks, platform: Platform, collateral: Collateral
) -> dict[str, TcbLevel]:
    """Add checks 15 to 19, and return the levels of ``platform``, ``module`` and ``qe``."""
    levels: dict[str, TcbLevel] = {}
    # 15. Signature, form and time of each document.
    info = _tcb_info(checks, platform, collateral)
    identity = _identity(checks, platform, collateral)
    # 16. - 18. What they say about this platform and this quoting enclave.
    if info is not None:
        levels |= _platform_levels(checks, platform, info)
    if identity is not None:
        levels |= _enclave_levels(checks, platform, identity)
    # 19. Which statuses are accepted.
    if info is not None:
        svn = platform.quote.body.tee_tcb_svn_2
        levels = with_relaunch_advised(levels, info, platform.pck, svn)
    for name, title in (
        ("platform", "platform_tcb"),
        ("module", "tdx_module_tcb"),
        ("qe", "qe_tcb"),
    ):
        if name in levels:
            _status(checks, title, levels[name], platform.values)
    return levels


def _tcb_info(checks: Checks, platform: Platform, collateral: Collateral) -> TcbInfo | None:
    """Return the newest TCB info of this platform; without one, add the best match's reason."""
    failure: EvidenceError | None = None
    newest: TcbInfo | None = None
    other: TcbInfo | None = None
    for _, raw in collateral.tcb_infos:
        try:
            document = signed_document(
                raw, key=platform.signer.key, expected="tcbInfo", now=platform.now
            )
            info = read_tcb_info(document)
        except EvidenceError as error:
            failure = failure or error
            continue
        if not _same_platform(info, platform.pck):
            other = other or info
        elif newest is None or _age(newest) < _age(info):
            newest = info
    chosen = newest or (other if failure is None else None)
    if chosen is None:
        found = failure or EvidenceError("there is no TCB info", reason="collateral_untrusted")
        checks.attempt("tcb_info", found, found=found.message, expected=_CURRENT)
        return None
    checks.attempt("tcb_info", None, found=_CURRENT, expected=_CURRENT)
    return _of_this_platform(checks, platform, chosen)


def _age(info: TcbInfo) -> tuple[int, str]:
    """Return what orders documents: Intel signs those of earlier TCB recoveries anew every day."""
    return info.evaluation_number, info.issued


def _same_platform(info: TcbInfo, pck: Pck) -> bool:
    return bytes.fromhex(info.fmspc) == pck.fmspc and bytes.fromhex(info.pce_id) == pck.pce_id


def _of_this_platform(checks: Checks, platform: Platform, info: TcbInfo) -> TcbInfo:
    # 16. It is about this platform, of a known TCB type, and not older than is accepted.
    pck = platform.pck
    checks.add(
        "tcb_info_platform",
        "collateral_untrusted",
        ok=_same_platform(info, pck),
        found=f"FMSPC {info.fmspc.lower()}, PCE {info.pce_id.lower()}",
        expected=f"FMSPC {pck.fmspc.hex()}, PCE {pck.pce_id.hex()}",
        advice="fetch the TCB info of this FMSPC",
    )
    checks.add(
        "tcb_type",
        "collateral_untrusted",
        ok=info.tcb_type == _KNOWN_TCB_TYPE,
        found=info.tcb_type,
        expected=_KNOWN_TCB_TYPE,
        advice="levels of another type are compared by rules that this version does not know",
    )
    _evaluation_number(checks, "tcb_evaluation_number", info.evaluation_number, platform.values)
    return info


def _evaluation_number(checks: Checks, name: str, number: int, values: TdxReferenceValues) -> None:
    lowest = values.minimum_tcb_evaluation_number
    checks.add(
        name,
        "collateral_untrusted",
        ok=number >= lowest,
        found=number,
        expected=f"at least {lowest}",
        advice="fetch collateral of a newer TCB recovery (update=early)",
    )


def _identity(checks: Checks, platform: Platform, collateral: Collateral) -> EnclaveIdentity | None:
    try:
        document = signed_document(
            collateral.qe_identity,
            key=platform.signer.key,
            expected="enclaveIdentity",
            now=platform.now,
        )
        identity = read_enclave_identity(document)
    except EvidenceError as error:
        checks.attempt("qe_identity", error, found=error.message, expected=_CURRENT)
        return None
    checks.attempt("qe_identity", None, found=_CURRENT, expected=_CURRENT)
    _evaluation_number(checks, "qe_evaluation_number", identity.evaluation_number, platform.values)
    return identity


def _platform_levels(checks: Checks, platform: Platform, info: TcbInfo) -> dict[str, TcbLevel]:
    # 17. Level of platform and TDX module.
    body = platform.quote.body
    levels: dict[str, TcbLevel] = {}
    try:
        levels["platform"] = platform_level(info, platform.pck, body.tee_tcb_svn)
    except EvidenceError as error:
        checks.attempt("platform_tcb", error, found=error.message, expected="a known level")
    try:
        module = module_level(
            info,
            tee_tcb_svn=body.tee_tcb_svn,
            mr_signer=body.mr_signer_seam,
            attributes=body.seam_attributes,
        )
    except EvidenceError as error:
        checks.attempt("tdx_module", error, found=error.message, expected="a known module")
        return levels
    checks.attempt("tdx_module", None, found="known", expected="a known module")
    return levels if module is None else levels | {"module": module}


def _enclave_levels(
    checks: Checks, platform: Platform, identity: EnclaveIdentity
) -> dict[str, TcbLevel]:
    # 18. The quoting enclave is the one that Intel names.
    enclave = platform.quote.qe_report
    differing = [
        name
        for name, same in (
            ("MRSIGNER", enclave.mr_signer == bytes.fromhex(identity.signer)),
            ("ISVPRODID", enclave.product_id == identity.product_id),
            (
                "MISCSELECT",
                same_under_mask(
                    enclave.misc_select, identity.misc_select_mask, identity.misc_select
                ),
            ),
            (
                "ATTRIBUTES",
                same_under_mask(enclave.attributes, identity.attributes_mask, identity.attributes),
            ),
        )
        if not same
    ]
    checks.add(
        "qe_enclave",
        "quoting_enclave",
        ok=not differing,
        found=f"differs in {', '.join(differing)}" if differing else "the same",
        expected="the quoting enclave of the signed identity",
    )
    try:
        return {"qe": enclave_level(identity, enclave.security_version)}
    except EvidenceError as error:
        checks.attempt("qe_tcb", error, found=error.message, expected="a known level")
        return {}


def _status(checks: Checks, name: str, level: TcbLevel, values: TdxReferenceValues) -> None:
    accepted: tuple[str, ...] = tuple(values.tcb_statuses)
    # A TD that is out of date only by its launch is accepted if an out-of-date one is.
    as_out_of_date = level.status.replace(_RELAUNCH, _OUT_OF_DATE)
    unknown = (
        set(level.advisories) - set(values.permitted_advisories)
        if values.permitted_advisories and level.status != _UP_TO_DATE
        else set()
    )
    checks.add(
        name,
        "tcb_status",
        ok=(level.status in accepted or as_out_of_date in accepted) and not unknown,
        found=f"{level.status} ({', '.join(level.advisories) or 'no advisories'})",
        expected=" or ".join(accepted)
        + (f", only with {', '.join(values.permitted_advisories)}" if unknown else ""),
    )
