"""Recognises the kind of evidence in a file, and shows what it says.

Owns the guess. Invariant: it decides only which verifier gets the bytes; on the wire, the kind is
named.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from sds.attestation.evidence import EvidenceKind
from sds.attestation.other_formats import (
    HCL_MAGIC,
    HclBlob,
    describe_sgx_quote,
    describe_td_report,
    from_text,
    is_sgx_quote,
    is_td_report,
    parse_hcl,
    snp_report_within,
)
from sds.attestation.registry import KINDS, kind_module
from sds.attestation.snp.report import REPORT_BYTES
from sds.errors import EvidenceMalformedError

if TYPE_CHECKING:
    from collections.abc import Mapping

_SHOWN: Final = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """What bytes are and say, unverified.

    Attributes:
        kind: the kind's name, or that of a format that is described but not verified.
        platform: the platform in words.
        claims: every field as text.
    """

    kind: str
    platform: str
    claims: Mapping[str, str] = field(repr=False)


def kind_of(raw: bytes) -> EvidenceKind:
    """Return the kind whose header these bytes have.

    Raises:
        EvidenceMalformedError: they have none, or that of a format that this program cannot verify;
            the message names it.
    """
    if raw.startswith(HCL_MAGIC):
        raise _not_by_itself(parse_hcl(raw))
    kind = _recognised(raw)
    if kind is None:
        raise _other(raw)
    return kind


def _recognised(raw: bytes) -> EvidenceKind | None:
    for name, registered in KINDS.items():
        if registered.verified and kind_module(name).recognises(raw):
            return EvidenceKind(name)
    return None


def _other(raw: bytes) -> EvidenceMalformedError:
    """Return what these bytes are instead, as far as that can be told."""
    if is_sgx_quote(raw):
        return EvidenceMalformedError(
            "this is a quote of an Intel SGX enclave, not of a confidential VM",
            advice="give a TDX quote or an SEV-SNP report",
        )
    if is_td_report(raw):
        return EvidenceMalformedError(
            "this is a TDREPORT, which only the machine that made it can check",
            advice="give the quote that the quoting enclave makes of it",
        )
    if (offset := snp_report_within(raw)) is not None:
        left = len(raw) - offset - REPORT_BYTES
        return EvidenceMalformedError(
            f"an SEV-SNP report of {REPORT_BYTES} bytes begins at byte {offset}, and "
            + (f"{-left} bytes of it are missing" if left < 0 else f"{left} bytes follow it"),
            advice="give the report alone, and certificates with --leaf and --chain",
            reason="report_length",
        )
    if (text := from_text(raw)) is not None and (kind := _recognised(text[1])) is not None:
        return EvidenceMalformedError(
            f"this is text: {kind_module(kind).title}, written in {text[0]}",
            advice="give the bytes: `base64 -d` or `xxd -r -p` decodes it",
        )
    known = [name for name, registered in KINDS.items() if registered.verified]
    titles = ", ".join(kind_module(name).title for name in known)
    return EvidenceMalformedError(
        f"{len(raw)} bytes that are not known evidence", advice=f"known are: {titles}"
    )


def _not_by_itself(blob: HclBlob) -> EvidenceMalformedError:
    if blob.kind == "tdx":
        return EvidenceMalformedError(
            "this is an Azure paravisor's blob around a TDREPORT, which only its own machine can "
            "check",
            advice="give the quote that the instance metadata service made of it",
        )
    return EvidenceMalformedError(
        f"this is an Azure paravisor's blob around an {kind_module(blob.kind).title}",
        advice="give the report inside it (1184 bytes at offset 32)",
    )


def describe(raw: bytes) -> Described:
    """Describe the platform and every field as text; nothing is verified.

    Raises:
        EvidenceError: it cannot be parsed as any known format.
    """
    if raw.startswith(HCL_MAGIC):
        return _describe_hcl(raw)
    if is_sgx_quote(raw):
        return Described(
            kind="sgx",
            platform="Intel SGX quote: of an enclave, not of a confidential VM",
            claims=describe_sgx_quote(raw),
        )
    if is_td_report(raw):
        return Described(
            kind="tdx",
            platform="Intel TDX TDREPORT: only the machine that made it can check it",
            claims=describe_td_report(raw),
        )
    kind = kind_of(raw)
    module = kind_module(kind)
    if module.describe is None:
        raise EvidenceMalformedError(f"evidence of the kind {kind} is not shown")
    return Described(kind=kind, platform=module.title, claims=module.describe(raw))


def _describe_hcl(raw: bytes) -> Described:
    blob = parse_hcl(raw)
    runtime = {"runtime_data": _shortened(blob.runtime), "hash_type": str(blob.hash_type)}
    if blob.kind == "tdx":
        return Described(
            kind=blob.kind,
            platform="Azure confidential VM, Intel TDX: a paravisor's blob with a TDREPORT",
            claims=describe_td_report(blob.report) | runtime,
        )
    module = kind_module(blob.kind)
    assert module.describe is not None
    return Described(
        kind=blob.kind,
        platform=f"Azure confidential VM, AMD SEV-SNP: a paravisor's blob with an {module.title}",
        claims=module.describe(blob.report) | runtime,
    )


def _shortened(runtime: bytes) -> str:
    try:
        document = json.loads(runtime)
    except (ValueError, RecursionError):
        return runtime[:_SHOWN].decode("ascii", "replace")
    text = json.dumps(document, separators=(",", ":"))
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
