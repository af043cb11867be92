"""Verifies a TPM's quote (TCG Part 2, section 10.12; Part 3, TPM2_Quote).

Owns the numbered checks of a quote against its key, our challenge and the PCR values beside it.
Invariant: PCR values count only if the digest that the key signed covers every one of them. The
calling kind of evidence decides whose key it is and whether it may attest.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from sds.attestation.tpm.attest import Attest, describe_attest, parse_attest
from sds.attestation.tpm.keys import AttestationKey, parse_signature, verify_signature
from sds.attestation.tpm.wire import HASHES, STRONG, Algorithm
from sds.errors import EvidenceError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sds.attestation.checks import Checks
    from sds.attestation.evidence import ReportData
    from sds.attestation.tpm.attest import Quoted

_QUOTE: Final = "a quote that a TPM made"
_SIGNED: Final = "signed by the attestation key"
_BANK: Final = "PCRs of one bank, SHA-256, SHA-384 or SHA-512"


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedQuote:
    """A quote as it travels: nothing in it has been checked.

    Attributes:
        attest: a TPMS_ATTEST.
        signature: a TPMT_SIGNATURE over it.
        values: the values of the quoted PCRs, one after the other, in ascending order.
    """

    attest: bytes = field(repr=False)
    signature: bytes = field(repr=False)
    values: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedQuote:
    """A quote that passed every check.

    Attributes:
        attest: what the TPM said.
        bank: the hash of the bank, by its name in ``hashlib``.
        pcrs: the values of the quoted PCRs, by index.
    """

    attest: Attest
    bank: str
    pcrs: Mapping[int, bytes]


def qualifying_data(data: ReportData) -> bytes:
    """Return what a quote binds for 64 bytes of report data: their SHA-256.

    A TPM accepts two bytes more than its longest digest has (Part 2, section 10.4.3, TPM2B_DATA),
    so 64 are too many for one without SHA-512.
    """
    return hashlib.sha256(data).digest()


def check_quote(
    checks: Checks, quote: SignedQuote, key: AttestationKey | None, data: ReportData | None
) -> VerifiedQuote | None:
    """Add the checks of a quote.

    Args:
        checks: where the outcome goes.
        quote: the quote.
        key: the key that must have signed it; None if it is unknown, which another check refuses.
        data: the required report data; None requires none.

    Returns:
        The quote if it passed every check here, else None (always, if ``key`` is None).
    """
    before = len(checks.done)
    # 1. Layout, TPM_GENERATED_VALUE, type (Part 2, section 10.12.12).
    try:
        attest = parse_attest(quote.attest)
        signature = parse_signature(quote.signature)
    except EvidenceError as error:
        checks.attempt("tpm_quote", error, found=error.message, expected=_QUOTE)
        return None
    quoted = attest.quoted
    checks.attempt("tpm_quote", None, found="a quote", expected=_QUOTE)
    # 2. The signature (Part 3, TPM2_Quote).
    if key is not None:
        failure: EvidenceError | None = None
        try:
            verify_signature(key, signature, attest.raw)
        except EvidenceError as error:
            failure = error
        checks.attempt(
            "tpm_signature",
            failure,
            found=failure.message if failure else signature.scheme.name,
            expected=_SIGNED,
        )
    # 3. The binding (extraData).
    if data is not None:
        expected = qualifying_data(data)
        checks.add(
            "tpm_data",
            "report_data_mismatch",
            ok=attest.data == expected,
            found=attest.data.hex,
            expected=expected.hex,
            advice="it was made for another request, or relayed",
        )
    # 4. The values (Part 1, section 17.4; Part 2, section 10.12.4).
    pcrs = _check_values(checks, quoted, signature.hash_algorithm, quote.values)
    held = key is not None and all(check.ok for check in checks.done[before:])
    if pcrs is None or not held:
        return None
    return VerifiedQuote(
        attest=attest, bank=HASHES[Algorithm(quoted.banks[0].algorithm)], pcrs=pcrs
    )


def describe_quote(quote: SignedQuote) -> dict[str, str]:
    """Describe a quote as text, with the PCR values beside it; nothing is verified.

    Raises:
        EvidenceMalformedError: it cannot be parsed.
    """
    said = describe_attest(quote.attest)
    banks = [bank for bank in parse_attest(quote.attest).quoted.banks if bank.pcrs]
    names = {int(number): name for number, name in HASHES.items()}
    name = names.get(banks[0].algorithm) if len(banks) == 1 else None
    size = hashlib.new(name).digest_size if name else 0
    if name is None or len(quote.values) != size * len(banks[0].pcrs):
        return said
    values = {
        f"pcr{pcr}": quote.values[size * i : size * (i + 1)].hex()
        for i, pcr in enumerate(banks[0].pcrs)
    }
    return {**said, "pcr_bank": name, **values}


def _check_values(
    checks: Checks, quoted: Quoted, hashed: Algorithm, values: bytes
) -> dict[int, bytes] | None:
    banks = [bank for bank in quoted.banks if bank.pcrs]
    known = len(banks) == len(quoted.banks) == 1 and banks[0].algorithm in STRONG
    if not checks.add(
        "pcr_bank",
        "pcr_values",
        ok=known,
        found=lambda: ", ".join(f"{bank.algorithm:#06x}" for bank in quoted.banks) or "no bank",
        expected=_BANK,
    ):
        return None
    bank = banks[0]
    size = hashlib.new(HASHES[Algorithm(bank.algorithm)]).digest_size
    digest = hashlib.new(HASHES[hashed], values).digest()
    fits = len(values) == size * len(bank.pcrs)
    if not checks.add(
        "pcr_values",
        "pcr_values",
        ok=fits and digest == quoted.digest,
        found=lambda: f"{len(values)} bytes with the digest {digest.hex()}",
        expected=lambda: f"{size * len(bank.pcrs)} bytes with the digest {quoted.digest.hex()}",
        advice="the values beside the quote are not those that the TPM quoted; a PCR may have "
        "changed in between: ask again",
    ):
        return None
    return {pcr: values[size * i : size * (i + 1)] for i, pcr in enumerate(bank.pcrs)}
