"""Verification and appraisal of TDX quotes (Intel TDX DCAP; TDX module ABI; PCCS API 4).

Owns the numbered checks. Invariant: claims are made only of a quote for which every check held;
a quote without collateral is refused, after every other check ran.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from sds.attestation.checks import ANY, Checks, Verdict
from sds.attestation.evidence import Claims, EvidenceKind
from sds.attestation.reference_values import ReferenceValues
from sds.attestation.tdx.collateral import (
    Collateral,
    TcbLevel,
    enclave_level,
    load_collateral,
    masked,
    module_level,
    platform_level,
    signed_document,
)
from sds.attestation.tdx.pck import (
    PCK_ISSUERS,
    PCK_NAME,
    ROOT_NAME,
    TCB_SIGNER_NAME,
    IntelChain,
    Pck,
    check_revocation,
    common_name,
    link_chain,
    read_pck,
    root_digest,
)
from sds.attestation.tdx.quote import (
    DEBUG_BITS,
    INTEL_QE_VENDOR,
    MIGRATABLE,
    SEPT_VE_DISABLE,
    Quote,
    parse_quote,
    require_known_attributes,
)
from sds.errors import EvidenceError, EvidenceMalformedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime
    from pathlib import Path
    from typing import Any

    from sds.attestation.evidence import Evidence, ReportData

P256_ORDER: Final = int("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551", 16)
_ECDSA: Final = ec.ECDSA(hashes.SHA256())
_SGX_DEBUG: Final = 2
_UP_TO_DATE: Final = "UpToDate"
_PCK_NAMES: Final = (frozenset({PCK_NAME}), PCK_ISSUERS, frozenset({ROOT_NAME}))
_SIGNER_NAMES: Final = (frozenset({TCB_SIGNER_NAME}), frozenset({ROOT_NAME}))


class TdxVerifier:
    """Verifies and appraises TDX quotes."""

    def __init__(
        self,
        *,
        values: ReferenceValues | None = None,
        trusted_roots: Iterable[bytes] = (),
        collateral: Path | None = None,
        revocation_lists: Iterable[bytes] = (),
    ) -> None:
        """Configure it.

        Args:
            values: what is accepted; the strict defaults where None.
            trusted_roots: DER of roots beside Intel's; claims under them say *simulated*.
            collateral: folder, read at every verification, since it is refreshed from outside.
            revocation_lists: DER, besides those of the folder.

        Raises:
            EvidenceError: a configured root cannot be read.
        """
        self._values = values or ReferenceValues()
        self._trusted = tuple(map(root_digest, trusted_roots))
        self._collateral = collateral
        self._lists = tuple(revocation_lists)

    def verify(self, evidence: Evidence, *, data: ReportData, now: datetime) -> Claims:
        return self.examine(evidence, data=data, now=now).claims_or_raise()

    def examine(self, evidence: Evidence, *, data: ReportData | None, now: datetime) -> Verdict:
        """Run every check that can run, in the order of the documents.

        Args:
            evidence: the evidence; certificates travel inside the quote.
            data: the report data that is demanded; None demands none.
            now: the time at which certificates and collateral must count.
        """
        checks = Checks()
        claims = self._check(checks, evidence, data, now)
        return Verdict(kind=EvidenceKind.TDX, checks=tuple(checks.done), claims=claims)

    def _check(
        self, checks: Checks, evidence: Evidence, data: ReportData | None, now: datetime
    ) -> Claims | None:
        if not checks.add(
            "kind",
            "evidence_kind",
            ok=evidence.kind is EvidenceKind.TDX,
            found=evidence.kind,
            expected=EvidenceKind.TDX,
        ):
            return None
        # 1. Layout, version, TEE type, algorithm (DCAP, appendix A.3).
        try:
            quote = parse_quote(evidence.report)
        except EvidenceError as error:
            checks.attempt("quote", error, found=error.message, expected="a TDX quote, v4 or v5")
            return None
        checks.attempt(
            "quote", None, found=f"version {quote.version}", expected="a TDX quote, v4 or v5"
        )
        _check_form(checks, quote)
        # 4. - 7. Who vouches for whom.
        lists, collateral, missing = self._load()
        chain, pck = self._check_chain(checks, quote, lists, now)
        if pck is not None:
            _check_signature(
                checks,
                "qe_report_signature",
                key=pck.public_key,
                signature=quote.qe_signature,
                signed=quote.qe_report.raw,
            )
        _check_quote_signature(checks, quote)
        # 8. The binding.
        if data is not None:
            checks.add(
                "report_data",
                "report_data_mismatch",
                ok=quote.body.report_data == data,
                found=quote.body.report_data.hex,
                expected=data.hex,
                advice="it was made for another request, or relayed",
            )
        # 9. - 11. Appraisal of the TD.
        _appraise(checks, quote, self._values)
        # 12. - 17. Collateral.
        levels: dict[str, TcbLevel] = {}
        if collateral is None:
            checks.attempt(
                "collateral",
                missing,
                found=missing.message if missing else "",
                expected="TCB info and QE identity, signed by Intel",
            )
        elif pck is not None and chain is not None:
            levels = self._check_collateral(checks, quote, pck, collateral, now)
        return Claims(
            kind=EvidenceKind.TDX,
            measurement=quote.body.mrtd.hex(),
            simulated=chain is not None and chain.simulated,
            attributes=claims_of_quote(quote, pck, levels),
        )

    def _load(self) -> tuple[tuple[bytes, ...], Collateral | None, EvidenceError | None]:
        if self._collateral is None:
            error = EvidenceError(
                "no collateral is configured",
                advice="give a folder, see docs/attestation.md",
                reason="collateral_missing",
            )
            return self._lists, None, error
        try:
            found = load_collateral(self._collateral)
        except EvidenceError as error:
            return self._lists, None, error
        return (*self._lists, *found.revocation_lists), found, None

    def _check_chain(
        self, checks: Checks, quote: Quote, lists: tuple[bytes, ...], now: datetime
    ) -> tuple[IntelChain | None, Pck | None]:
        # 4. PCK chain to the pinned root (PCK profile, section 1.3).
        expected = "PCK, its issuer and the pinned Intel SGX root"
        try:
            chain = link_chain(
                quote.pck_chain, names=_PCK_NAMES, trusted=self._trusted, what="PCK chain"
            )
            pck = read_pck(chain.leaf)
        except EvidenceError as error:
            checks.attempt("pck_chain", error, found=error.message, expected=expected)
            return None, None
        checks.attempt(
            "pck_chain",
            None,
            found=f"FMSPC {pck.fmspc.hex()}" + (" (configured root)" if chain.simulated else ""),
            expected=expected,
        )
        _check_validity(checks, chain, now)
        # 6. Revocation, where there are lists.
        if lists:
            _check_lists(checks, "revocation", chain, lists, now)
        return chain, pck

    def _check_collateral(
        self, checks: Checks, quote: Quote, pck: Pck, collateral: Collateral, now: datetime
    ) -> dict[str, TcbLevel]:
        # 12. The TCB signing chain.
        expected = "TCB signing certificate and the pinned Intel SGX root"
        try:
            chain = link_chain(
                collateral.signing_chain,
                names=_SIGNER_NAMES,
                trusted=self._trusted,
                what="TCB signing chain",
            )
        except EvidenceError as error:
            checks.attempt("collateral_chain", error, found=error.message, expected=expected)
            return {}
        checks.attempt("collateral_chain", None, found="holds", expected=expected)
        _check_validity(checks, chain, now)
        lists = (*self._lists, *collateral.revocation_lists)
        if lists:
            _check_lists(checks, "collateral_revocation", chain, lists, now)
        key = chain.leaf.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise EvidenceError(
                "the TCB signing key is not on an elliptic curve", reason="certificate_malformed"
            )
        levels: dict[str, TcbLevel] = {}
        info = _document(
            checks, "tcb_info", collateral.tcb_info, key=key, expected="tcbInfo", now=now
        )
        if info is not None:
            levels |= self._check_tcb(checks, quote, pck, info)
        identity = _document(
            checks,
            "qe_identity",
            collateral.qe_identity,
            key=key,
            expected="enclaveIdentity",
            now=now,
        )
        if identity is not None:
            levels |= self._check_enclave(checks, quote, identity)
        return levels

    def _check_tcb(
        self, checks: Checks, quote: Quote, pck: Pck, info: Mapping[str, Any]
    ) -> dict[str, TcbLevel]:
        # 14. It is about this platform, and not an older edition than is accepted.
        found = f"FMSPC {info.get('fmspc')}, PCE {info.get('pceId')}"
        checks.add(
            "tcb_info_platform",
            "collateral_untrusted",
            ok=str(info.get("fmspc", "")).lower() == pck.fmspc.hex()
            and str(info.get("pceId", "")).lower() == pck.pce_id.hex(),
            found=found,
            expected=f"FMSPC {pck.fmspc.hex()}, PCE {pck.pce_id.hex()}",
        )
        number = info.get("tcbEvaluationDataNumber")
        lowest = self._values.tdx.minimum_tcb_evaluation_number
        checks.add(
            "tcb_evaluation_number",
            "collateral_untrusted",
            ok=isinstance(number, int) and number >= lowest,
            found=number,
            expected=f"at least {lowest}",
        )
        levels: dict[str, TcbLevel] = {}
        # 15. Level of platform and TDX module.
        try:
            levels["platform"] = platform_level(info, pck, quote.body.tee_tcb_svn)
        except EvidenceError as error:
            checks.attempt("platform_tcb", error, found=error.message, expected="a known level")
        else:
            self._require_level(checks, "platform_tcb", levels["platform"])
        try:
            module = module_level(
                info,
                tee_tcb_svn=quote.body.tee_tcb_svn,
                mr_signer=quote.body.mr_signer_seam,
                attributes=quote.body.seam_attributes,
            )
        except EvidenceError as error:
            failure = EvidenceError(error.message, reason="tdx_module")
            checks.attempt("tdx_module", failure, found=error.message, expected="a known module")
        else:
            checks.attempt("tdx_module", None, found="known", expected="a known module")
            if module is not None:
                levels["module"] = module
                self._require_level(checks, "tdx_module_tcb", module)
        return levels

    def _check_enclave(
        self, checks: Checks, quote: Quote, identity: Mapping[str, Any]
    ) -> dict[str, TcbLevel]:
        # 16. The quoting enclave is the one that Intel names.
        enclave = quote.qe_report
        try:
            differing = [
                name
                for name, same in (
                    ("MRSIGNER", enclave.mr_signer == bytes.fromhex(identity["mrsigner"])),
                    ("ISVPRODID", enclave.product_id == identity["isvprodid"]),
                    (
                        "MISCSELECT",
                        masked(enclave.misc_select, bytes.fromhex(identity["miscselectMask"]))
                        == bytes.fromhex(identity["miscselect"]),
                    ),
                    (
                        "ATTRIBUTES",
                        masked(enclave.attributes, bytes.fromhex(identity["attributesMask"]))
                        == bytes.fromhex(identity["attributes"]),
                    ),
                )
                if not same
            ]
            level = enclave_level(identity, enclave.security_version)
        except (KeyError, TypeError, ValueError) as error:
            failure = EvidenceError(
                f"enclaveIdentity is not of its form: {error!r}", reason="collateral_untrusted"
            )
            checks.attempt("qe_enclave", failure, found=failure.message, expected="an identity")
            return {}
        except EvidenceError as error:
            checks.attempt("qe_enclave", error, found=error.message, expected="a known level")
            return {}
        checks.add(
            "qe_enclave",
            "quoting_enclave",
            ok=not differing,
            found=f"differs in {', '.join(differing)}" if differing else "the same",
            expected="the quoting enclave of the signed identity",
        )
        # 17.
        self._require_level(checks, "qe_tcb", level)
        return {"qe": level}

    def _require_level(self, checks: Checks, name: str, level: TcbLevel) -> None:
        tdx = self._values.tdx
        unknown = (
            set(level.advisories) - set(tdx.permitted_advisories)
            if tdx.permitted_advisories and level.status != _UP_TO_DATE
            else set()
        )
        checks.add(
            name,
            "tcb_status",
            ok=level.status in tdx.tcb_statuses and not unknown,
            found=f"{level.status} ({', '.join(level.advisories) or 'no advisories'})",
            expected=" or ".join(tdx.tcb_statuses)
            + (f", only with {', '.join(tdx.permitted_advisories)}" if unknown else ""),
        )


def _check_form(checks: Checks, quote: Quote) -> None:
    # 2. The quoting enclave's vendor, the module's own fields (TDX module ABI, TDREPORT).
    checks.add(
        "qe_vendor",
        "quoting_enclave",
        ok=quote.vendor == INTEL_QE_VENDOR,
        found=quote.vendor.hex(),
        expected=INTEL_QE_VENDOR.hex(),
    )
    checks.add(
        "seam_attributes",
        "tdx_module",
        ok=not any(quote.body.seam_attributes),
        found=quote.body.seam_attributes.hex(),
        expected="zero",
    )
    # 3. Reserved bits of ATTRIBUTES.
    failure: EvidenceMalformedError | None = None
    try:
        require_known_attributes(quote.body)
    except EvidenceMalformedError as error:
        failure = error
    checks.attempt(
        "attributes_reserved",
        failure,
        found=f"{quote.body.attributes:#018x}",
        expected="no reserved bit",
    )


def _check_validity(checks: Checks, chain: IntelChain, now: datetime) -> None:
    # 5. Validity at the time.
    for certificate in chain.certificates:
        start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        checks.add(
            "valid_" + common_name(certificate).lower().replace(" ", "_"),
            "certificate_validity",
            ok=start <= now <= end,
            found=f"{start:%FT%TZ} to {end:%FT%TZ}",
            expected=f"valid at {now:%FT%TZ}",
        )


def _check_lists(
    checks: Checks, name: str, chain: IntelChain, lists: tuple[bytes, ...], now: datetime
) -> None:
    failure: EvidenceError | None = None
    try:
        check_revocation(chain, lists, now)
    except EvidenceError as error:
        failure = error
    checks.attempt(
        name,
        failure,
        found=failure.message if failure else "not revoked",
        expected="not revoked by a current list of its issuer",
    )


def _check_quote_signature(checks: Checks, quote: Quote) -> None:
    # 7. The quoting enclave's report vouches for the attestation key, which signed the quote.
    bound = hashlib.sha256(quote.attestation_key + quote.authentication).digest().ljust(64, b"\0")
    checks.add(
        "qe_report_data",
        "quoting_enclave",
        ok=quote.qe_report.report_data == bound,
        found=quote.qe_report.report_data.hex,
        expected=bound.hex,
    )
    checks.add(
        "qe_debug",
        "quoting_enclave",
        ok=not quote.qe_report.attributes[0] & _SGX_DEBUG,
        found=quote.qe_report.attributes.hex(),
        expected="DEBUG clear",
    )
    try:
        key = ec.EllipticCurvePublicKey.from_encoded_point(
            ec.SECP256R1(), b"\x04" + quote.attestation_key
        )
    except ValueError:
        checks.add(
            "quote_signature",
            "signature_invalid",
            ok=False,
            found="the attestation key is no point on P-256",
            expected="a signature that holds",
        )
        return
    _check_signature(
        checks, "quote_signature", key=key, signature=quote.signature, signed=quote.signed
    )


def _check_signature(
    checks: Checks,
    name: str,
    *,
    key: ec.EllipticCurvePublicKey,
    signature: bytes,
    signed: bytes,
) -> None:
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    in_range = 0 < r < P256_ORDER and 0 < s < P256_ORDER
    holds = in_range
    if in_range:
        try:
            key.verify(encode_dss_signature(r, s), signed, _ECDSA)
        except InvalidSignature:
            holds = False
    checks.add(
        name,
        "signature_invalid" if in_range else "signature_range",
        ok=holds,
        found="holds" if holds else "does not hold" if in_range else "R or S out of range",
        expected="ECDSA P-256 with SHA-256",
    )


def _appraise(checks: Checks, quote: Quote, values: ReferenceValues) -> None:
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
    checks.among(
        "mr_service_td",
        "guest_identity",
        found=body.mr_service_td.hex() if body.mr_service_td else "none",
        accepted=tdx.mr_service_td,
    )


def _document(
    checks: Checks,
    name: str,
    raw: bytes,
    *,
    key: ec.EllipticCurvePublicKey,
    expected: str,
    now: datetime,
) -> Mapping[str, Any] | None:
    # 13. Signature, form and time of each document.
    try:
        document = signed_document(raw, key=key, expected=expected, now=now)
    except EvidenceError as error:
        checks.attempt(name, error, found=error.message, expected="signed and current")
        return None
    checks.attempt(name, None, found="signed and current", expected="signed and current")
    return document


def claims_of_quote(
    quote: Quote, pck: Pck | None, levels: Mapping[str, TcbLevel]
) -> dict[str, str]:
    """Every field of a quote as text, by the names of ``docs/attestation.md``."""
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
    if body.mr_service_td is not None:
        claims["mr_service_td"] = body.mr_service_td.hex()
    if pck is not None:
        claims["fmspc"] = pck.fmspc.hex()
    for name, level in levels.items():
        claims[f"{name}_tcb_status"] = level.status
        claims[f"{name}_tcb_date"] = level.date
        claims[f"{name}_advisories"] = ",".join(level.advisories)
    return claims
